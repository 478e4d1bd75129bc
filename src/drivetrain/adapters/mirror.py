"""Local copies of a remote store's files, bounded in bytes: what was not read for longest goes first.

Owns one folder. Several processes use it at once: a copy is moved into its place when it is whole, and its time of
change tells when it was last read. A copy that was read in the last `SPARED_S` seconds is never deleted to make room,
since a query may be about to open it; what then does not fit is an error, not a broken query.

The copies hold what the store holds, in plain: what is deleted there is deleted here by `forget` and `forget_below`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from drivetrain.core.errors import DrivetrainError

MIRROR_BYTES_MAX = 10 * 1024**3
"""Disk that copies may take: some hundred million Calls without their payload."""
SPARED_S = 60.0
"""How long a copy that was asked for is safe: longer than a query takes to open its files."""
TOUCH_S = 5.0
"""How exactly the time of the last read is kept; each touch costs a system call."""
SEEN_MAX = 100_000
"""Copies whose last touch is remembered."""
FETCHES_AT_ONCE = 8
"""Downloads beside each other: most of one's time is waiting."""
ROOM = 0.9
"""What is left of the bound after making room, so that it is not made for every file anew."""


class Mirror:
    """Copies below `folder`, at most `bytes_max`."""

    def __init__(
        self, folder: Path, *, bytes_max: int = MIRROR_BYTES_MAX, now_s: Callable[[], float] = time.time
    ) -> None:
        self._folder = Path(os.path.abspath(folder))
        self._bytes_max = bytes_max
        self._now_s = now_s
        self._lock = threading.Lock()
        self._seen: dict[str, float] = {}
        self._bytes = -1

    def __repr__(self) -> str:
        return f"Mirror({str(self._folder)!r})"

    def copies(self, paths: list[str], fetch: Callable[[str, Path], None], *, stamp: str = "") -> list[str]:
        """Local files for `paths`, fetched where they are not there.

        fetch: writes the content of a path to a file. stamp: which of a file's contents is meant, where it changes.
        Raises: DrivetrainError where they do not fit; what `fetch` raises.
        """
        with self._lock:
            places = [self._at(path, stamp) for path in paths]
            missing = [(path, place) for path, place in zip(paths, places, strict=True) if not self._touch(place)]
            for path, _ in missing if stamp else ():
                self._delete(path)
            for at in range(0, len(missing), FETCHES_AT_ONCE):
                self._add(missing[at : at + FETCHES_AT_ONCE], fetch)
            return places

    def forget(self, path: str) -> None:
        """Delete the copies of one file."""
        with self._lock:
            self._delete(path)

    def forget_below(self, prefix: str, keep: frozenset[str]) -> None:
        """Delete the copies of files below `prefix` that are not in `keep`."""
        kept = {self._at(path, "") for path in keep}
        kept_of_stamped = {os.path.dirname(self._at(path, "x")) for path in keep}
        with self._lock:
            for copy in list(self._all(prefix)):
                if copy.place not in kept and os.path.dirname(copy.place) not in kept_of_stamped:
                    self._unlink(copy.place)

    def _at(self, path: str, stamp: str) -> str:
        """A stamped file's copies stand in a folder of their own, below a name that no store's file has."""
        if not stamp:
            return f"{self._folder}/{path}"
        folder, _, name = path.rpartition("/")
        version = hashlib.blake2b(stamp.encode(), digest_size=12).hexdigest()
        return f"{self._folder}/{folder}{'/' if folder else ''}.of-{name}/{version}{os.path.splitext(name)[1]}"

    def _touch(self, place: str) -> bool:
        now_s = self._now_s()
        if now_s - self._seen.get(place, -TOUCH_S) < TOUCH_S:
            return True
        try:
            os.utime(place, (now_s, now_s))
        except FileNotFoundError:
            self._seen.pop(place, None)
            return False
        if len(self._seen) >= SEEN_MAX:
            self._seen.clear()
        self._seen[place] = now_s
        return True

    def _add(self, wanted: list[tuple[str, str]], fetch: Callable[[str, Path], None]) -> None:
        """Fetch a few (path, place) at once, then put each in its place."""

        def fetched(one: tuple[str, str]) -> Path:
            half = Path(os.path.dirname(one[1]), f".half-{secrets.token_hex(8)}")
            halves.append(half)
            half.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fetch(one[0], half)
            return half

        halves: list[Path] = []
        try:
            with ThreadPoolExecutor(len(wanted)) as pool:
                for (_, place), half in zip(wanted, list(pool.map(fetched, wanted)), strict=True):
                    size = half.stat().st_size
                    self._make_room(size)
                    half.replace(place)
                    self._bytes += size
                    self._touch(place)
        except FileNotFoundError:
            # The store's file is gone, or who deletes copies took the half one: the caller asks anew for both.
            raise
        except OSError as error:
            raise DrivetrainError(
                f"A copy of a lake's file cannot be written to {self._folder}: {error.strerror}.",
                do="Free space there, or let the mirror stand elsewhere.",
            ) from None
        finally:
            for half in halves:
                half.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        if self._bytes < 0:
            self._bytes = sum(copy.size_bytes for copy in self._all(""))
        if self._bytes + size <= self._bytes_max:
            return
        # Other processes add and delete too: count anew, and delete what was not read for longest.
        copies = sorted(self._all(""), key=lambda copy: copy.read_s)
        self._bytes = sum(copy.size_bytes for copy in copies)
        spared_s = self._now_s() - SPARED_S
        for copy in copies:
            if self._bytes + size <= self._bytes_max * ROOM or copy.read_s > spared_s:
                break
            self._unlink(copy.place)
        if self._bytes + size > self._bytes_max:
            raise DrivetrainError(
                f"Copies of the lake's files need more than the {self._bytes_max} bytes that {self._folder} may take.",
                do="Read fewer days at once, wait a minute until others' queries have ended, or allow the mirror more.",
            )

    def _all(self, prefix: str) -> Iterator[_Copy]:
        for folder, _, names in os.walk(f"{self._folder}/{prefix}" if prefix else self._folder):
            for name in names:
                place = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    seen = os.stat(place)
                    yield _Copy(place, seen.st_size, seen.st_mtime)

    def _delete(self, path: str) -> None:
        self._unlink(self._at(path, ""))
        stamped = os.path.dirname(self._at(path, "x"))
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(stamped):
                self._unlink(f"{stamped}/{name}")

    def _unlink(self, place: str) -> None:
        self._seen.pop(place, None)
        with contextlib.suppress(FileNotFoundError):
            size = os.stat(place).st_size
            os.unlink(place)
            self._bytes -= size


class _Copy(NamedTuple):
    place: str
    size_bytes: int
    read_s: float
