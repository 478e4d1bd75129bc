"""The cache of answers: whose they are, how old they may be, and how much they may take."""

from __future__ import annotations

import gc
import itertools
import random
import tracemalloc

import pytest
from cache_world import Clock, answer
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.cache.answers import BYTES_MAX, ENTRY_BYTES_MAX, AnswerCache
from drivetrain.core.times import NS_PER_S

pytestmark = pytest.mark.slow

VARIANT = b"openai/small https://api.example.com/v1 openai"
BODY = b'{"model":"small","messages":[]}'
KEY = AnswerCache.key("acme", VARIANT, BODY)


def world(**more: int) -> tuple[AnswerCache, Clock]:
    clock = Clock()
    return AnswerCache(now_ns=clock.now, **more), clock


def test_the_same_request_gets_the_very_answer_that_was_kept() -> None:
    cache, clock = world()
    assert cache.fresh(KEY, 60) is None
    kept = answer(clock.ns, b"data: {}\n\ndata: [DONE]\n\n", streamed=True)
    assert cache.keep(KEY, kept, 60)
    assert cache.fresh(AnswerCache.key("acme", VARIANT, BODY), 60) is kept
    assert (cache.hits, cache.misses, cache.entries) == (1, 1, 1)


def test_another_tenant_variant_or_request_never_hits() -> None:
    """Also where the parts are cut elsewhere: all ways to cut one text into three have different keys."""
    cache, clock = world()
    cache.keep(KEY, answer(clock.ns), 60)
    for other in (("other", VARIANT, BODY), ("", VARIANT, BODY), ("acme", b"", BODY), ("acme", VARIANT, BODY + b" ")):
        assert cache.fresh(AnswerCache.key(*other), 60) is None
        assert cache.stale(AnswerCache.key(*other), 60) is None
    text = "acme\x00small{}acme"
    cuts = list(itertools.combinations_with_replacement(range(len(text) + 1), 2))
    keys = {AnswerCache.key(text[:a], text[a:b].encode(), text[b:].encode()) for a, b in cuts}
    assert len(keys) == len(cuts)
    assert {len(key) for key in keys} == {16}


@given(
    st.tuples(st.text(), st.binary(), st.binary()),
    st.tuples(st.text(), st.binary(), st.binary()),
)
def test_two_keys_are_equal_exactly_where_all_parts_are(
    one: tuple[str, bytes, bytes], two: tuple[str, bytes, bytes]
) -> None:
    assert (AnswerCache.key(*one) == AnswerCache.key(*two)) == (one == two)


def test_a_tenant_that_is_no_unicode_has_a_key_of_its_own() -> None:
    assert AnswerCache.key("\ud800", b"", b"") != AnswerCache.key("\ud801", b"", b"")


def test_an_answer_is_fresh_until_its_ttl_and_stale_until_its_age() -> None:
    cache, clock = world()
    cache.keep(KEY, answer(clock.ns), 300)
    clock.wait(59.999999999)
    assert cache.fresh(KEY, 60) is not None
    clock.ns += 1
    assert cache.fresh(KEY, 60) is None
    assert cache.stale(KEY, 60) is None
    assert cache.stale(KEY, 61) is not None
    assert cache.stale_hits == 1
    clock.wait(239.999999999)
    assert cache.stale(KEY, 10_000) is not None
    assert cache.entries == 1
    clock.ns += 1
    assert cache.stale(KEY, 10_000) is None, "given beyond what it was kept for"
    assert (cache.entries, cache.bytes) == (0, 0)


def test_a_client_may_ask_for_a_younger_answer_never_for_an_older_one() -> None:
    cache, clock = world()
    cache.keep(KEY, answer(clock.ns), 300)
    assert cache.fresh(KEY, 60, 0) is None
    clock.wait(10)
    assert cache.fresh(KEY, 60, 10) is None
    assert cache.fresh(KEY, 60, 11) is not None
    clock.wait(50)
    assert cache.fresh(KEY, 60, 2**31) is None


def test_an_answer_of_the_future_is_not_given() -> None:
    cache, clock = world()
    cache.keep(KEY, answer(clock.ns), 60)
    clock.wait(-1)
    assert cache.fresh(KEY, 60) is None
    assert cache.stale(KEY, 60) is None


def test_a_later_answer_takes_the_place_of_the_earlier_one() -> None:
    cache, clock = world()
    cache.keep(KEY, answer(clock.ns, b"old"), 60)
    clock.wait(5)
    cache.keep(KEY, answer(clock.ns, b"later"), 60)
    found = cache.fresh(KEY, 60)
    assert found is not None
    assert found.body == b"later"
    alone, _ = world()
    alone.keep(KEY, found, 60)
    assert (cache.bytes, cache.entries) == (alone.bytes, 1)


