"""A builder of project folders, and one small project that is right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from small_project import SMALL, Make


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes files into a project folder; an empty text removes one."""

    def write(files: Mapping[str, str], folder: str = "shop") -> Path:
        root = tmp_path / folder
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root

    return write


@pytest.fixture
def small() -> dict[str, str]:
    """The files of a project with one typed workflow."""
    return dict(SMALL)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRIVETRAIN_ENV", raising=False)
