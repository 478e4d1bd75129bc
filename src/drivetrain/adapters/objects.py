"""Files by path: in a local folder (`FileObjects`), or in an S3-compatible store (`StoreObjects`, extra `s3`).

Both are an `ObjectStore`, and both are what a table's files stand in (`TableFolder`), which the Delta adapter lists and
cleans. Owns how a path is checked: none leaves the root, by `..`, by being absolute, or through a symbolic link. Owns
what a failing store is told as; a store's own words may hold credentials, so they are never shown.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, Protocol

from drivetrain.adapters.mirror import Mirror
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.ports.disk import sync_folder
from drivetrain.ports.tables import ObjectStore

PATH_BYTES_MAX = 900
"""S3 takes keys of 1,024 bytes; what is left is for the lake's own prefix."""
PART_BYTES_MAX = 255
"""What file systems take."""
RETRIES_MAX = 3
"""How often a store that fails is asked again."""
RETRY_S_MAX = 20
"""And for how long, in all."""
CONNECT_S_MAX = 5
REQUEST_S_MAX = 60
"""One request, a large upload's part included."""
FETCHES_MAX = 5
"""How often a file is fetched again that was deleted while it was fetched."""
DELETED_AT_ONCE = 1000
"""What S3 takes in one request."""
HALF_WRITTEN = re.compile(r"\.[0-9a-f]{16}\.new")
"""What a file is called until it is whole; its writer holds a flock on it meanwhile."""
BEGINS_MAX = 5
"""How often a file is begun anew whose folder is taken away as empty at that moment."""

OPTIONS = frozenset(
    {
        "endpoint",
        "region",
        "access_key_id",
        "secret_access_key",
        "session_token",
        "allow_http",
        "virtual_hosted_style_request",
        "skip_signature",
        "unsigned_payload",
    }
)
"""What `[lake.options]` may say. What is not said is taken from AWS's environment variables."""

_TROUBLES = (
    (
        re.compile(r"error sending request|tcp connect error|dns error|operation timed out"),
        "cannot be reached",
        "Check `endpoint` under [lake.options], and the network.",
    ),
    (
        re.compile(r"NoSuchBucket"),
        "has no such bucket",
        "Make the bucket, or correct `url` under [lake]: the lake makes none by itself.",
    ),
    (
        re.compile(
            r"InvalidAccessKey|SignatureDoesNotMatch|AccessDenied|ExpiredToken|InvalidToken|CredentialsNotLoaded"
            r"|401 Unauthorized|403 Forbidden|PermissionDenied|Permission denied|instance-data|169\.254\.169\.254"
        ),
        "refused us",
        "Check `access_key_id`, `secret_access_key` and `region` under [lake.options], or the folder's owner and mode: "
        "we list, read, write and delete there.",
    ),
    (re.compile(r"No space left|File too large"), "is full", "Free space, then do it again."),
    (
        re.compile(r"Not a directory|Is a directory|File exists"),
        "has a file where a folder must be, or a folder where a file must be",
        "Choose another name.",
    ),
    (re.compile(r"Read-only file system"), "is read-only", "Let the lake stand where we may write."),
)
"""What a store's failure says in our libraries' words, what that means, and what to do."""


class Listed(NamedTuple):
    """A file as a listing tells it."""

    path: str
    size_bytes: int
    changed_s: float


class TableFolder(ObjectStore, Protocol):
    """An `ObjectStore` that also lists folders and tells whether a file is still the same one."""

    place: str
    """What errors call it: a folder, or a url without credentials."""

    def folders(self, prefix: str) -> Sequence[str]:
        """Names of the folders right below."""

    def entries(self, prefix: str) -> Iterator[Listed]:
        """Every file below, also those that a killed writer left half written."""

    def stamp(self, path: str) -> tuple[Any, ...] | None:
        """Changes where the file was written anew; None where there is none."""

    def local_copies(self, paths: Sequence[str]) -> Sequence[str]:
        """Local files with the content of files that never change. Raises: FileNotFoundError."""

    def delete_all(self, paths: Sequence[str]) -> None:
        """Each is gone."""

    def drop(self, prefix: str) -> None:
        """Everything below is gone; first `_delta_log`, so that nothing half gone is taken for a table."""

    def forget_copies(self, prefix: str, keep: frozenset[str] | None = None) -> None:
        """Delete local copies of what no longer exists below (or is not in `keep`)."""


