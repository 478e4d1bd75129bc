"""docs/operating/promises.md: a promise names proofs that exist, and a proof is named by the promise that it proves."""

from __future__ import annotations

import re

import pytest
from doc_blocks import DOCS, ROOT

PAGE = DOCS / "operating" / "promises.md"
PARTS = re.split(r"^## (\d+)\. (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
SECTIONS = {int(number): text for number, text in zip(PARTS[1::3], PARTS[3::3], strict=True)}
PROOF = re.compile(r"`((?:tests|benchmarks)/[\w/]+\.py)`")
SAYS_WHICH = re.compile(r'^"""Promises? ([\d, and]+)')


def test_all_of_them_are_there_in_order() -> None:
    assert list(SECTIONS) == list(range(1, 39))


@pytest.mark.parametrize("number", SECTIONS)
def test_a_promise_says_what_proves_it_and_what_it_does_not_hold(number: int) -> None:
    text = SECTIONS[number]
    for word in ("**Promised.**", "**Proof.**", "**Not promised.**"):
        assert text.count(word) == 1, f"promise {number} has no {word}"
    proofs = PROOF.findall(text.partition("**Proof.**")[2].partition("\n\n")[0])
    assert proofs, f"promise {number} names no proof"
    for proof in PROOF.findall(text):
        assert (ROOT / proof).is_file(), f"promise {number} names {proof}, which is not there"


def test_a_proof_that_says_which_promise_it_is_for_is_named_there() -> None:
    found = 0
    for path in sorted((ROOT / "tests" / "promises").glob("test_*.py")):
        said = SAYS_WHICH.match(path.read_text(encoding="utf-8"))
        for number in re.findall(r"\d+", said[1]) if said else ():
            found += 1
            assert f"`tests/promises/{path.name}`" in SECTIONS[int(number)], (
                f"promise {number} does not name {path.name}"
            )
    assert found >= 12


def test_a_figure_names_where_it_comes_from() -> None:
    for number, text in SECTIONS.items():
        measured = text.partition("**Measured.**")[2].partition("\n\n")[0]
        if measured:
            assert re.search(r"`pytest|`python |\(\.\./design/", measured), f"promise {number}: which run was that?"
