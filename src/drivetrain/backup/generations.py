"""A backup's folder: contents by their hash, and one manifest per generation that says what they are.

    drivetrain-backup.json      what this folder is; written once
    objects/ab/ab34...          a content, under its SHA-256; never changed
    generations/N/manifest.json GenerationV1; written last, so that a generation is whole or there is none
    .lock                       held by whoever writes here

A content that several generations have is there once. Owns how files come to be there: under a temporary name, synced,
then renamed. It does not know what a file means. Called by the backup (writes) and the restore (reads).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.disk import sync_folder, write_whole
from drivetrain.ports.locks import locked

MARKER = "drivetrain-backup.json"
FORMAT = 1
"""Of the folder. A higher one was made by a newer version."""
CHUNK_BYTES = 1024 * 1024
SPARE_BYTES = 64 * 1024 * 1024
"""Left free beside what is about to be copied: manifests, and what grows meanwhile."""
MANIFEST = "manifest.json"


class FileV1(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A file of a generation."""

    path: str
    """Where it belongs: `data/calls/...`, `snapshots/...`, `lake/tables/...`, `lake/files/...`, `keys/...`."""
    size: int
    sha256: str
    immutable: bool = False
    """A file of this path never has another content of the same size: it need not be read again to know that."""


class TableV1(msgspec.Struct, frozen=True, kw_only=True):
    """A table of the lake."""

    name: str
    version: int
    roll: int = 0
    """The last roll of this ledger that this version has; 0: none."""
    rows: int = 0
    copied: bool = True
    """False: it is only noted here, and stands where the lake is."""


class LakeV1(msgspec.Struct, frozen=True, kw_only=True):
    """The lake, as it was at the generation's moment."""

    url: str = ""
    """As `[lake]` has it; empty: in the data folder."""
    copied: bool = True
    tables: tuple[TableV1, ...] = ()


class GenerationV1(msgspec.Struct, frozen=True, kw_only=True, tag="generation.1"):
    """One backup: what was copied, and of which moment."""

    number: int
    version: str
    """Of the package that made it."""
    layout: int
    """Of the data folder."""
    began_ns: int
    moment_ns: int
    """The segments end here, UTC: every Call that had ended before is in it, wherever else it stands."""
    ended_ns: int
    project: str = ""
    """Hash of the project's own files, which are not part of a backup; empty where they could not be read."""
    root: str = ""
    ledger: str = ""
    """The id under which records were rolled; empty: none ever were."""
    roll: int = 0
    """The last plan that was copied."""
    boot: str = ""
    """The machine's start during which it was made."""
    control: int = -1
    """Records of the control log; -1: there was none."""
    head: str = ""
    """Hash of the last of them."""
    keys: dict[str, str] = {}
    """Key file -> a hash that tells whether another file is the same key, and nothing about it."""
    lake: LakeV1 = LakeV1()
    files: tuple[FileV1, ...] = ()

    @property
    def bytes(self) -> int:
        """Of all its files."""
        return sum(one.size for one in self.files)


class _Marker(msgspec.Struct, frozen=True):
    what: str
    format: int


class ContentChanged(DrivetrainError):
    """A file is not what it was said to be."""