class FileObjects:
    """Files in a local folder, each written beside its place, synced, and moved there."""

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.abspath(root))
        self.place = str(self._root)

    def __repr__(self) -> str:
        return f"FileObjects({self.place!r})"

    def put(self, path: str, content: bytes, *, new: bool = False) -> None:
        """See the port."""
        with self._whole(path, new=new) as half:
            half.write(content)

    def put_file(self, path: str, source: Path) -> None:
        """See the port."""
        with self._whole(path, new=False) as half, source.open("rb") as read:
            shutil.copyfileobj(read, half, 1024 * 1024)

    def get(self, path: str) -> bytes | None:
        """See the port."""
        found = self.local(path)
        try:
            return None if found is None else found.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise trouble(error, self.place) from None

    def local(self, path: str) -> Path | None:
        """See the port. The file itself: who changes it changes the store."""
        place = self._at(path)
        return place if place.is_file() else None

    def list(self, prefix: str) -> builtins.list[str]:
        """See the port."""
        names = (one.path for one in self.entries(prefix))
        return sorted(name for name in names if not HALF_WRITTEN.fullmatch(name.rpartition("/")[2]))

    def delete(self, path: str) -> None:
        """See the port. What killed writers left beside it goes too, and folders that this leaves empty."""
        place = self._at(path)
        try:
            place.unlink(missing_ok=True)
            _sweep(place.parent)
            for folder in place.parents:
                if folder == self._root:
                    break
                folder.rmdir()
        except OSError as error:
            # A folder that others write to, or that is gone already, is none of our business.
            if place.exists():
                raise trouble(error, self.place) from None

    def folders(self, prefix: str) -> Sequence[str]:
        """Names of the folders right below."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._below(prefix)) as found:
            return sorted(one.name for one in found if one.is_dir(follow_symlinks=False))
        return []

    def entries(self, prefix: str) -> Iterator[Listed]:
        """Every file below, also those that a killed writer left half written."""
        for folder, _, names in os.walk(self._below(prefix)):
            for name in names:
                whole = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    seen = os.lstat(whole)
                    path = os.path.relpath(whole, self._root).replace(os.sep, "/")
                    yield Listed(path, seen.st_size, seen.st_mtime)

    def stamp(self, path: str) -> tuple[Any, ...] | None:
        """Changes where the file was written anew; None where there is none."""
        try:
            seen = os.stat(os.path.join(self.place, path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return (seen.st_ino, seen.st_mtime_ns, seen.st_size)

    def local_copies(self, paths: Sequence[str]) -> Sequence[str]:
        """The files themselves."""
        return [f"{self.place}/{path}" for path in paths]

    def delete_all(self, paths: Sequence[str]) -> None:
        """Each is gone."""
        for path in paths:
            self.delete(path)

    def drop(self, prefix: str) -> None:
        """Everything below is gone at once for who looks; a crash may leave what a later call takes away."""
        place = self._at(prefix)
        gone = place.with_name(f".dropped-{secrets.token_hex(6)}")
        try:
            with contextlib.suppress(FileNotFoundError):
                place.rename(gone)
            for left in place.parent.glob(".dropped-*"):
                shutil.rmtree(left)
        except OSError as error:
            raise trouble(error, self.place) from None

    def forget_copies(self, prefix: str, keep: frozenset[str] | None = None) -> None:
        """There are none."""

    @contextlib.contextmanager
    def _whole(self, path: str, *, new: bool) -> Iterator[IO[bytes]]:
        """A file to write that becomes `path` when it is whole."""
        place = self._at(path)
        begun: Path | None = None
        try:
            if new and place.exists():
                raise FileExistsError(path)
            with _begun(place.parent) as file:
                begun = Path(file.name)
                yield file
                file.flush()
                os.fsync(file.fileno())
                if new:
                    os.link(begun, place)
                else:
                    begun.replace(place)
            sync_folder(place.parent)
        except OSError as error:
            if new and isinstance(error, FileExistsError):
                raise FileExistsError(path) from None
            raise trouble(error, self.place) from None
        finally:
            if begun is not None:
                begun.unlink(missing_ok=True)

    def _below(self, prefix: str) -> Path:
        return self._at(prefix) if prefix else self._root

    def _at(self, path: str) -> Path:
        place = self._root / checked(path)
        root = os.path.realpath(self._root) + os.sep
        # With what follows the link, should the last part be one.
        if not (os.path.realpath(place) + os.sep).startswith(root):
            raise DrivetrainError(
                f"`{path}` leads out of {self.place} through a symbolic link.",
                do="Remove the link: the lake reads and writes inside its own folder only.",
            )
        return place


class StoreObjects:
    """Files below a url of an S3-compatible store, with local copies in the mirror's folder `mirrored_as`.

    Needs the extra `s3`.
    """

    def __init__(self, url: str, options: Mapping[str, str], mirror: Mirror, mirrored_as: str) -> None:
        self.place = url.rstrip("/")
        self._mirror = mirror
        self._mirrored_as = mirrored_as
        self._store, self._faults = _s3_store(self.place, options)

    def __repr__(self) -> str:
        return f"StoreObjects({self.place!r})"

    def put(self, path: str, content: bytes, *, new: bool = False) -> None:
        """See the port."""
        try:
            self._store.put(checked(path), content, mode="create" if new else "overwrite")
        except self._faults as error:
            if new and type(error).__name__ in ("AlreadyExistsError", "PreconditionError"):
                raise FileExistsError(path) from None
            raise trouble(error, self.place) from None
        self._mirror.forget(self._copy_of(path))

    def put_file(self, path: str, source: Path) -> None:
        """See the port."""
        try:
            with source.open("rb") as file:
                self._store.put(checked(path), file)
        except self._faults as error:
            raise trouble(error, self.place) from None
        self._mirror.forget(self._copy_of(path))

    def get(self, path: str) -> bytes | None:
        """See the port."""
        try:
            return bytes(self._store.get(checked(path)).bytes())
        except self._faults as error:
            if _is_absent(error):
                return None
            raise trouble(error, self.place) from None

    def local(self, path: str) -> Path | None:
        """See the port. The copy is fetched anew where the store's is another one by now."""
        for _ in range(FETCHES_MAX):
            stamp = self.stamp(checked(path))
            if stamp is None:
                return None
            which = "-".join(str(part) for part in stamp)
            with contextlib.suppress(FileNotFoundError):
                return Path(self._mirror.copies([self._copy_of(path)], self._fetch, stamp=which)[0])
        raise DrivetrainError(f"`{path}` at {self.place} is deleted and written again and again.", do="Try again.")

    def list(self, prefix: str) -> builtins.list[str]:
        """See the port."""
        return sorted(one.path for one in self.entries(prefix))

    def delete(self, path: str) -> None:
        """See the port."""
        try:
            self._store.delete(checked(path))
        except self._faults as error:
            if not _is_absent(error):
                raise trouble(error, self.place) from None
        self._mirror.forget(self._copy_of(path))

    def folders(self, prefix: str) -> Sequence[str]:
        """Names of the folders right below."""
        try:
            found = self._store.list_with_delimiter(checked(prefix) if prefix else None)["common_prefixes"]
        except self._faults as error:
            raise trouble(error, self.place) from None
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def entries(self, prefix: str) -> Iterator[Listed]:
        """Every file below; a store shows none that is half written."""
        try:
            for page in self._store.list(checked(prefix) if prefix else None):
                for one in page:
                    changed: datetime = one["last_modified"]
                    yield Listed(one["path"], one["size"], changed.timestamp())
        except self._faults as error:
            raise trouble(error, self.place) from None

    def stamp(self, path: str) -> tuple[Any, ...] | None:
        """Changes where the file was written anew; None where there is none."""
        try:
            seen = self._store.head(path)
        except self._faults as error:
            if _is_absent(error):
                return None
            raise trouble(error, self.place) from None
        return (str(seen["e_tag"]).strip('"'), seen["size"])

    def local_copies(self, paths: Sequence[str]) -> Sequence[str]:
        """Local files with the content of files that never change. Raises: FileNotFoundError."""
        return self._mirror.copies([self._copy_of(path) for path in paths], self._fetch)

    def delete_all(self, paths: Sequence[str]) -> None:
        """Each is gone. A thousand cost one request."""
        try:
            for at in range(0, len(paths), DELETED_AT_ONCE):
                self._store.delete([checked(path) for path in paths[at : at + DELETED_AT_ONCE]])
        except self._faults as error:
            raise trouble(error, self.place) from None
        for path in paths:
            self._mirror.forget(self._copy_of(path))

    def drop(self, prefix: str) -> None:
        """Everything below is gone; first `_delta_log`, so that nothing half gone is taken for a table."""
        for part in (f"{prefix}/_delta_log", prefix):
            self.delete_all([one.path for one in self.entries(part)])
        self.forget_copies(prefix)

    def forget_copies(self, prefix: str, keep: frozenset[str] | None = None) -> None:
        """Delete local copies of what no longer exists below (or is not in `keep`)."""
        there = self.list(prefix) if keep is None else keep
        self._mirror.forget_below(self._copy_of(prefix), frozenset(self._copy_of(path) for path in there))

    def _copy_of(self, path: str) -> str:
        return f"{self._mirrored_as}/{path}"

    def _fetch(self, copy: str, half: Path) -> None:
        path = copy.removeprefix(f"{self._mirrored_as}/")
        try:
            with half.open("wb") as file:
                for chunk in self._store.get(path).stream():
                    file.write(chunk)
        except self._faults as error:
            if _is_absent(error):
                raise FileNotFoundError(path) from None
            raise trouble(error, self.place) from None


