"""One simulator for all, and a project of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded_project import SIMULATOR, Project, init

from drivetrain.simulator import SimulatorProcess


@pytest.fixture(scope="session")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess(SIMULATOR) as running:
        yield running


@pytest.fixture
def project(tmp_path: Path, simulator: SimulatorProcess) -> Project:
    return init(tmp_path / "my-ai", simulator)
