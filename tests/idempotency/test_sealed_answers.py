"""A kept answer is read by whoever repeats the request, and by nobody else."""

from __future__ import annotations

import pytest

from drivetrain.gateway.idempotency_answers import KeptAnswerV1, Names, names

SECRET, OTHER_SECRET = b"s" * 32, b"t" * 32
SCOPE = ("acme", "shop", "chat", "")
ANSWER = KeptAnswerV1(False, 200, b"content-type: application/json\r\n", b'{"a":"confidential"}')
REQUEST = names(SECRET, SCOPE, "key", b"body")


def test_the_same_request_reads_it() -> None:
    sealed = REQUEST.seal(ANSWER)
    assert names(SECRET, SCOPE, "key", b"body").unseal(sealed) == ANSWER
    assert b"confidential" not in sealed
    assert REQUEST.seal(ANSWER) != sealed


@pytest.mark.parametrize(
    "other",
    [
        names(OTHER_SECRET, SCOPE, "key", b"body"),
        names(SECRET, ("acme", "other", "chat", ""), "key", b"body"),
        names(SECRET, ("acme", "sho", "pchat", ""), "key", b"body"),
        names(SECRET, SCOPE, "another", b"body"),
        names(SECRET, SCOPE, "key", b"another"),
    ],
    ids=["secret", "caller", "shifted", "key", "body"],
)
def test_whoever_lacks_a_part_of_it_reads_nothing(other: Names) -> None:
    assert other.unseal(REQUEST.seal(ANSWER)) is None
    assert other.seal_key != REQUEST.seal_key
    assert other.body != REQUEST.body


def test_an_answer_belongs_to_its_key() -> None:
    """Moved to another row it is nobody's."""
    moved = Names(b"another id", REQUEST.body, REQUEST.seal_key)
    assert moved.unseal(REQUEST.seal(ANSWER)) is None


@pytest.mark.parametrize("length", [0, 1, 12, 27, 28, 40])
def test_a_cut_one_is_no_answer(length: int) -> None:
    assert REQUEST.unseal(REQUEST.seal(ANSWER)[:length]) is None


def test_nothing_in_a_name_is_shown() -> None:
    assert REQUEST.seal_key.hex() not in repr(REQUEST)
    assert repr(REQUEST.seal_key) not in repr(REQUEST)
