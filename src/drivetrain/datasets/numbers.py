"""Where Datasets lie in the object store, and how a number comes to be: its manifest decides, and is written last.

    datasets/NAME/N/manifest.json               DatasetV1
    datasets/NAME/N/rows-TOKEN.parquet          the rows
    datasets/NAME/N/quarantine-TOKEN.parquet    what was left out
A file that no manifest names is of no Dataset: its creator was killed, or lost the number to another. A token begins
with when it was begun (8 hex digits, seconds), so that such a file is known as left when it is older than any creator
may take, whatever store it is in.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from drivetrain.core.datasets import DatasetV1, FileV1, Reference
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.times import NS_PER_S
from drivetrain.ports.tables import ObjectStore

FOLDER = "datasets"
WRITE_S_MAX = 3_000
"""How long a creator may take to write its files: 16 GB at 6 MB a second; later it writes no manifest."""
LEFT_S = 3_600
"""A file without a manifest that is older was left; the difference is for clocks that differ."""
TRIES_MAX = 100
"""Creators that may take a number before us, one after the other."""
CHUNK_BYTES = 1024 * 1024
RESTORE = "Restore it from your backup."
_MANIFEST = re.compile(r"datasets/([a-z][a-z0-9_-]{0,63})/([1-9][0-9]{0,8})/manifest\.json")
_BEGUN = re.compile(r"(datasets/([a-z][a-z0-9_-]{0,63})/[1-9][0-9]{0,8})/(?:rows|quarantine)-([0-9a-f]+)\.parquet")
_STAMPED = 24
"""Hex digits of a creator's token. Erasure's are shorter, and it sweeps by itself."""
_DECODER: msgspec.json.Decoder[DatasetV1] = msgspec.json.Decoder(DatasetV1)


class Shelf:
    """Every number of every Dataset in an object store."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def numbers(self, name: str = "") -> dict[str, list[int]]:
        """Name -> its numbers, rising; of one Dataset or of all."""
        found: dict[str, list[int]] = {}
        for path in self._objects.list(f"{FOLDER}/{name}" if name else FOLDER):
            manifest = _MANIFEST.fullmatch(path)
            if manifest is not None and name in ("", manifest[1]):
                found.setdefault(manifest[1], []).append(int(manifest[2]))
        return {one: sorted(numbers) for one, numbers in sorted(found.items())}

    def read(self, reference: Reference) -> DatasetV1:
        """Its manifest. Raises: DrivetrainError where there is none, or it cannot be read."""
        numbers = self.numbers(reference.name).get(reference.name, [])
        if not numbers:
            known = self.numbers()
            raise DrivetrainError(
                f"There is no Dataset `{reference.name}`.",
                looked=[FOLDER],
                do=did_you_mean(reference.name, known) if known else "`drivetrain dataset create` makes one.",
            )
        number = reference.number or numbers[-1]
        if number not in numbers:
            raise DrivetrainError(
                f"There is no Dataset `{reference}`.", do=f"Its numbers: {', '.join(map(str, numbers[-20:]))}."
            )
        path = _manifest(reference.name, number)
        raw = self._objects.get(path)
        try:
            found = _DECODER.decode(raw or b"")
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DrivetrainError(f"The manifest {path} cannot be read: {error}.", do=RESTORE) from None
        if (found.name, found.number) != (reference.name, number):
            raise DrivetrainError(f"The manifest {path} is that of `{found.name}@{found.number}`.", do=RESTORE)
        return found

    def local(self, file: FileV1) -> Path:
        """A local copy. Raises: DrivetrainError where there is none."""
        found = self._objects.local(file.path)
        if found is None:
            raise DrivetrainError(f"The file {file.path} is missing.", do=RESTORE)
        return found

    def publish(
        self, made: DatasetV1, files: Mapping[str, Path], token: str, now_ns: Callable[[], int] = time.time_ns
    ) -> DatasetV1:
        """The next free number with these files (`rows`, `quarantine`); whole afterwards, or nothing is left of it.

        token: 16 hex digits that nobody else has. Raises: DrivetrainError where the store cannot take it.
        """
        newest = self.numbers(made.name).get(made.name, [0])[-1]
        # Nobody's: a store takes along what was left half written beside it, which no listing shows.
        self._remove([f"{FOLDER}/{made.name}/{newest + 1}/rows-0.parquet"])
        for number in range(newest + 1, newest + 1 + TRIES_MAX):
            begun_s = now_ns() // NS_PER_S
            stored = {
                kind: file_of(f"{FOLDER}/{made.name}/{number}/{kind}-{begun_s:08x}{token}.parquet", path)
                for kind, path in files.items()
            }
            quarantine = made.quarantine
            if quarantine is not None:
                quarantine = msgspec.structs.replace(quarantine, file=stored["quarantine"])
            whole = msgspec.structs.replace(made, number=number, files=(stored["rows"],), quarantine=quarantine)
            with self._all_or_nothing([one.path for one in stored.values()]):
                for kind, path in files.items():
                    self._objects.put_file(stored[kind].path, path)
                if now_ns() // NS_PER_S - begun_s > WRITE_S_MAX:
                    raise DrivetrainError(
                        f"The files took longer to write than the {WRITE_S_MAX:,} s that they may.",
                        do="Nothing of it is left. Make the Dataset from fewer rows, or look at the store.",
                    )
                content = msgspec.json.format(msgspec.json.encode(whole), indent=1)
                try:
                    self._objects.put(_manifest(made.name, number), content, new=True)
                except FileExistsError:
                    self._remove([one.path for one in stored.values()])
                    continue
            return whole
        raise DrivetrainError(
            f"{TRIES_MAX} others took a number of Dataset `{made.name}` before this one.",
            do="Try again when they have ended.",
        )

    def withdraw(self, made: DatasetV1) -> None:
        """Take back a number that nobody was told of."""
        self._remove([_manifest(made.name, made.number), *(one.path for one in files_of(made))])

    def sweep(self, now_ns: int, name: str = "") -> int:
        """Delete what killed creators left of one Dataset, or of all; how many files.

        Costs a listing, and reads a manifest only where files of several creators lie side by side.
        """
        listed = self._objects.list(f"{FOLDER}/{name}" if name else FOLDER)
        manifests = {path.rpartition("/")[0] for path in listed if _MANIFEST.fullmatch(path)}
        begun: dict[str, dict[str, str]] = {}
        for path in listed:
            found = _BEGUN.fullmatch(path)
            if found is not None and name in ("", found[2]):
                begun.setdefault(found[1], {})[path] = found[3]
        swept = 0
        for folder, tokens in begun.items():
            named: frozenset[str] = frozenset()
            if folder in manifests:
                if len(set(tokens.values())) == 1:
                    continue
                try:
                    _, of, number = folder.split("/")
                    named = frozenset(one.path for one in files_of(self.read(Reference(of, int(number)))))
                except DrivetrainError:
                    continue  # which of them are its files is not known
            left = [
                path
                for path, token in tokens.items()
                if path not in named and len(token) == _STAMPED and _is_left(token, now_ns)
            ]
            self._remove(left)
            swept += len(left)
        return swept

    @contextlib.contextmanager
    def _all_or_nothing(self, paths: Sequence[str]) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._remove(paths)
            raise DrivetrainError(
                f"The Dataset cannot be written: {error.strerror or error}.",
                do="Nothing of it is left. Make room, or look at the store, and make it again.",
            ) from error
        except BaseException:
            self._remove(paths)
            raise

    def _remove(self, paths: Sequence[str]) -> None:
        for path in paths:
            with contextlib.suppress(OSError, DrivetrainError):  # what cannot be removed is of no Dataset anyway
                self._objects.delete(path)


