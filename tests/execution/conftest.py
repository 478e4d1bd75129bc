"""One project for all of them: reading it takes longer than a hundred Calls."""

from __future__ import annotations

import pytest
from execution_world import load_plans

from drivetrain.execution.plan import Plans


@pytest.fixture(scope="session")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Plans:
    return load_plans(tmp_path_factory.mktemp("machine"))
