"""Snapshots on disk, by hash: written once, read back to the same Snapshot when a recorded Call is replayed.

A stored Snapshot is `HASH/manifest.json` and `HASH/files/...`: code, prompts and settings, never a secret.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Pinned
from drivetrain.project.document import parse
from drivetrain.project.files import FILES_MAX, SETTINGS_FILE
from drivetrain.project.load import Source, build
from drivetrain.project.problems import Problems
from drivetrain.project.snapshot import Snapshot, Versions

PREFIX_CHARS_MIN = 8
MANIFEST = "manifest.json"
FILES = "files"


class ManifestV1(msgspec.Struct, frozen=True, kw_only=True, tag="snapshot.1"):
    """What a stored Snapshot is made of, beside its files."""

    hash: str
    name: str
    environment: str
    versions: Versions
    files: tuple[str, ...]
    """Paths relative to `files/`, sorted."""
    pinned: dict[str, Pinned] = {}
    """What its references to trained models stood for."""


def store(snapshot: Snapshot, folder: Path) -> Path:
    """The folder that holds the Snapshot's content, written where it is not there yet.

    Atomic: a reader sees all of it or nothing. Safe to call from several processes at once.
    """
    target = folder / snapshot.hash
    if (target / MANIFEST).is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    manifest = ManifestV1(
        hash=snapshot.hash,
        name=snapshot.name,
        environment=snapshot.environment,
        versions=snapshot.versions,
        files=tuple(sorted(snapshot.files)),
        pinned=dict(snapshot.pinned),
    )
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder))
    try:
        for path, content in snapshot.files.items():
            file = draft / FILES / path
            file.parent.mkdir(parents=True, exist_ok=True)
            _write(file, content)
        _write(draft / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        try:
            draft.rename(target)
        except OSError:
            if not (target / MANIFEST).is_file():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def load_stored(folder: Path, hash_prefix: str, root: Path) -> Snapshot:
    """The stored Snapshot whose hash starts with `hash_prefix`; `root` is the project it belongs to.

    Raises: DrivetrainError where none or several match, or where the content is not what was stored;
    ProjectError where this version of Drivetrain no longer accepts it.
    """
    stored = _find(folder, hash_prefix)
    manifest = _manifest(stored)
    files = {path: _read(stored, path) for path in manifest.files}
    source = Source(
        files=files,
        root=root.resolve(),
        code_root=(stored / FILES).resolve(),
        environment=manifest.environment,
        versions=manifest.versions,
        pinned=manifest.pinned,
    )
    if source.digest != stored.name:
        raise _damaged(stored, "its files do not have the hash that it is stored under")
    problems = Problems()
    return build(source, parse(files.get(SETTINGS_FILE, b""), problems), problems)


def _find(folder: Path, hash_prefix: str) -> Path:
    if len(hash_prefix) < PREFIX_CHARS_MIN or not re.fullmatch(r"[0-9a-f]+", hash_prefix):
        what = f"`{hash_prefix}` is not the hash of a Snapshot."
        raise DrivetrainError(
            what, do=f"Write at least its first {PREFIX_CHARS_MIN} hex digits, as records carry them."
        )
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    matches = [name for name in names if name.startswith(hash_prefix)]
    if not matches:
        what = f"No stored Snapshot has a hash that starts with {hash_prefix}."
        raise DrivetrainError(what, looked=[str(folder)], do=f"{len(names)} are stored there.")
    if len(matches) > 1:
        what = f"{len(matches)} stored Snapshots have a hash that starts with {hash_prefix}."
        raise DrivetrainError(what, looked=[str(folder)], do="Write more digits of it.")
    return folder / matches[0]


def _manifest(stored: Path) -> ManifestV1:
    try:
        manifest = msgspec.json.decode((stored / MANIFEST).read_bytes(), type=ManifestV1)
    except (OSError, msgspec.MsgspecError) as error:
        raise _damaged(stored, f"{MANIFEST} cannot be read: {error}") from error
    if len(manifest.files) > FILES_MAX:
        raise _damaged(stored, f"{MANIFEST} lists more than {FILES_MAX} files")
    return manifest


def _read(stored: Path, path: str) -> bytes:
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or not parts:
        raise _damaged(stored, f"{MANIFEST} lists a file outside its folder")
    try:
        return (stored / FILES / path).read_bytes()
    except OSError as error:
        raise _damaged(stored, f"{path} cannot be read: {error.strerror}") from error


def _damaged(stored: Path, why: str) -> DrivetrainError:
    what = f"The stored Snapshot {stored.name[:16]} is damaged: {why}."
    return DrivetrainError(what, looked=[str(stored)], do="Restore the folder from a backup.")


def _write(file: Path, content: bytes) -> None:
    with file.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