def test_what_is_used_stays_and_what_is_not_makes_room() -> None:
    one, clock = world()
    one.keep(KEY, answer(clock.ns), 60)
    cache = AnswerCache(now_ns=clock.now, bytes_max=3 * one.bytes)
    for key in (b"a", b"b", b"c"):
        cache.keep(key, answer(clock.ns), 60)
    assert cache.fresh(b"a", 60)
    assert cache.stale(b"b", 60)
    cache.keep(b"d", answer(clock.ns), 60)
    assert [cache.fresh(key, 60) is not None for key in (b"a", b"b", b"c", b"d")] == [True, True, False, True]
    assert cache.evictions == 1


def test_a_giant_answer_is_not_kept_and_displaces_nothing() -> None:
    cache, clock = world()
    cache.keep(KEY, answer(clock.ns), 60)
    assert not cache.keep(b"giant", answer(clock.ns, bytes(ENTRY_BYTES_MAX)), 60)
    assert cache.keep(b"large", answer(clock.ns, bytes(ENTRY_BYTES_MAX - 1_000)), 60)
    assert cache.fresh(KEY, 60) is not None
    nothing, _ = world(bytes_max=0)
    assert not nothing.keep(KEY, answer(clock.ns), 60)
    assert nothing.fresh(KEY, 60) is None


def test_ten_thousand_random_answers_stay_within_their_bytes() -> None:
    """As the cache counts, and as the interpreter's allocator does: the overhead is not made up."""
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    bytes_max = 2 * 1024 * 1024
    gc.collect()
    tracemalloc.start()
    try:
        clock = Clock()
        before = tracemalloc.get_traced_memory()[0]
        cache = AnswerCache(now_ns=clock.now, bytes_max=bytes_max, entry_bytes_max=30_000)
        largest = 0
        for number in range(10_000):
            size = dice.choice((0, 40, 400, 4_000, 40_000))
            body = dice.randbytes(dice.randint(0, size))
            # Numbers of their own, as parsed ones are.
            cost, base = dice.randint(10**9, 10**12), dice.randint(10**3, 10**6)
            usage = type(answer().usage)(base + 1, base + 2, base + 3, base + 4, base + 5, base + 6, "reported")
            kept = answer(clock.ns - dice.randint(0, 10**9), body, cost_nano_usd=cost, usage=usage)
            cache.keep(AnswerCache.key("acme", VARIANT, b"%d" % dice.randint(0, 9_000)), kept, dice.randint(2, 600))
            cache.fresh(AnswerCache.key("acme", VARIANT, b"%d" % dice.randint(0, 9_000)), 60)
            clock.wait(dice.random() / 10)
            assert cache.bytes <= bytes_max, number
            largest = max(largest, cache.bytes)
            if number % 500 == 499:
                del body, kept, usage
                gc.collect()
                assert tracemalloc.get_traced_memory()[0] - before <= cache.bytes + 20_000, number
    finally:
        tracemalloc.stop()
    assert largest > bytes_max * 0.95, "the bound was never near"
    assert cache.evictions > 1_000
    assert cache.hits > 100
    cache.clear()
    assert (cache.bytes, cache.entries) == (0, 0)


def test_many_small_answers_take_no_more_than_is_counted() -> None:
    """At the worst filling of the table, where the overhead is nearly everything."""
    clock = Clock()
    for count in (1_366, 2_731):
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            cache = AnswerCache(now_ns=clock.now)
            for number in range(count):
                usage = type(answer().usage)(*(1_000 * number + at for at in range(1_001, 1_007)), "reported")
                kept = answer(
                    clock.ns + number, usage=usage, cost_nano_usd=10**9 + number, price_source="", finish_reason=""
                )
                cache.keep(AnswerCache.key("acme", VARIANT, b"%d" % number), kept, 600)
            del usage, kept
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] - before <= cache.bytes
        finally:
            tracemalloc.stop()
        assert cache.entries == count


def test_purge_drops_exactly_what_is_over() -> None:
    cache, clock = world()
    for number in range(100):
        cache.keep(b"%d" % number, answer(clock.ns), number + 1)
    clock.wait(40)
    cache.purge()
    assert cache.entries == 60
    assert cache.bytes > 0
    assert cache.evictions == 0
    clock.wait(60)
    cache.purge()
    assert (cache.entries, cache.bytes) == (0, 0)


@given(
    stored=st.integers(),
    hold=st.integers(),
    ttl=st.integers(),
    max_age=st.none() | st.integers(),
    body=st.binary(max_size=2_000),
    texts=st.text(),
)
def test_no_value_raises(stored: int, hold: int, ttl: int, max_age: int | None, body: bytes, texts: str) -> None:
    cache, clock = world(bytes_max=4_000)
    kept = answer(stored, body, price_source=texts, finish_reason=texts)
    held = cache.keep(KEY, kept, hold)
    for _ in range(2):
        found = cache.fresh(KEY, ttl, max_age)
        assert found is None or (held and stored <= clock.ns < stored + min(ttl, hold) * NS_PER_S)
        cache.stale(KEY, ttl)
        cache.purge()
    assert 0 <= cache.bytes <= 4_000


def test_the_usual_cache_is_bounded() -> None:
    cache, _ = world()
    assert cache.bytes_max == BYTES_MAX == 16 * 1024 * 1024
