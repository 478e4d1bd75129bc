"""The text of an issued key: 256 bits, a prefix for scanners, and a checksum that finds slips of the pen."""

from __future__ import annotations

import re
import secrets

from hypothesis import given
from hypothesis import strategies as st

from drivetrain.core.keys import DIGITS, IssuedKey, is_well_formed, key_digest, looks_issued, new_key

SCANNED = re.compile(r"\bdt_[0-9A-Za-z]{49}\b")


@given(st.binary(min_size=32, max_size=32))
def test_every_key_has_the_shape_that_scanners_look_for(secret: bytes) -> None:
    key = new_key(lambda count: secret[:count])
    assert SCANNED.fullmatch(key)
    assert is_well_formed(key.encode())
    assert looks_issued(key.encode())


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_all_256_bits_are_in_the_key(one: bytes, other: bytes) -> None:
    assert (new_key(lambda _: one) == new_key(lambda _: other)) is (one == other)
    number = 0
    for digit in new_key(lambda _: one)[3:-6]:
        number = number * 62 + DIGITS.index(digit)
    assert number.to_bytes(32) == one


def test_keys_ask_for_32_bytes_and_no_more() -> None:
    asked: list[int] = []

    def entropy(count: int) -> bytes:
        asked.append(count)
        return bytes(count)

    assert new_key(entropy) == new_key(entropy)
    assert asked == [32, 32]


def test_every_altered_missing_added_or_exchanged_character_is_found() -> None:
    key = new_key(secrets.token_bytes)
    for place in range(3, len(key)):
        for digit in DIGITS:
            altered = key[:place] + digit + key[place + 1 :]
            assert is_well_formed(altered.encode()) is (altered == key)
        assert not is_well_formed((key[:place] + key[place + 1 :]).encode())
        assert not is_well_formed((key[:place] + "0" + key[place:]).encode())
        exchanged = key[:place] + key[place : place + 2][::-1] + key[place + 2 :]
        assert is_well_formed(exchanged.encode()) is (exchanged == key)


@given(st.binary(max_size=80))
def test_what_is_no_key_is_no_key(text: bytes) -> None:
    assert not is_well_formed(text)
    assert not is_well_formed(b"dt_" + text)


def test_a_digest_tells_nothing_without_its_pepper() -> None:
    key = new_key(secrets.token_bytes).encode()
    one, other = bytes(32), bytes([1]) * 32
    assert key_digest(one, key) == key_digest(one, key)
    assert key_digest(one, key) != key_digest(other, key)
    assert len(key_digest(one, key)) == 32


def test_states_by_the_clock() -> None:
    key = IssuedKey(name="k", generation=1, digest=b"", last4="", created_ns=0, expires_ns=10)
    assert [key.state(now) for now in (9, 10, 11)] == ["active", "expired", "expired"]
    ending = IssuedKey(name="k", generation=1, digest=b"", last4="", created_ns=0, expires_ns=10, replaced_by=2)
    assert [ending.state(now) for now in (9, 10)] == ["ending", "replaced"]
    revoked = IssuedKey(name="k", generation=1, digest=b"", last4="", created_ns=0, revoked_ns=5)
    assert [revoked.usable(now) for now in (4, 5, 6)] == [False] * 3, "a clock that goes back revives no key"
    assert revoked.state(4) == "revoked"
