"""A machine in trouble: full disks, a counter store that is gone, slow or loses messages, clocks that jump, reloads."""

from __future__ import annotations

import pytest

from .profiles import MACHINE
from .suites import PARTS, play_part

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("part", PARTS)
def test_the_machines_troubles_cost_answers_but_no_money_and_no_record(part: int) -> None:
    seen = play_part(MACHINE, part)
    assert seen["unrecorded"] > 20, "no disk was full in time"
    assert seen["limits_unavailable"] > 20, "no store was gone in time"
    assert seen["answered"] > 100
