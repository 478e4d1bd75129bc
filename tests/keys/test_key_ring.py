"""The ring of keys in a worker's memory: who is let in, what is said to who is not, and what a look-up tells."""

from __future__ import annotations

import gc
import secrets
from collections.abc import Mapping
from typing import Any

import pytest
from keys_world import DECLARED, DECLARED_KEY, project_files, written

from drivetrain.core.errors import RequestError
from drivetrain.core.keys import IssuedKey, key_digest, new_key
from drivetrain.gateway.identity import ANYBODY, KeyRing
from drivetrain.ports.keys import IssuedKeys
from drivetrain.project.load import load
from drivetrain.project.snapshot import SecretRef, Snapshot

PEPPER = bytes(range(32))
NOW = 1_000


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return load(written(tmp_path_factory.mktemp("bare"), project_files()))


@pytest.fixture(scope="module")
def declaring(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return load(written(tmp_path_factory.mktemp("declaring"), project_files(DECLARED)))


def fresh() -> str:
    return new_key(secrets.token_bytes)


def issued(keys: Mapping[str, Mapping[str, Any]]) -> IssuedKeys:
    """key -> what it stands for."""
    made = [
        IssuedKey(**{"name": "app", "generation": 1, "digest": key_digest(PEPPER, key.encode()), "last4": key[-4:],
                     "created_ns": 0, **facts})
        for key, facts in keys.items()
    ]  # fmt: skip
    return IssuedKeys(pepper=PEPPER, keys=tuple(made))


def resolve(_reference: SecretRef) -> str:
    return DECLARED_KEY


def ring(snapshot: Snapshot, keys: IssuedKeys, **more: Any) -> KeyRing:
    return KeyRing(snapshot, resolve, keys, now_ns=NOW, **more)


def refusal(ring: KeyRing, key: str | bytes) -> RequestError:
    with pytest.raises(RequestError) as refused:
        ring.identify(b"Bearer " + (key if isinstance(key, bytes) else key.encode()))
    return refused.value


def test_declared_and_issued_keys_stand_beside_each_other(declaring: Snapshot) -> None:
    key = fresh()
    facts = {"tenant": "acme", "team": "sales", "workflows": ("help",), "may_override": ("user",)}
    both = ring(declaring, issued({key: facts}))
    assert both.identify(b"Bearer " + DECLARED_KEY.encode()).key == "declared"
    found = both.identify(b"bearer " + key.encode())
    assert (found.key, found.tenant, found.team) == ("app", "acme", "sales")
    assert found.may_call("help")
    assert not found.may_call("other")
    assert found.may_override == {"user"}


def test_an_ended_key_is_told_so_and_an_unknown_one_is_not_told_which(bare: Snapshot) -> None:
    expired, revoked, known = fresh(), fresh(), fresh()
    made = ring(bare, issued({
        known: {}, expired: {"generation": 2, "expires_ns": NOW}, revoked: {"generation": 3, "revoked_ns": 1},
    }))  # fmt: skip
    assert "expired on 1970-01-01" in refusal(made, expired).what
    assert "was revoked" in refusal(made, revoked).what
    assert "malformed" in refusal(made, known[:-1]).what
    unknown = {refusal(made, other).what for other in (fresh(), "sk-something-else", "", known[3:], known + " x")}
    assert unknown == {"the key is not known to this gateway", "the key is malformed: it was cut or mistyped"}
    for other in (expired, revoked, known[:-1], fresh(), "x"):
        answer = refusal(made, other)
        assert (answer.status, answer.code) == (401, "invalid_api_key")
        assert other not in answer.what or other == "x"
    for authorization in (None, b"", b"Basic " + known.encode(), known.encode()):
        with pytest.raises(RequestError) as refused:
            made.identify(authorization)
        assert refused.value.status == 401


def test_without_any_key_anybody_may_call_and_an_ended_key_changes_that(bare: Snapshot) -> None:
    assert ring(bare, IssuedKeys()).identify(None) is ANYBODY
    ended = ring(bare, issued({fresh(): {"revoked_ns": 1}}))
    assert not ended.open
    with pytest.raises(RequestError):
        ended.identify(None)


def test_the_next_expiry_is_known(bare: Snapshot) -> None:
    assert ring(bare, issued({fresh(): {}})).until_ns is None
    times = {"a": NOW + 5, "b": NOW + 3, "c": NOW - 1}
    made = ring(bare, issued({fresh(): {"name": name, "expires_ns": ns} for name, ns in times.items()}))
    assert made.until_ns == NOW + 3


def test_a_declared_name_wins_and_the_ring_says_so(declaring: Snapshot) -> None:
    key, other = fresh(), fresh()
    made = ring(declaring, issued({key: {"name": "declared"}, other: {"name": "app"}}))
    assert "`declared` was issued, and is declared" in made.problem
    assert refusal(made, key).status == 401
    assert made.identify(b"Bearer " + other.encode()).key == "app"


def test_a_closed_ring_takes_declared_keys_and_cannot_tell_about_issued_ones(declaring: Snapshot) -> None:
    key, revoked = fresh(), fresh()
    keys = issued({key: {}, revoked: {"generation": 2, "revoked_ns": 1}})
    closed = ring(declaring, keys, closed=True, problem="The disk is gone.")
    assert closed.identify(b"Bearer " + DECLARED_KEY.encode()).key == "declared"
    for one in (key, fresh()):
        answer = refusal(closed, one)
        assert (answer.status, answer.code, answer.retry_after_s) == (503, "keys_unavailable", 1)
    assert refusal(closed, revoked).status == 401
    assert refusal(closed, key[:-1]).status == 401
    assert closed.problem == "The disk is gone."


def test_a_closed_ring_is_never_open(bare: Snapshot) -> None:
    with pytest.raises(RequestError):
        ring(bare, IssuedKeys(), closed=True).identify(None)


def test_secrets_of_declared_keys_are_looked_up_once_per_snapshot_and_pepper(declaring: Snapshot) -> None:
    looked: list[str] = []

    def count(reference: SecretRef) -> str:
        looked.append(reference.reference)
        return DECLARED_KEY

    first = KeyRing(declaring, count)
    second = KeyRing(declaring, count, before=first)
    assert len(looked) == 1
    third = KeyRing(declaring, count, issued({fresh(): {}}), before=second)
    assert len(looked) == 2
    KeyRing(declaring, count, issued({fresh(): {}}), before=third)
    assert len(looked) == 2
    assert third.identify(b"Bearer " + DECLARED_KEY.encode()).key == "declared"


def test_no_key_stays_in_memory(declaring: Snapshot) -> None:
    key = fresh()
    made = ring(declaring, issued({key: {}}))
    made.identify(b"Bearer " + key.encode())
    seen: set[int] = set()
    waiting: list[Any] = [getattr(made, slot) for slot in KeyRing.__slots__]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type) or callable(one) or one is declaring:
            continue
        seen.add(id(one))
        if isinstance(one, str | bytes):
            text = one if isinstance(one, bytes) else one.encode()
            assert key.encode() not in text
            assert DECLARED_KEY.encode() not in text
        waiting += gc.get_referents(one)
    assert len(seen) > 10


def test_what_is_compared_says_nothing_about_any_key(bare: Snapshot) -> None:
    """A look-up compares digests that its caller can neither choose nor foresee: near keys are as far as others."""
    key = fresh()
    made = ring(bare, issued({key: {}}))
    own = key_digest(PEPPER, key.encode())
    assert set(made._by_digest) == {own}
    for place in range(len(key)):
        near = key_digest(PEPPER, (key[:place] + "-" + key[place + 1 :]).encode())
        differing = sum((a ^ b).bit_count() for a, b in zip(own, near, strict=True))
        assert 80 < differing < 176, "half of 256 bits, whichever character differs"
