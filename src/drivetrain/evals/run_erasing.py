"""Erasing in what runs of evals keep: nothing in it can be matched with a person's id afterwards.

Owns which rows are theirs, and how files are written anew. Answers and notes went with the person's keys. Here go their
entries in journals, and their rows' notes; the group of their rows becomes a token, the same in all files, so that runs
still compare and intervals still count persons. Notes in plain, which earlier versions kept and of which nobody can
tell whom they quote, go from every row. Each file may be cut off and done again. Called by erasure.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import msgspec

from drivetrain.core.codec import MSGPACK
from drivetrain.core.errors import DrivetrainError
from drivetrain.evals.cases import group_of
from drivetrain.evals.rows import RowV1, Run
from drivetrain.evals.run_files import FOLDER, AnsweredV1, Entry, JudgedV1, frame_of, frames, row_files
from drivetrain.evals.run_texts import Digest, group_under, without_notes
from drivetrain.ports.disk import HALF_WRITTEN, write_whole
from drivetrain.ports.locks import locked

GONE = "erased-"
"""Begins a group of which nobody can tell any more whose it was."""
LOOK_S = 0.1
_RUN: msgspec.json.Decoder[Run] = msgspec.json.Decoder(Run)


class RunErasing:
    """What is to be erased of one subject in the runs of evals of one data folder. Reads each run, as its parts do.

    call_ids: of their Calls, those of runs included. datasets: names of those whose rows may have been grouped by
    person. digest: the vault's. pseudonym: makes tokens of groups.
    """

    def __init__(
        self,
        data_folder: Path,
        subject: str,
        *,
        call_ids: Collection[str],
        datasets: Collection[str],
        digest: Digest,
        pseudonym: Callable[[str], str],
    ) -> None:
        self._folder = data_folder / FOLDER
        self._call_ids = frozenset(call_ids)
        named = {run.dataset.partition("@")[0] for run in self._runs()}
        plain = {group_of(name, subject) for name in named.union(datasets)}
        self._groups = plain | {group_under(digest, one) for one in plain}
        """Theirs by their id alone, also where their Calls are gone; rows of earlier versions have the plain ones."""
        self._pseudonym = pseudonym

    def count(self) -> int:
        """Rows and kept answers that could be matched with them; changes nothing. Reads each run."""
        groups = self._all_groups()
        found = sum(one.group in groups for run in self._runs() for one in run.rows)
        return found + sum(self._is_theirs(entry) for path in self._journals() for entry in _entries(path))

    def erase(
        self,
        *,
        timeout_s: float,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Waits for runs that are under way. Raises: DrivetrainError where one takes longer than `timeout_s`."""
        groups = self._all_groups()
        for folder in self._evals():
            lock = folder / "lock"
            with locked(lock, wait_s=timeout_s, look_every_s=LOOK_S, monotonic=monotonic, sleep=sleep) as held:
                if not held:
                    raise DrivetrainError(
                        f"Eval `{folder.name}` is being run, and has not ended within {timeout_s:g} s.",
                        looked=[str(folder)],
                        do="Run `drivetrain erase --resume` when it has ended.",
                    )
                # A run may have ended while it was waited for.
                groups |= self._all_groups(folder)
                self._erase(folder, groups)

    def _erase(self, folder: Path, groups: Collection[str]) -> None:
        for path in folder.glob("answers-*.journal"):
            self._erase_answers(path)
        for half in folder.rglob(HALF_WRITTEN.format("*")):
            half.unlink(missing_ok=True)
        for path in row_files(folder):
            run = _read(path)
            if run is None:
                path.unlink(missing_ok=True)  # nobody can read it, and nobody can tell whom it names
                continue
            rows = tuple(self._without(one, groups) for one in run.rows)
            if rows != run.rows:
                _rewrite(path, msgspec.json.encode(msgspec.structs.replace(run, rows=rows)))

    def _erase_answers(self, path: Path) -> None:
        """Their entries go, and what follows a damaged one, which nobody reads; and all groups, which nobody needs."""
        kept: list[Entry] = []
        end, changed = 0, False
        for entry, end in frames(path):  # noqa: B007 - where the last whole one ends is looked at below
            if self._is_theirs(entry):
                changed = True
            elif isinstance(entry, AnsweredV1) and entry.row.group:
                kept.append(msgspec.structs.replace(entry, row=msgspec.structs.replace(entry.row, group="")))
                changed = True
            else:
                kept.append(entry)
        if changed or end != path.stat().st_size:
            _rewrite(path, b"".join(frame_of(MSGPACK.encode(one)) for one in kept))

    def _without(self, row: RowV1, groups: Collection[str]) -> RowV1:
        if row.notes and self._has(row):
            row = msgspec.structs.replace(row, notes=b"")
        if row.group in groups:
            row = msgspec.structs.replace(row, group=GONE + self._pseudonym(row.group))
        return without_notes(row)

    def _is_theirs(self, entry: Entry) -> bool:
        if isinstance(entry, AnsweredV1):
            return self._has(entry.row)
        return isinstance(entry, JudgedV1) and entry.call_id in self._call_ids

    def _has(self, row: RowV1) -> bool:
        """Whether it is theirs alone, and not only of a group that others are in too."""
        return row.call_id in self._call_ids or row.group in self._groups

    def _all_groups(self, folder: Path | None = None) -> set[str]:
        """Theirs, and those that rows of their Calls are in: a Dataset may group its rows by more than the person."""
        rows = (one for run in self._runs(folder) for one in run.rows)
        theirs = {one.group for one in rows if one.group and one.call_id in self._call_ids}
        return self._groups | {one for one in theirs if not one.startswith(GONE)}

    def _evals(self) -> list[Path]:
        return sorted(one for one in self._folder.glob("*") if one.is_dir())

    def _journals(self) -> Iterator[Path]:
        for folder in self._evals():
            yield from folder.glob("answers-*.journal")

    def _runs(self, folder: Path | None = None) -> Iterator[Run]:
        for one in self._evals() if folder is None else [folder]:
            for path in row_files(one):
                run = _read(path)
                if run is not None:
                    yield run


def _rewrite(path: Path, content: bytes) -> None:
    """Its time stays: the oldest files of an eval are those that go when there are too many."""
    was = path.stat()
    write_whole(path, content)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def _entries(path: Path) -> Iterator[Entry]:
    """Of a journal; none where it was just deleted as one of the oldest."""
    with contextlib.suppress(FileNotFoundError):
        for entry, _ in frames(path):
            yield entry


def _read(path: Path) -> Run | None:
    """None where it is damaged, or was just deleted as one of the oldest."""
    try:
        return _RUN.decode(path.read_bytes())
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
