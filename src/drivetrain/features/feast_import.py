"""`drivetrain features import-feast`: a Feast repository becomes a module of our declarations, and a list of the rest.

Owns where the module may stand, that hand edits survive, and that nothing is written which the project could not load.
Feast itself is not needed. Called by the command line.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from drivetrain.core.errors import DrivetrainError, ProjectError
from drivetrain.features.checks import check
from drivetrain.features.feast_module import module_text
from drivetrain.features.feast_reading import FILE_SECONDS, RUN_SECONDS, Note, read_repository
from drivetrain.features.feast_translate import translate
from drivetrain.ports.disk import SHARED_MODE, write_whole
from drivetrain.project.document import environment_name, parse
from drivetrain.project.files import SETTINGS_FILE, collect
from drivetrain.project.load import Source, build
from drivetrain.project.problems import Problems

TARGET = "features/imported.py"
_HEAD = re.compile(rb"# Imported from Feast; as it was written: sha256 ([0-9a-f]{64})\n")


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What an import made."""

    path: Path
    text: str
    """Of the module."""
    state: str
    """`new`, `changed`, `unchanged`; with a dry run, what it would be."""
    written: bool
    entities: int
    views: int
    on_demand: int
    services: int
    notes: tuple[Note, ...]
    """What was not carried over as it stood, each with its place and what to do."""


def import_feast(
    repository: Path,
    project: Path,
    *,
    to: str = TARGET,
    dry_run: bool = False,
    force: bool = False,
    environment: Mapping[str, str] | None = None,
    file_seconds: float = FILE_SECONDS,
    run_seconds: float = RUN_SECONDS,
) -> Imported:
    """The module `to` of the project declares what the repository declares.

    environment: variables that the definitions see. force: also over a module that was edited by hand. Raises:
    DrivetrainError, ProjectError where the project would not load with the module; then nothing is written.
    """
    project = project.resolve()
    path = _target(project, to)
    read = read_repository(repository, environment=environment, file_seconds=file_seconds, run_seconds=run_seconds)
    made = translate(read, project)
    body = module_text(made, project=read.settings.get("project") or read.root.name).encode()
    content = _headed(body)
    before = path.read_bytes() if path.is_file() else None
    if before is not None and before != content and not force and not _ours(before):
        raise DrivetrainError(
            f"{to} was edited by hand since it was imported, or was never imported.",
            do="Name another module with `--to`, or overwrite it with `--force`.",
        )
    _refuse_broken(project, path.relative_to(project).as_posix(), content)
    state = "new" if before is None else "unchanged" if before == content else "changed"
    if not dry_run and state != "unchanged":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content, mode=SHARED_MODE)
    return Imported(
        path=path, text=content.decode(), state=state, written=not dry_run and state != "unchanged",
        entities=len(made.entities), views=len(made.views), on_demand=len(made.functions),
        services=len(made.services), notes=made.notes,
    )  # fmt: skip


def _target(project: Path, to: str) -> Path:
    path = Path(os.path.normpath(project / to))
    folder = project / "features"
    if not path.is_relative_to(folder) or path.suffix != ".py" or not path.stem.isidentifier():
        raise DrivetrainError(f"`{to}` is no module of the project's features.", do=f"Write `--to {TARGET}`.")
    if not path.parent.resolve().is_relative_to(project) or path.is_symlink():
        raise DrivetrainError(f"`{to}` leads out of the project.", do=f"Write `--to {TARGET}`.")
    return path


def _headed(body: bytes) -> bytes:
    return (
        b"# Imported from Feast; as it was written: sha256 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    )


def _ours(content: bytes) -> bool:
    """Whether a module stands as an import wrote it."""
    head = _HEAD.match(content)
    return head is not None and hashlib.sha256(content[head.end() :]).hexdigest().encode() == head[1]


def _refuse_broken(project: Path, name: str, content: bytes) -> None:
    """Raises: ProjectError where the project does not load with the module, or its features are wrong."""
    problems = Problems()
    files = collect(project, problems)
    parsed = parse(files.get(SETTINGS_FILE, b""), problems)
    files = dict(sorted({**files, name: content}.items()))
    source = Source(
        files=files, root=project, code_root=project, environment=environment_name(parsed, None, os.environ)
    )
    snapshot = build(source, parsed, problems)
    from drivetrain.project import unload

    try:
        wrong = tuple(check(snapshot))
    finally:
        unload(snapshot)
    if wrong:
        raise ProjectError(wrong)
