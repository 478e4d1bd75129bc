"""The cache of one worker: what a provider answered to one exact request, kept in memory, bounded in bytes.

Owns keys, ages and what is dropped first. It does not decide which answers are fit to be kept (`keeping`), who asks
the provider while several wait (`flights`), or whether an answer is good enough: the caller reads and checks a kept
body as it would a fresh one. Called on the worker's loop, once per attempt.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from struct import Struct

import msgspec

from drivetrain.core.money import Usage
from drivetrain.core.times import NS_PER_S

BYTES_MAX = 16 * 1024 * 1024
"""Of one worker's cache: thousands of answers of usual size, and with a worker per core still little memory."""
ENTRY_BYTES_MAX = 1024 * 1024
"""Of one entry: whoever asks for giant answers displaces at most a sixteenth of what the others use."""
ENTRY_OVERHEAD_BYTES = 768
"""What an entry takes beside its body and texts: key, records, integers and its place in the order. Measured 670 to
720 on CPython 3.11, depending on how full the table is; a test holds this number against the allocator."""
CHARACTER_BYTES_MAX = 4
KEY_BYTES = 16
"""An answer of another tenant would take a second preimage, 2**128 tries."""

_LENGTHS = Struct("<QQQ")


class Kept(msgspec.Struct, frozen=True, gc=False):
    """A provider's answer, as it came, with what it cost when it came."""

    body: bytes
    """The provider's body; of a stream its raw events, whole."""
    streamed: bool
    usage: Usage
    cost_nano_usd: int
    """What giving it again saves."""
    price_source: str
    finish_reason: str
    stored_ns: int
    """When it came, by the cache's clock."""
    has_tool_calls: bool = False
    """Beside `finish_reason`, because an answer that calls a tool may still end with `stop`."""


class _Held(msgspec.Struct, frozen=True, gc=False):
    kept: Kept
    until_ns: int
    size: int


class AnswerCache:
    """Answers by key, the least recently used dropped first.

    now_ns: a clock that does not go back; `Kept.stored_ns` is read from the same.
    """

    __slots__ = (
        "_entries",
        "_entry_bytes_max",
        "_entry_bytes_most",
        "_now_ns",
        "bytes",
        "bytes_max",
        "evictions",
        "hits",
        "misses",
        "stale_hits",
    )

    def __init__(
        self,
        *,
        now_ns: Callable[[], int],
        bytes_max: int = BYTES_MAX,
        entry_bytes_max: int = ENTRY_BYTES_MAX,
    ) -> None:
        self._now_ns = now_ns
        self._entry_bytes_most = entry_bytes_max
        self._entry_bytes_max = min(entry_bytes_max, bytes_max)
        self._entries: OrderedDict[bytes, _Held] = OrderedDict()
        self.bytes_max = bytes_max
        self.bytes = 0
        """What all entries take, their overhead included; never more than `bytes_max`."""
        self.hits = 0
        """Answers given while fresh."""
        self.misses = 0
        self.stale_hits = 0
        """Answers given although stale, because no variant answered; not among `hits`."""
        self.evictions = 0
        """Entries that were still of use and made room for others."""

    @property
    def entries(self) -> int:
        """How many answers are kept."""
        return len(self._entries)

    @staticmethod
    def key(tenant: str, variant: bytes, body: bytes) -> bytes:
        """What one exact request is kept under.

        variant: whatever identifies who would answer: the model's reference, the endpoint's URL, the dialect.
        body: the request as it would be sent, so model, messages, parameters, limits and the stream flag.
        The lengths of all parts come first: no two different triples are ever hashed as the same bytes.
        """
        whose = tenant.encode("utf-8", "surrogatepass")
        digest = blake2b(_LENGTHS.pack(len(whose), len(variant), len(body)) + whose + variant, digest_size=KEY_BYTES)
        digest.update(body)
        return digest.digest()

    def fresh(self, key: bytes, ttl_s: int, max_age_s: int | None = None) -> Kept | None:
        """The answer, where it is younger than `ttl_s`, and than `max_age_s` where the client asks for that."""
        held = self._entries.get(key)
        if held is not None:
            if max_age_s is not None and max_age_s < ttl_s:
                ttl_s = max_age_s
            if self._younger(key, held, ttl_s):
                self.hits += 1
                return held.kept
        self.misses += 1
        return None

    def stale(self, key: bytes, max_age_s: int) -> Kept | None:
        """The answer, where it is younger than `max_age_s`: for when nobody else answers."""
        held = self._entries.get(key)
        if held is None or not self._younger(key, held, max_age_s):
            return None
        self.stale_hits += 1
        return held.kept

    def keep(self, key: bytes, kept: Kept, hold_s: int) -> bool:
        """Keep an answer for as long as it may be of use, instead of an earlier one; whether it was kept.

        hold_s: from `stored_ns`; the longer of the time it is fresh and the age at which it may be given stale.
        What is too large or already too old is not kept, and then neither is the answer before it.
        """
        self._drop(key)
        until_ns = kept.stored_ns + hold_s * NS_PER_S
        texts = len(kept.price_source) + len(kept.finish_reason)
        size = ENTRY_OVERHEAD_BYTES + len(kept.body) + CHARACTER_BYTES_MAX * texts
        if size > self._entry_bytes_max or until_ns <= self._now_ns():
            return False
        self._entries[key] = _Held(kept, until_ns, size)
        self.bytes += size
        self._make_room()
        return True

    def resize(self, bytes_max: int) -> None:
        """Take at most `bytes_max` from now on."""
        self.bytes_max = bytes_max
        self._entry_bytes_max = min(self._entry_bytes_most, bytes_max)
        self._make_room()

    def purge(self) -> None:
        """Drop what is of no more use, so that it does not stay in memory until others need the room.

        For a timer of the worker; costs about 0.1 us per entry.
        """
        now_ns = self._now_ns()
        for key in [key for key, held in self._entries.items() if held.until_ns <= now_ns]:
            self._drop(key)

    def clear(self) -> None:
        """Forget every answer, for example because a person is to be forgotten."""
        self._entries.clear()
        self.bytes = 0

    def _make_room(self) -> None:
        while self.bytes > self.bytes_max:
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= oldest.size
            self.evictions += 1

    def _younger(self, key: bytes, held: _Held, age_s: int) -> bool:
        now_ns = self._now_ns()
        if now_ns >= held.until_ns:
            self._drop(key)
            return False
        # An age below zero is no age that anybody could vouch for.
        if not 0 <= now_ns - held.kept.stored_ns < age_s * NS_PER_S:
            return False
        self._entries.move_to_end(key)
        return True

    def _drop(self, key: bytes) -> None:
        held = self._entries.pop(key, None)
        if held is not None:
            self.bytes -= held.size
