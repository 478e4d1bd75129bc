"""A reload may give a worker's cache more or less room."""

from __future__ import annotations

from drivetrain.cache.answers import AnswerCache, Kept
from drivetrain.core.money import NO_USAGE


def kept(size: int) -> Kept:
    return Kept(b"x" * size, False, NO_USAGE, 1, "project", "stop", 0)


def test_less_room_drops_the_least_recently_used_first() -> None:
    cache = AnswerCache(now_ns=lambda: 0)
    for number in range(10):
        assert cache.keep(b"%d" % number, kept(1_000), 60)
    assert cache.fresh(b"0", 60) is not None
    cache.resize(cache.bytes // 3)
    assert cache.bytes <= cache.bytes_max
    assert cache.fresh(b"0", 60) is not None
    assert cache.fresh(b"1", 60) is None
    cache.resize(0)
    assert (cache.entries, cache.bytes) == (0, 0)
    assert not cache.keep(b"a", kept(1), 60)
    cache.resize(1_000_000)
    assert cache.keep(b"a", kept(1), 60)
