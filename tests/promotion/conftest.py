"""Fixtures of the tests that release something."""

from __future__ import annotations

from pathlib import Path

import pytest
from shop import Shop


@pytest.fixture
def shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shop:
    """A project of which nothing is released."""
    return Shop(tmp_path / "shop", capsys)
