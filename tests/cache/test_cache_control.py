"""A request's `Cache-Control`, honest and hostile."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.cache.cache_control import AGE_S_MAX, HEADER_BYTES_MAX, CacheControl, read_cache_control
from support.tries import measured

ANYTHING = CacheControl(True, True, None)


@pytest.mark.parametrize(
    ("header", "read", "write", "max_age_s"),
    [
        (None, True, True, None),
        (b"", True, True, None),
        (b"no-cache", False, True, None),
        (b"no-store", True, False, None),
        (b"No-Store, NO-CACHE", False, False, None),
        (b" \tno-store\t , ,,no-cache ", False, False, None),
        (b"max-age=0", True, True, 0),
        (b"max-age=60", True, True, 60),
        (b"MAX-AGE=060", True, True, 60),
        (b'max-age="60"', True, True, 60),
        (b"no-cache=anything", False, True, None),
        (b"no-store, max-age=5, no-cache", False, False, 5),
        # Ignored: not ours to obey.
        (b"only-if-cached, max-stale=9, min-fresh=9, no-transform, private, public", True, True, None),
        (b"s-maxage=5", True, True, None),
        (b"no-store-at-all, xno-cache, nocache", True, True, None),
        # Malformed.
        (b"max-age", True, True, None),
        (b"max-age=", True, True, None),
        (b"max-age=-1", True, True, None),
        (b"max-age=+1", True, True, None),
        (b"max-age=1.5", True, True, None),
        (b"max-age=1_0", True, True, None),
        (b"max-age=0x10", True, True, None),
        (b"max-age = 5", True, True, None),
        (b"max-age=5 6", True, True, None),
        (b"max-age=x, no-cache", False, True, None),
        (b"=,==,=5,max-age==5", True, True, None),
        # Several times: all of them hold.
        (b"max-age=60, max-age=5, max-age=70", True, True, 5),
        (b"max-age=60, max-age=junk", True, True, 60),
        (b"no-cache, no-cache", False, True, None),
        # Huge.
        (b"max-age=2147483648", True, True, AGE_S_MAX),
        (b"max-age=99999999999999999999", True, True, AGE_S_MAX),
        (b"max-age=" + b"9" * 400, True, True, AGE_S_MAX),
        (b"max-age=" + b"0" * 400 + b"7", True, True, 7),
        # Within quotes commas separate nothing; quotes that never end are read to the end.
        (b'x="a,no-store,b", no-cache', False, True, None),
        (b'x="a\\",no-store,b"', True, True, None),
        (b'x="a, no-store', True, True, None),
        (b'"no-store"', True, True, None),
        # Not ASCII.
        ("max-age=٣".encode(), True, True, None),
        ("max-age=３, no-store".encode(), True, False, None),
        (b"\xff\xfe, no-cache\x00", True, True, None),
        ("no\u2010store".encode(), True, True, None),
        ("no-\u017ftore".encode(), True, True, None),
        # Too long to be read: nothing is cached, it may have been forbidden.
        (b"," * HEADER_BYTES_MAX, True, True, None),
        (b"," * (HEADER_BYTES_MAX + 1), False, False, None),
        (b"x" * 1_000_000, False, False, None),
    ],
)
def test_what_is_read(header: bytes | None, read: bool, write: bool, max_age_s: int | None) -> None:
    assert read_cache_control(header) == CacheControl(read, write, max_age_s)


@given(st.lists(st.sampled_from([b"no-store", b"max-age=", b"9", b'"', b"\\", b",", b"=", b" ", b"\xff", b"no-cache"])))
def test_no_header_raises(pieces: list[bytes]) -> None:
    found = read_cache_control(b"".join(pieces))
    assert found.max_age_s is None or 0 <= found.max_age_s <= AGE_S_MAX


@pytest.mark.parametrize(
    "hostile", [b'"' * HEADER_BYTES_MAX, b'"\\' * (HEADER_BYTES_MAX // 2), b"9" * HEADER_BYTES_MAX]
)
def test_no_header_takes_long(hostile: bytes) -> None:
    def read() -> float:
        began = time.thread_time()
        for _ in range(20):
            assert read_cache_control(hostile) == ANYTHING
        return time.thread_time() - began

    measured(1, read)