def sweep_strays(objects: ObjectStore, now_ns: int) -> int:
    """Delete what killed creators left of any Dataset; how many files. Harmless at any time."""
    return Shelf(objects).sweep(now_ns)


def files_of(dataset: DatasetV1) -> list[FileV1]:
    """Every file that a manifest names."""
    return [*dataset.files, *([dataset.quarantine.file] if dataset.quarantine is not None else [])]


def parquet_paths(objects: ObjectStore) -> dict[str, list[Path]]:
    """`golden` (the newest) and `golden@1`, `golden@2` ... -> local Parquet files; without what cannot be read.

    One damaged number keeps nobody from the others; `verify` tells what is wrong with it.
    """
    shelf = Shelf(objects)
    found: dict[str, list[Path]] = {}
    for name, numbers in shelf.numbers().items():
        for number in numbers:
            with contextlib.suppress(DrivetrainError):
                found[f"{name}@{number}"] = [shelf.local(one) for one in shelf.read(Reference(name, number)).files]
        if f"{name}@{numbers[-1]}" in found:
            found[name] = found[f"{name}@{numbers[-1]}"]
    return found


def file_of(path: str, local: Path) -> FileV1:
    """What a manifest says of a local file."""
    return FileV1(path=path, bytes=local.stat().st_size, sha256=file_hash(local))


def file_hash(local: Path) -> str:
    """SHA-256, 64 hex digits."""
    digest = hashlib.sha256()
    with local.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _is_left(token: str, now_ns: int) -> bool:
    return now_ns // NS_PER_S - int(token[:8], 16) > LEFT_S


def _manifest(name: str, number: int) -> str:
    return f"{FOLDER}/{name}/{number}/manifest.json"
