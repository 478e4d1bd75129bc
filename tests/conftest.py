"""What all tests share: helpers in `support`, and a limit on how long any of them may hang."""

from __future__ import annotations

import os

import pytest

TEST_TIMEOUT_S = 300
"""Ends what hangs for ever, and nothing else: the longest take 20 s, and a machine may be many times slower."""

# Nothing outside a test decides which environment its projects load.
os.environ.pop("DRIVETRAIN_ENV", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that hangs fails by itself; slow ones set their own limit."""
    for item in items:
        if item.get_closest_marker("timeout") is None and item.config.pluginmanager.hasplugin("timeout"):
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))
