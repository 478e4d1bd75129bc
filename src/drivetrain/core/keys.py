"""Issued keys: how their text is made and checked, and what is kept of one. No I/O, and no key stays here.

A key's text is `dt_`, 43 characters for 256 random bits, and 6 for a checksum, all of 0-9A-Za-z: secret scanners find
it (`dt_[0-9A-Za-z]{49}`), and a mistyped or cut key is told from an unknown one without any look-up. The checksum is no
secret and proves nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from zlib import crc32

import msgspec

PREFIX = "dt_"
SECRET_BYTES = 32
BODY_CHARS = 43
"""The fewest of base 62 that hold 256 bits."""
CHECKSUM_CHARS = 6
"""The fewest of base 62 that hold a CRC-32, which finds every altered character and every two that changed places."""
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
DIGEST_BYTES = 32

_SHAPE = re.compile(rb"dt_[0-9A-Za-z]{%d}" % (BODY_CHARS + CHECKSUM_CHARS))


class IssuedKey(msgspec.Struct, frozen=True, kw_only=True):
    """One secret that was issued, and what it stands for; the secret itself is nowhere."""

    name: str
    """Who calls; a rotation keeps it, so that costs stay together."""
    generation: int
    """1, 2, 3 ... with every rotation."""
    digest: bytes
    """`key_digest` of the secret, under a key that is kept elsewhere."""
    last4: str
    """The secret's last four characters, part of its checksum, for people who must tell two apart."""
    tenant: str = ""
    team: str = ""
    """Empty: the workflow's team."""
    use_case: str = ""
    workflows: tuple[str, ...] | None = None
    """Workflows it may call; None: all."""
    may_override: tuple[str, ...] = ()
    """Among `team`, `use_case`, `user`, `tags`."""
    created_ns: int
    created_by: str = ""
    expires_ns: int | None = None
    """From then on it is refused; None: never."""
    revoked_ns: int | None = None
    """When it was revoked; it is refused whatever the clock says."""
    replaced_by: int | None = None
    """The generation that took its place."""

    def usable(self, now_ns: int) -> bool:
        """Whether it is accepted at `now_ns`."""
        return self.revoked_ns is None and (self.expires_ns is None or now_ns < self.expires_ns)

    def state(self, now_ns: int) -> str:
        """`active`, `ending` (replaced, and still accepted), `replaced`, `expired` or `revoked`."""
        if self.revoked_ns is not None:
            return "revoked"
        if self.usable(now_ns):
            return "active" if self.replaced_by is None else "ending"
        return "expired" if self.replaced_by is None else "replaced"


def new_key(entropy: Callable[[int], bytes]) -> str:
    """A new key's text, from 32 bytes of `entropy`."""
    secret = entropy(SECRET_BYTES)
    assert len(secret) == SECRET_BYTES
    text = PREFIX + _base62(int.from_bytes(secret), BODY_CHARS)
    return text + _checksum(text.encode())


def looks_issued(text: bytes) -> bool:
    """Whether `text` begins as issued keys do."""
    return text.startswith(PREFIX.encode())


def is_well_formed(text: bytes) -> bool:
    """Whether `text` has the shape of an issued key and its checksum fits; says nothing about whether it was issued."""
    return _SHAPE.fullmatch(text) is not None and _checksum(text[:-CHECKSUM_CHARS]).encode() == text[-CHECKSUM_CHARS:]


def key_digest(pepper: bytes, key: bytes) -> bytes:
    """32 bytes by which a key is looked up: BLAKE2b under `pepper`, without which nobody can test a guess."""
    return hashlib.blake2b(key, key=pepper, digest_size=DIGEST_BYTES).digest()


def _checksum(text: bytes) -> str:
    return _base62(crc32(text), CHECKSUM_CHARS)


def _base62(number: int, chars: int) -> str:
    digits = []
    for _ in range(chars):
        number, digit = divmod(number, 62)
        digits.append(DIGITS[digit])
    assert number == 0
    return "".join(reversed(digits))
