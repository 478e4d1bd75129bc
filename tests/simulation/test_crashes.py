"""Workers that are killed between any two steps, and come back: every reservation is resolved once, by the ledger."""

from __future__ import annotations

import pytest

from .profiles import CRASHES
from .suites import PARTS, play_part

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("part", PARTS)
def test_a_kill_at_any_step_loses_no_call_and_no_money(part: int) -> None:
    seen = play_part(CRASHES, part)
    assert seen["cut"] > 20, "no Call was cut"
    for step in ("append", "write", "reserve", "answer", "sync"):
        assert seen[f"killed at {step}"], f"nobody was killed at {step}"
