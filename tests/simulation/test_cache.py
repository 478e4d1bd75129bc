"""Answers given again, alone and to many at once: never to another tenant, never changed, never charged."""

from __future__ import annotations

import pytest

from .profiles import CACHE
from .suites import PARTS, play_part

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("part", PARTS)
def test_an_answer_given_again_is_what_a_provider_gave_this_tenant(part: int) -> None:
    seen = play_part(CACHE, part)
    assert seen["cached"] > 50
    assert seen["stale"], "no answer was given although stale"
