"""One simulator and one run of `drivetrain init` for all; each test gets a copy of what that made."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded_project import SIMULATOR, Project, init

from drivetrain.simulator import SimulatorProcess


@pytest.fixture(scope="session")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess(SIMULATOR) as running:
        yield running


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, simulator: SimulatorProcess) -> Project:
    return init(tmp_path_factory.mktemp("made") / "my-ai", simulator)


@pytest.fixture
def project(tmp_path: Path, made: Project, simulator: SimulatorProcess) -> Project:
    root = tmp_path / "my-ai"
    shutil.copytree(made.root, root)
    return Project(root, simulator)
