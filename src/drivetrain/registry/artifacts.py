"""An artifact's files: what may be one, the digest over them, and the check before every load.

Owns the rules for paths and sizes. Formats are known elsewhere: here files are bytes. Called by the registry, and by
whoever is about to load a model.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import ARTIFACT, MANIFEST, FileV1, ModelVersionV1, Pinned, Signature

FILES_MAX = 64
"""Models of our formats have one to six files; more is another kind of folder."""
ARTIFACT_BYTES_MAX = 4 * 1024**3
"""All files together: hashed at every load, at about 1 GB/s. `linear-text` weights alone may be 2 GB."""
PATH_CHARS_MAX = 200
"""Below the registry's own folders, so that the whole path is one that every system takes."""
PATH_PARTS_MAX = 8
"""Folders in folders: what is deeper is no artifact."""
MANIFEST_BYTES_MAX = 8 * 1024 * 1024
"""A hundred thousand labels fit."""
CHUNK_BYTES = 1024 * 1024
RESTORE = "Restore it from your backup, or point the alias at another version."
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@ -]{0,99}")
"""No part begins with a dot, so neither `..` nor a hidden file is one; no backslash, no colon, no control character."""
_MANIFEST: msgspec.json.Decoder[ModelVersionV1] = msgspec.json.Decoder(ModelVersionV1)


def artifact_digest(format: str, signature: Signature, files: Iterable[FileV1]) -> str:
    """SHA-256, 64 hex digits, over JSON with sorted keys: format, signature, and of each file by path its content's."""
    listed = sorted((one.path, one.bytes, one.sha256) for one in files)
    return hashlib.sha256(msgspec.json.encode([format, signature, listed], order="deterministic")).hexdigest()


def check_path(path: str) -> str:
    """The path of a file inside an artifact, as it is. Raises: DrivetrainError where it could lead elsewhere."""
    parts = path.split("/")
    if (
        not path
        or len(path) > PATH_CHARS_MAX
        or len(parts) > PATH_PARTS_MAX
        or not all(_PART.fullmatch(part) and not part.endswith((".", " ")) for part in parts)
    ):
        raise DrivetrainError(
            f"{path[:PATH_CHARS_MAX]!r} is no path of a file in a model.",
            do=f"A path is relative, has at most {PATH_PARTS_MAX} parts of letters, digits and `_.+@ -`, and none of "
            "them begins with a dot.",
        )
    return path


def write_files(folder: Path, files: Mapping[str, bytes | Path]) -> None:
    """Writes an artifact's files below `folder`, each flushed to the disk. Raises: DrivetrainError, OSError."""
    if not files:
        raise DrivetrainError("A model without any file is none.")
    if len(files) > FILES_MAX:
        raise DrivetrainError(f"A model has at most {FILES_MAX} files, and this one has {len(files):,}.")
    left = ARTIFACT_BYTES_MAX
    for path in sorted(files):
        target = folder / check_path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as written:
            for chunk in _chunks(files[path]):
                left -= len(chunk)
                if left < 0:
                    raise _too_large()
                written.write(chunk)
            written.flush()
            os.fsync(written.fileno())


def list_files(folder: Path) -> dict[str, int]:
    """Path -> size of every file below `folder`, by path. No link is followed.

    Raises: DrivetrainError for links, devices, too many files or bytes.
    """
    found: dict[str, int] = {}
    _list(folder, "", found)
    if sum(found.values()) > ARTIFACT_BYTES_MAX:
        raise _too_large()
    return dict(sorted(found.items()))


def describe_files(folder: Path) -> tuple[FileV1, ...]:
    """Every file below `folder` with its hash, by path; reads all of them. Raises: DrivetrainError as `list_files`."""
    return tuple(
        FileV1(path=path, bytes=size, sha256=hash_file(folder / path)) for path, size in list_files(folder).items()
    )


def read_manifest(path: Path) -> ModelVersionV1:
    """A version's manifest. Raises: FileNotFoundError; DrivetrainError where it cannot be read."""
    try:
        with open_plain(path) as file:
            raw = file.read(MANIFEST_BYTES_MAX + 1)
        if len(raw) > MANIFEST_BYTES_MAX:
            raise DrivetrainError(f"The manifest {path} has more than {MANIFEST_BYTES_MAX:,} bytes.", do=RESTORE)
        return _MANIFEST.decode(raw)
    except FileNotFoundError:
        raise
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DrivetrainError(f"The manifest {path} cannot be read: {error}.", do=RESTORE) from None


