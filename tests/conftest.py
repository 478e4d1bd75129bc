"""What all tests share: helpers in `support`, and a limit on how long any of them may hang."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

TEST_TIMEOUT_S = 300
"""Ends what hangs for ever, and nothing else: the longest take 20 s, and a machine may be many times slower."""

FAST = "not slow"
"""What `make test-fast` selects."""
SLOW_MODULE = re.compile(r"^pytestmark = (?:\[\s*)?pytest\.mark\.slow\b", re.MULTILINE)

# Nothing outside a test decides which environment its projects load.
os.environ.pop("DRIVETRAIN_ENV", None)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Modules that are slow as a whole are not even imported where only fast tests are wanted: that takes longer than
    most tests. None: as usual."""
    if config.option.markexpr != FAST or collection_path.suffix != ".py":
        return None
    return True if SLOW_MODULE.search(collection_path.read_text()) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that hangs fails by itself; slow ones set their own limit."""
    for item in items:
        if item.get_closest_marker("timeout") is None and item.config.pluginmanager.hasplugin("timeout"):
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))
