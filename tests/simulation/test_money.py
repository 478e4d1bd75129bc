"""Budgets on their last cents: workers, overruns, estimates; nothing is overspent, and nothing refused that fits."""

from __future__ import annotations

import pytest

from .profiles import MONEY
from .suites import PARTS, play_part

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("part", PARTS)
def test_no_budget_is_overspent_and_none_refuses_what_fits(part: int) -> None:
    seen = play_part(MONEY, part)
    assert seen["budget_exceeded"] > 50
    assert seen["answered"] > 100
    assert seen["overrun"]
