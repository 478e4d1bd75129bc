"""Chance that repeats: uniform numbers computed from a seed and what they are for.

No generator is shared, so a number does not depend on which request came first: a run gives the same answers at any
concurrency.
"""

from hashlib import blake2b
from statistics import NormalDist

BODIES_REMEMBERED_MAX = 100_000
"""How many different request bodies keep a count of their own; the oldest is forgotten first (about 150 bytes each)."""

_UNIT = 1.0 / (1 << 53)
_NORMAL = NormalDist()


def unit(*parts: object) -> float:
    """A number in [0, 1) that depends on `parts` only."""
    text = "\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return _as_unit(blake2b(text, digest_size=8).digest())


def normal(at: float) -> float:
    """The standard normal value below which a share of `at` lies."""
    return _NORMAL.inv_cdf(min(max(at, 1e-12), 1.0 - 1e-12))


def normal_share(value: float) -> float:
    """The share of a standard normal below `value`; the inverse of `normal`."""
    return _NORMAL.cdf(value)


class Dice:
    """The chance of one request: a fresh number for each purpose, the same on every run."""

    __slots__ = ("_digest", "ordinal")

    def __init__(self, digest: bytes, ordinal: int) -> None:
        self._digest = digest
        self.ordinal = ordinal
        """How many identical bodies came before: 0 for the first."""

    def unit(self, purpose: bytes) -> float:
        """A number in [0, 1) for this request and `purpose`."""
        return _as_unit(blake2b(b"%b%d" % (self._digest, self.ordinal), digest_size=8, person=purpose).digest())


class DiceBox:
    """Gives each request its dice by (seed, model, body, how many identical bodies came before)."""

    def __init__(self, seed: int) -> None:
        self._key = b"%d" % seed
        self._seen: dict[bytes, int] = {}

    def dice(self, model: str, body: bytes) -> Dice:
        """The dice for one more request with this body."""
        hashed = blake2b(body, digest_size=16, key=self._key)
        hashed.update(model.encode())
        digest = hashed.digest()
        ordinal = self._seen.get(digest, 0)
        if ordinal == 0 and len(self._seen) >= BODIES_REMEMBERED_MAX:
            del self._seen[next(iter(self._seen))]
        self._seen[digest] = ordinal + 1
        return Dice(digest, ordinal)

    def forget(self) -> None:
        """Starts again: the next body of any kind counts as the first."""
        self._seen.clear()


def _as_unit(digest: bytes) -> float:
    return (int.from_bytes(digest, "big") >> 11) * _UNIT
