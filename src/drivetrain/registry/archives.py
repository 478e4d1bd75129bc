"""Archives of models, unpacked without trust: nothing leaves the folder, and nothing grows beyond its limit.

`.zip`, `.tar`, `.tar.gz` and `.tgz`. Only plain files and folders come out; links, devices, sparse and encrypted
members, paths that lead elsewhere, and names that differ only in capitals are refused. Sizes are checked twice: as
declared before a byte is unpacked, and as they come.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from drivetrain.core.errors import DrivetrainError
from drivetrain.registry.artifacts import ARTIFACT_BYTES_MAX, CHUNK_BYTES, check_path, open_plain

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MEMBERS_MAX = 512
"""Folders and files beside the model's own, such as an MLflow folder's environments."""
DIRECTORY_BYTES_MAX = 1024 * 1024
"""Of a zip file's central directory, which is read as a whole."""
HEADER_BYTES_MAX = 1024 * 1024
"""Of one header of a tar file; a longer name is an attack."""
GZIP_MAGIC = b"\x1f\x8b"
_END, _END64 = b"PK\x05\x06", b"PK\x06\x07"
_END_BYTES, _COMMENT_BYTES_MAX = 22, 65_535
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def is_archive(path: Path) -> bool:
    """By its name."""
    return path.name.lower().endswith(SUFFIXES)


def unpack(archive: Path, to: Path) -> None:
    """Unpacks into an empty folder, which the caller removes where this fails. Raises: DrivetrainError."""
    try:
        with open_plain(archive) as file:
            if file.read(4).startswith(b"PK"):
                _unpack_zip(file, archive.name, to)
            else:
                _unpack_tar(file, archive.name, to)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, struct.error) as error:
        raise _refused(archive.name, f"it is damaged: {error}") from None
    except (NotImplementedError, RecursionError, ValueError, OverflowError, UnicodeError) as error:
        raise _refused(archive.name, f"it cannot be read: {error}") from None
    except OSError as error:
        raise DrivetrainError(f"{archive} cannot be unpacked: {error.strerror or error}.") from None


class _Writer:
    """Members into one folder, counted."""

    def __init__(self, archive: str, to: Path) -> None:
        self._archive = archive
        self._to = to
        self._seen: set[str] = set()
        self._left = ARTIFACT_BYTES_MAX

    def check(self, path: str, size: int) -> None:
        """Before anything is written. Raises: DrivetrainError."""
        try:
            check_path(path)
        except DrivetrainError as error:
            raise _refused(self._archive, error.what.removesuffix("."), error.do) from None
        folded = path.casefold()
        if folded in self._seen:
            raise _refused(self._archive, f"`{path}` is in it twice")
        self._seen.add(folded)
        self._left -= size
        if size < 0 or self._left < 0:
            raise _refused(self._archive, f"its files say to have more than {ARTIFACT_BYTES_MAX:,} bytes")

    def write(self, path: str, size: int, content: BinaryIO) -> None:
        """Exactly the bytes that were declared. Raises: DrivetrainError, OSError."""
        target = self._to / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except (FileExistsError, NotADirectoryError):
            raise _refused(self._archive, f"`{path}` is a file and a folder in it") from None
        with os.fdopen(fd, "wb") as written:
            left = size
            while chunk := content.read(CHUNK_BYTES):
                left -= len(chunk)
                if left < 0:
                    raise _refused(self._archive, f"`{path}` has more bytes than it says, {size:,}")
                written.write(chunk)
            if left:
                raise _refused(self._archive, f"`{path}` has fewer bytes than it says, {size:,}")


def _unpack_zip(file: BinaryIO, name: str, to: Path) -> None:
    _check_directory(file, name)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) > MEMBERS_MAX:
            raise _too_many(name)
        writer = _Writer(name, to)
        files = []
        for member in members:
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(name, f"{member.filename[:200]!r} is a link or a device")
            if member.flag_bits & 0x1:
                raise _refused(name, f"{member.filename[:200]!r} is encrypted")
            if member.compress_type not in _METHODS:
                raise _refused(name, f"{member.filename[:200]!r} is packed in a way other than deflate")
            writer.check(member.filename.removesuffix("/"), 0 if member.is_dir() else member.file_size)
            if not member.is_dir():
                files.append(member)
        for member in files:
            with archive.open(member) as content:
                writer.write(member.filename, member.file_size, _as_binary(content))


