"""Writes a new project from the template: one that runs at once, against the simulator."""

from __future__ import annotations

import os
import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from drivetrain.core.errors import DrivetrainError

TEMPLATE_NAME = "my-ai"
"""The project's name in the template's files."""
KEY_FILE = "secrets/dev.key"

_RENAMED = {"gitignore": ".gitignore"}
"""A .gitignore inside the package would hide files from the package's own build."""
_NAMED_FILES = frozenset({"drivetrain.toml", "README.md"})


def create(folder: Path, secret: str) -> tuple[Path, ...]:
    """The files of a new project in `folder`, written; `secret` becomes its development key.

    Raises: DrivetrainError where the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = f"{folder} exists and is not empty; nothing was written."
        raise DrivetrainError(what, do="Name a new folder: `drivetrain init my-ai`.")
    name = project_name(folder.resolve().name)
    written: list[Path] = []
    for path, content in sorted(_template_files(files(__package__) / "template", "").items()):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        named = content.replace(TEMPLATE_NAME.encode(), name.encode()) if path in _NAMED_FILES else content
        target.write_bytes(named)
        written.append(target)
    key = folder / KEY_FILE
    key.parent.mkdir(mode=0o700)
    with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{secret}\n")
    return (*written, key)


def project_name(folder: str) -> str:
    """A folder's name as the name of a project: small letters, digits, `_` and `-`."""
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.lower()).strip("-_")
    name = re.sub(r"^[^a-z]+", "", name)[:64]
    return name or TEMPLATE_NAME


def _template_files(folder: Traversable, above: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for entry in folder.iterdir():
        if entry.name == "__pycache__":
            continue
        path = above + _RENAMED.get(entry.name, entry.name)
        if entry.is_dir():
            found |= _template_files(entry, f"{path}/")
        else:
            found[path] = entry.read_bytes()
    return found
