"""One project per test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from outcomes_world import World

from drivetrain.embedded import outcomes


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield World(tmp_path / "shop")
    outcomes.close()