def manifest_hash(version: ModelVersionV1) -> str:
    """SHA-256 over a manifest's values, as the control log keeps it: the manifest itself is not chained."""
    return hashlib.sha256(msgspec.json.encode(version, order="deterministic")).hexdigest()


def artifact_folder(models: Path, name: str, number: int) -> Path:
    """Where a version's files are in a registry's folder."""
    return models / name / str(number) / ARTIFACT


def open_artifact(models: Path, pinned: Pinned) -> Path:
    """The folder of a pinned version's files, every byte of which is what was approved: check before every load.

    models: the registry's folder. Reads all files, at about 1 GB/s.
    Raises: DrivetrainError that tells what is changed, missing or not part of it.
    """
    folder = artifact_folder(models, pinned.name, pinned.number)
    try:
        found = describe_files(folder)
    except OSError as error:
        raise DrivetrainError(
            f"The files of model {pinned.id} cannot be read: {error.strerror or error}.",
            looked=[str(folder)],
            do=RESTORE,
        ) from None
    if artifact_digest(pinned.format, pinned.signature, found) == pinned.digest:
        return folder
    raise DrivetrainError(
        f"Model {pinned.id} is not what was approved, so it is not loaded: {'; '.join(_told(folder, pinned, found))}.",
        looked=[str(folder)],
        do=RESTORE,
    )


def differences(said: Sequence[FileV1], found: Sequence[FileV1]) -> list[str]:
    """What is changed, missing, or too much, in words; empty where nothing is."""
    before, now = ({one.path: one for one in files} for files in (said, found))
    told = [f"`{path}` is missing" for path in before if path not in now]
    told += [f"`{path}` is not part of it" for path in now if path not in before]
    told += [f"`{path}` was changed" for path, one in before.items() if path in now and now[path] != one]
    return sorted(told)


def open_plain(path: Path) -> BinaryIO:
    """A plain file for reading: no link, no device, nothing that could block. Raises: OSError, DrivetrainError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _no_file(path.name) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _no_file(path.name)
    return os.fdopen(fd, "rb")


def hash_file(path: Path) -> str:
    """SHA-256 of a plain file, 64 hex digits; reads all of it. Raises: OSError; DrivetrainError if too long."""
    digest = hashlib.sha256()
    with open_plain(path) as file:
        if file.seek(0, os.SEEK_END) > ARTIFACT_BYTES_MAX:
            raise DrivetrainError(f"{path.name[:200]!r} has more than the {ARTIFACT_BYTES_MAX:,} bytes of any model.")
        file.seek(0)
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _told(folder: Path, pinned: Pinned, found: Sequence[FileV1]) -> list[str]:
    try:
        manifest = read_manifest(folder.with_name(MANIFEST))
    except (FileNotFoundError, DrivetrainError):
        return [f"its digest is not {pinned.digest[:16]}..., and its manifest cannot be read"]
    told = differences(manifest.files, found)
    if manifest.digest != pinned.digest:
        told.append(f"its manifest tells another digest, {manifest.digest[:16]}...")
    return told or [f"its digest is not {pinned.digest[:16]}..."]


def _list(folder: Path, prefix: str, found: dict[str, int]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            path = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                if path.count("/") + 1 >= PATH_PARTS_MAX:
                    raise _no_file(path)
                _list(folder / entry.name, f"{path}/", found)
            elif entry.is_file(follow_symlinks=False):
                found[check_path(path)] = entry.stat(follow_symlinks=False).st_size
            else:
                raise _no_file(path)
            if len(found) > FILES_MAX:
                raise DrivetrainError(f"There are more than {FILES_MAX} files.", looked=[str(folder)])


def _chunks(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with open_plain(content) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _no_file(path: str) -> DrivetrainError:
    return DrivetrainError(
        f"{path[:PATH_CHARS_MAX]!r} is a link, a device or too deep; a model consists of plain files.",
        do="Put the file itself there.",
    )


def _too_large() -> DrivetrainError:
    return DrivetrainError(f"The files of a model have at most {ARTIFACT_BYTES_MAX:,} bytes together.")