def _begun(folder: Path) -> IO[bytes]:
    """A new half-written file in `folder`, ours as long as it is open."""
    for _ in range(BEGINS_MAX):
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            file = (folder / f".{secrets.token_hex(8)}.new").open("xb")
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file.fileno()).st_nlink:
                    return file
            # Who deletes found it before it was locked.
            file.close()
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))


def _sweep(folder: Path) -> None:
    """Delete what killed writers left half written in `folder`."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(folder):
            if HALF_WRITTEN.fullmatch(name):
                with contextlib.suppress(FileNotFoundError, BlockingIOError), (folder / name).open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    (folder / name).unlink()


def checked(path: str) -> str:
    """`path`, which stays below its root. Raises: DrivetrainError."""
    parts = PurePosixPath(path).parts
    plain = "/".join(parts) == path and path.isprintable() and "\\" not in path
    inside = plain and parts and not path.startswith("/") and all(part not in (".", "..") for part in parts)
    short = len(path.encode("utf-8", "replace")) <= PATH_BYTES_MAX
    if not inside or not short or any(len(part.encode("utf-8", "replace")) > PART_BYTES_MAX for part in parts):
        raise DrivetrainError(
            f"{path[:120]!r} is not a path below the lake's root.",
            do=f"Write names with `/` between them, without `..`, at most {PATH_BYTES_MAX} bytes long.",
        )
    return path


def trouble(error: BaseException, place: str) -> DrivetrainError:
    """What a store's failure means, without its words: they may hold credentials, and rows."""
    if isinstance(error, DrivetrainError):
        return error
    said = f"{type(error).__name__} {error}".partition("Debug source:")[0]
    for pattern, what, do in _TROUBLES:
        if pattern.search(said):
            return DrivetrainError(f"The lake at {place} {what}.", do=do)
    number = getattr(error, "errno", None)
    reason = os.strerror(number) if isinstance(number, int) else type(error).__name__.strip("_")
    return DrivetrainError(f"The lake at {place} failed: {reason}.", do="Try again; if it stays, check the store.")