class Generations:
    """The generations in one folder. Raises (everywhere): DrivetrainError, also for a disk that is full."""

    def __init__(self, folder: Path, *, kind: str = "data") -> None:
        self.folder = folder
        self._kind = kind
        self._made: set[Path] = set()
        """Folders in which something was renamed and that were not synced yet."""
        self._written = 0

    @property
    def written_bytes(self) -> int:
        """How much was copied by this object: contents that were there already cost nothing."""
        return self._written

    # Reading.

    def numbers(self) -> list[int]:
        """Of whole generations, rising."""
        self._check()
        with contextlib.suppress(FileNotFoundError):
            return sorted(
                int(one.name)
                for one in (self.folder / "generations").iterdir()
                if one.name.isdigit() and (one / MANIFEST).is_file()
            )
        return []

    def read(self, number: int | None = None) -> GenerationV1:
        """One of them; None: the newest."""
        found = self.numbers()
        if not found:
            raise DrivetrainError(
                f"There is no whole backup in {self.folder}.",
                looked=[str(self.folder / "generations")],
                do="A backup that was cut off leaves no manifest, and is none. Run `drivetrain backup` again.",
            )
        if number is None:
            number = found[-1]
        if number not in found:
            raise DrivetrainError(
                f"{self.folder} has no generation {number}.", do=f"It has: {', '.join(map(str, found[-20:]))}."
            )
        path = self._manifest(number)
        try:
            generation = msgspec.json.decode(path.read_bytes(), type=GenerationV1)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DrivetrainError(f"{path} cannot be read: {error}.", do="Choose another generation.") from None
        for one in generation.files:
            parts = one.path.split("/")
            if len(one.sha256) != 64 or not one.sha256.isalnum() or any(part in ("", ".", "..") for part in parts):
                raise DrivetrainError(f"{path} names a file that cannot be: {one.path[:200]!r}.")
        return generation

    def content(self, file: FileV1) -> Path:
        """Where its content is."""
        return self.folder / "objects" / file.sha256[:2] / file.sha256

    def verify(self, file: FileV1) -> None:
        """Read it, and compare. Raises: ContentChanged."""
        try:
            with self.content(file).open("rb") as source:
                found = hashlib.file_digest(source, "sha256").hexdigest()
                size = source.tell()
        except FileNotFoundError:
            raise ContentChanged(f"`{file.path}` is missing in the backup {self.folder}.") from None
        except OSError as error:
            raise ContentChanged(f"`{file.path}` cannot be read from {self.folder}: {error.strerror}.") from None
        if (size, found) != (file.size, file.sha256):
            raise ContentChanged(f"`{file.path}` in the backup {self.folder} was changed: its hash does not fit.")

    # Writing.

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Make the folder where there is none, and hold it; what a killed writer left goes."""
        with self._told():
            fresh = not self.folder.exists() or not any(self.folder.iterdir())
            if not fresh:
                self._check()
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.ExitStack() as stack:
            with self._told():
                is_held = stack.enter_context(locked(self.folder / ".lock"))
            if not is_held:
                raise DrivetrainError(
                    f"Another backup to {self.folder} is running.", do="Wait for it to end, or choose another folder."
                )
            with self._told():
                if not (self.folder / MARKER).exists():
                    write_whole(self.folder / MARKER, msgspec.json.encode(_Marker(f"drivetrain {self._kind}", FORMAT)))
                for pattern in (".*.new", "objects/.*.new", "generations/*/.*.new"):
                    for path in self.folder.glob(pattern):
                        path.unlink(missing_ok=True)
            yield

    def need_space(self, size: int) -> None:
        """Raises: DrivetrainError where so much does not fit beside what is there."""
        free = shutil.disk_usage(self.folder).free
        if free < size + SPARE_BYTES:
            raise DrivetrainError(
                f"{self.folder} has {free:,} bytes free; this backup may take {size + SPARE_BYTES:,}.",
                do="Free space there, or choose another disk. Nothing was written.",
            )

    def known(self, path: str, size: int, before: dict[str, FileV1]) -> FileV1 | None:
        """The file as an earlier generation has it, where that cannot be another one."""
        found = before.get(path)
        if found is None or not found.immutable or found.size != size or not self._has(found.sha256, size):
            return None
        return found

    def add(self, path: str, source: BinaryIO, size: int | None = None, *, immutable: bool = False) -> FileV1:
        """Copy the first `size` bytes of an open file (None: all). Raises: EOFError where it has fewer."""
        with self._told():
            half = self._half()
            try:
                digest, left = hashlib.sha256(), size
                with half.open("xb") as target:
                    while left is None or left > 0:
                        chunk = source.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
                        if not chunk:
                            break
                        digest.update(chunk)
                        target.write(chunk)
                        left = None if left is None else left - len(chunk)
                    written = target.tell()
                    if left:
                        raise EOFError(f"`{path}` has {written} bytes, {size} were expected")
                    sha256 = digest.hexdigest()
                    if not self._has(sha256, written):
                        target.flush()
                        os.fsync(target.fileno())
                        self._keep(half, sha256)
                        self._written += written
            finally:
                half.unlink(missing_ok=True)
        return FileV1(path=path, size=written, sha256=sha256, immutable=immutable)

    def add_bytes(self, path: str, content: bytes, *, immutable: bool = False) -> FileV1:
        """A content at hand."""
        sha256 = hashlib.sha256(content).hexdigest()
        with self._told():
            if not self._has(sha256, len(content)):
                half = self._half()
                try:
                    with half.open("xb") as target:
                        target.write(content)
                        target.flush()
                        os.fsync(target.fileno())
                    self._keep(half, sha256)
                    self._written += len(content)
                finally:
                    half.unlink(missing_ok=True)
        return FileV1(path=path, size=len(content), sha256=sha256, immutable=immutable)

    def add_made(self, path: str, make: Callable[[Path], None]) -> FileV1:
        """What `make` writes to a path that it is given, of a file that is not there yet."""
        with self._told():
            half = self._half()
            try:
                make(half)
                with half.open("rb") as source:
                    return self.add(path, source)
            finally:
                half.unlink(missing_ok=True)

    def publish(self, generation: GenerationV1) -> None:
        """From now on it is there."""
        with self._told():
            for folder in sorted(self._made, key=lambda one: len(one.parts), reverse=True):
                sync_folder(folder)
            self._made.clear()
            path = self._manifest(generation.number)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, msgspec.json.encode(generation))
            for folder in (path.parent.parent, self.folder):
                sync_folder(folder)

    def delete(self, numbers: list[int]) -> int:
        """These generations, and the contents that no other has, are gone; how many contents. Call it while writing."""
        with self._told():
            for number in numbers:
                self._manifest(number).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    self._manifest(number).parent.rmdir()
            needed = {one.sha256 for number in self.numbers() for one in self.read(number).files}
            gone = 0
            for path in self.folder.glob("objects/*/*"):
                if path.name not in needed:
                    path.unlink(missing_ok=True)
                    gone += 1
            return gone

    def _has(self, sha256: str, size: int) -> bool:
        try:
            return (self.folder / "objects" / sha256[:2] / sha256).stat().st_size == size
        except FileNotFoundError:
            return False

    def _half(self) -> Path:
        folder = self.folder / "objects"
        folder.mkdir(exist_ok=True)
        return folder / f".{secrets.token_hex(8)}.new"

    def _keep(self, half: Path, sha256: str) -> None:
        place = self.folder / "objects" / sha256[:2] / sha256
        if not place.parent.exists():
            place.parent.mkdir()
            self._made |= {place.parent.parent, self.folder}
        half.replace(place)
        self._made.add(place.parent)

    def _manifest(self, number: int) -> Path:
        return self.folder / "generations" / str(number) / MANIFEST

    def _check(self) -> None:
        """Raises: DrivetrainError where this is no folder of backups, of another sort, or of a newer version."""
        try:
            marker = msgspec.json.decode((self.folder / MARKER).read_bytes(), type=_Marker)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            if self.folder.is_dir() and all(one.name == ".lock" for one in self.folder.iterdir()):
                return
            if self._kind == "keys":
                raise DrivetrainError(
                    f"{self.folder} is no folder of copied keys: it has no {MARKER}.",
                    do="Name the folder that `drivetrain backup --with-keys` wrote to (for a first copy an empty one), "
                    "not a project's own keys folder.",
                ) from None
            raise DrivetrainError(
                f"{self.folder} is no folder of backups: it has no {MARKER}.",
                do="Name an empty folder, or one that `drivetrain backup` made.",
            ) from None
        if marker.what != f"drivetrain {self._kind}":
            raise DrivetrainError(
                f"{self.folder} holds a backup of another sort: {marker.what}.",
                do="Keys are copied to one folder and restored from it, data to and from another.",
            )
        if marker.format > FORMAT:
            raise DrivetrainError(
                f"{self.folder} was made by a newer version of Drivetrain.", do="Use that version, or upgrade this one."
            )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.filename is not None and not str(error.filename).startswith(str(self.folder)):
                raise  # of what is copied, not of where to
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise DrivetrainError(
                f"The backup cannot be written to {self.folder}: {error.strerror or error}.",
                do="Free space there and run it again: what was copied is not copied twice."
                if full
                else "Look at the folder's owner and mode, and run it again.",
            ) from error
