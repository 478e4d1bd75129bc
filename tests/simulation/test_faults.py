"""Providers that fail in every way, clients that leave, circuits that open: every Call ends once, and says how."""

from __future__ import annotations

import pytest

from .profiles import FAULTS
from .suites import PARTS, play_part

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("part", PARTS)
def test_whatever_providers_and_clients_do_a_call_ends_once_and_honestly(part: int) -> None:
    seen = play_part(FAULTS, part)
    for what in ("answered", "failed", "aborted", "broken stream", "static"):
        assert seen[what] > 5, f"too little was {what}"