def checked_options(options: Mapping[str, str]) -> dict[str, str]:
    """Options of an S3-compatible store. Raises: DrivetrainError, which never shows a value."""
    for name in options:
        if name not in OPTIONS:
            raise DrivetrainError(
                f"`{name}` under [lake.options] is not an option of an S3-compatible store.",
                do=did_you_mean(name, OPTIONS),
            )
    said = dict(options)
    if said.get("endpoint", "").startswith("http://"):
        said.setdefault("allow_http", "true")
    return said


def _s3_store(url: str, options: Mapping[str, str]) -> tuple[Any, tuple[type[Exception], ...]]:
    """The library's store, and what it raises."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store
    except ModuleNotFoundError:
        raise DrivetrainError(
            f"The lake at {url} needs the library `obstore`, which is not installed.",
            do="Run `pip install 'drivetrain[s3]'`.",
        ) from None
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    said: Any = checked_options(options)
    client: Any = {"timeout": f"{REQUEST_S_MAX}s", "connect_timeout": f"{CONNECT_S_MAX}s"}
    if said.pop("allow_http", "false") == "true":
        client["allow_http"] = True
    try:
        store = S3Store(
            bucket,
            prefix=prefix or None,
            config=said,
            client_options=client,
            retry_config={"max_retries": RETRIES_MAX, "retry_timeout": timedelta(seconds=RETRY_S_MAX)},
        )
    except (BaseError, OSError, ValueError, TypeError) as error:
        raise trouble(error, url) from None
    return store, (BaseError, OSError, ValueError)


def _is_absent(error: BaseException) -> bool:
    """A missing bucket is a mistake; only a missing file is nothing."""
    return isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error)