def _check_directory(file: BinaryIO, name: str) -> None:
    """How large the central directory is, before the library reads it as a whole."""
    size = file.seek(0, os.SEEK_END)
    tail_bytes = min(size, _END_BYTES + _COMMENT_BYTES_MAX + 20)
    file.seek(size - tail_bytes)
    tail = file.read(tail_bytes)
    file.seek(0)
    place = tail.rfind(_END)
    if place < 0 or len(tail) - place < _END_BYTES:
        raise _refused(name, "it is no whole zip file")
    entries, directory_bytes = struct.unpack_from("<HL", tail, place + 10)
    if _END64 in tail[max(0, place - 20) : place] or entries == 0xFFFF or directory_bytes == 0xFFFFFFFF:
        raise _refused(name, "it is a zip64 file, which only archives beyond 4 GiB need")
    if entries > MEMBERS_MAX:
        raise _too_many(name)
    if directory_bytes > DIRECTORY_BYTES_MAX:
        raise _refused(name, f"its directory has {directory_bytes:,} bytes; at most {DIRECTORY_BYTES_MAX:,} are read")


def _unpack_tar(file: BinaryIO, name: str, to: Path) -> None:
    file.seek(0)
    packed = file.read(2) == GZIP_MAGIC
    file.seek(0)
    metered = _Metered(gzip.GzipFile(fileobj=file) if packed else file, name)
    with closing(metered), tarfile.open(fileobj=metered, mode="r:") as archive:
        # Members first, then contents: nothing is written while a later member may still refuse the whole.
        writer = _Writer(name, to)
        files = []
        for count, member in enumerate(_members(archive), 1):
            if count > MEMBERS_MAX:
                raise _too_many(name)
            plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
            if not plain and not member.isdir():
                raise _refused(name, f"{member.name[:200]!r} is a link, a device or sparse")
            path = member.name.removeprefix("./").removesuffix("/")
            if member.isdir() and path in ("", "."):
                continue
            writer.check(path, member.size if plain else 0)
            if plain:
                files.append((path, member))
        for path, member in files:
            content = archive.extractfile(member)
            assert content is not None, "a plain file has a content"
            writer.write(path, member.size, _as_binary(content))


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        yield member


class _Metered(io.RawIOBase):
    """A file that nobody reads too much of at once, nor too far: headers that lie would fill the memory."""

    def __init__(self, file: BinaryIO | gzip.GzipFile, name: str) -> None:
        super().__init__()
        self._file = file
        self._name = name
        self._most = ARTIFACT_BYTES_MAX + MEMBERS_MAX * (HEADER_BYTES_MAX + 1_024)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= HEADER_BYTES_MAX:
            raise _refused(self._name, f"a header in it says to have {size:,} bytes")
        self._check(self._file.tell() + size)
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        assert whence == os.SEEK_SET, "tarfile seeks from the start"
        self._check(offset)
        return self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def _check(self, place: int) -> None:
        if place > self._most:
            raise _refused(self._name, f"it unpacks to more than {ARTIFACT_BYTES_MAX:,} bytes")


class _Reading(io.RawIOBase):
    """What a library gives as a stream, as a plain file."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        super().__init__()
        self._read = read

    def read(self, size: int = -1) -> bytes:
        return self._read(size)


def _as_binary(content: object) -> BinaryIO:
    return _Reading(content.read)  # type: ignore[attr-defined,return-value]


def _too_many(name: str) -> DrivetrainError:
    return _refused(name, f"it has more than {MEMBERS_MAX} members")


def _refused(name: str, why: str, do: str = "") -> DrivetrainError:
    return DrivetrainError(
        f"The archive {name[:200]!r} is not unpacked: {why}.",
        do=do or "Pack the plain files of one model, and nothing else.",
    )
