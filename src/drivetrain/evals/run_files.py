"""What runs of evals keep on disk: each answer as it comes, and every finished run's rows.

    evals/EVAL/answers-KEY.journal   answers of one workflow's key, and what judges said of them
    evals/EVAL/runs/REPORT.json      the rows of a run, for those who pair with it or prove its Report
    evals/EVAL/baselines/REPORT.json the rows that it was compared with
in the data folder. KEY is a hash over all that decides how the workflow answers, so an answer is given again only where
it would be asked for in the same way. A journal's frame is a length, a CRC-32 and a body; a torn last one is cut off,
so a killed run goes on behind what it wrote. Answers are sealed under their subjects' keys, as payloads of Calls are.
What an erasure takes out of these files is `run_erasing.py`.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import msgspec

from drivetrain.core.codec import MSGPACK
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.evals import Score
from drivetrain.evals.rows import RowV1, Run
from drivetrain.evals.run_texts import without_notes
from drivetrain.ports.disk import sync_folder, write_whole
from drivetrain.ports.locks import locked

FOLDER = "evals"
"""In the data folder."""
RUNS, BASELINES = "runs", "baselines"
"""Below an eval's folder: rows of runs, and of what they were compared with."""
JOURNALS_MAX = 24
"""Of one eval; those of the oldest keys go, since nobody compares with them any more."""
RUNS_MAX = 500
"""Of one eval; a Report whose rows are gone can still be read, and be run again."""
JOURNAL_BYTES_MAX = 1 << 30
"""What is longer is not kept: it is read as a whole before a run."""
HEAD = struct.Struct("<II")
FRAME_BYTES_MAX = 16 * 1024 * 1024
_RUN: msgspec.json.Decoder[Run] = msgspec.json.Decoder(Run)
_REPORT = re.compile(r"[0-9a-f]{4,64}")


class AnsweredV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="answered.1"):
    """One answer."""

    asked: str
    repeat: int
    row: RowV1
    """As it was answered; nothing of it is scored, and it has no group."""
    sealed: bytes = b""
    """The answer, sealed under its subject's key as payload `eval` of its Call."""


class JudgedV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="judged.1"):
    """What a judge said of one answer."""

    call_id: str
    """Of the answer."""
    judge: str
    """A key of the judge: its workflow, what it is shown, how it is read."""
    score: Score
    cost_nano_usd: int = 0
    call_ids: tuple[str, ...] = ()
    """The judge's own Calls."""


class BegunV1(msgspec.Struct, frozen=True, tag="anew.1"):
    """What stands before it is not given again: somebody wanted fresh answers."""

    at_ns: int


Entry = AnsweredV1 | JudgedV1 | BegunV1
"""Of a journal."""
_FRAME: msgspec.msgpack.Decoder[Entry] = msgspec.msgpack.Decoder(Entry)


class Kept:
    """The answers of one workflow's key, in memory and in a journal. Its eval's lock is held while it is open.

    path: None keeps nothing beyond the run.
    """

    def __init__(self, path: Path | None) -> None:
        self.answers: dict[tuple[str, int], AnsweredV1] = {}
        """By what was asked, and the repeat."""
        self.judged: dict[tuple[str, str], JudgedV1] = {}
        """By the answer's Call and the judge."""
        self._fd = -1
        self._bytes = 0
        if path is not None:
            self._open(path)

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1

    def add(self, entry: Entry) -> None:
        """Kept once this returns, whatever becomes of the process. Raises: DrivetrainError where the disk is full."""
        self._take(entry)
        body = MSGPACK.encode(entry)
        frame = frame_of(body)
        if self._fd < 0 or self._bytes + len(frame) > JOURNAL_BYTES_MAX:
            return
        try:
            written = os.write(self._fd, frame)
        except OSError as error:
            raise DrivetrainError(
                f"The run's journal cannot be written: {error.strerror}.",
                do="Make room, and run it again: what was answered so far is kept.",
            ) from error
        if written != len(frame):
            os.ftruncate(self._fd, self._bytes)
            raise DrivetrainError("The run's journal cannot be written: the disk is full.", do="Make room.")
        self._bytes += written

    def _open(self, path: Path) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
            for entry, end in frames(path):
                self._take(entry)
                self._bytes = end
            os.ftruncate(self._fd, self._bytes)
        except OSError as error:
            raise DrivetrainError(
                f"The run's journal cannot be opened: {error.strerror}.", looked=[str(path)]
            ) from error

    def _take(self, entry: Entry) -> None:
        if isinstance(entry, BegunV1):
            self.answers.clear()
            self.judged.clear()
        elif isinstance(entry, AnsweredV1):
            self.answers[entry.asked, entry.repeat] = entry
        else:
            self.judged[entry.call_id, entry.judge] = entry


class RunFiles:
    """Journals and rows of every eval of a project. data_folder: the project's."""

    def __init__(self, data_folder: Path) -> None:
        self._folder = data_folder / FOLDER

    @contextlib.contextmanager
    def alone(self, eval_name: str) -> Iterator[None]:
        """One run of an eval at a time. Raises: DrivetrainError where another one is under way."""
        folder = self._folder / eval_name
        with contextlib.ExitStack() as held:
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                got = held.enter_context(locked(folder / "lock"))
            except OSError as error:
                raise DrivetrainError(f"The folder {folder} cannot be written: {error.strerror}.") from error
            if not got:
                raise DrivetrainError(
                    f"Eval `{eval_name}` is being run by another process.",
                    looked=[str(folder)],
                    do="Wait until it has ended: its answers are kept, and a second run of the same costs nothing.",
                )
            yield

    def answers(self, eval_name: str, workflow_key: str) -> Kept:
        """What was answered before, to be added to. Raises: DrivetrainError."""
        folder = self._folder / eval_name
        path = folder / f"answers-{workflow_key}.journal"
        _keep_newest(folder, "answers-*.journal", JOURNALS_MAX, path)
        if path.exists():
            os.utime(path)
        return Kept(path)

    def keep(self, run: Run, kind: str = RUNS) -> None:
        """The rows of a run that has a Report, or of its baseline; no note in plain. Raises: DrivetrainError."""
        run = msgspec.structs.replace(run, rows=tuple(map(without_notes, run.rows)))
        folder = self._folder / run.eval / kind
        path = folder / f"{run.report}.json"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, msgspec.json.encode(run))
            sync_folder(folder)
        except OSError as error:
            raise DrivetrainError(f"The run's rows cannot be written: {error.strerror}.") from error
        _keep_newest(folder, "*.json", RUNS_MAX, path)

    def run(self, report: str, kind: str = RUNS) -> Run:
        """The rows that a Report is of, or its baseline's. Raises: DrivetrainError where they are not kept."""
        found = sorted(self._folder.glob(f"*/{kind}/{report}*.json")) if _REPORT.fullmatch(report) else []
        if len(found) != 1:
            raise DrivetrainError(
                f"The rows of Report `{report[:80]}` are not kept here.",
                looked=[str(self._folder)],
                do="Run the eval again: answers that are kept cost nothing.",
            )
        try:
            return _RUN.decode(found[0].read_bytes())
        except (OSError, msgspec.MsgspecError) as error:
            raise DrivetrainError(
                f"The rows of Report `{report}` cannot be read: {error}.", looked=[str(found[0])]
            ) from None


def row_files(folder: Path) -> list[Path]:
    """Every file of rows in an eval's folder."""
    return sorted(path for kind in (RUNS, BASELINES) for path in (folder / kind).glob("*.json"))


def frame_of(body: bytes) -> bytes:
    """An entry of a journal as it is written."""
    return HEAD.pack(len(body), crc32(body)) + body


def frames(path: Path) -> Iterator[tuple[Entry, int]]:
    """Every whole entry of a journal and where it ends; what follows a torn or damaged one is not read."""
    with path.open("rb") as file:
        end = 0
        while len(head := file.read(HEAD.size)) == HEAD.size:
            size, checksum = HEAD.unpack(head)
            if size > FRAME_BYTES_MAX:
                return
            body = file.read(size)
            if len(body) != size or crc32(body) != checksum:
                return
            try:
                entry = _FRAME.decode(body)
            except msgspec.MsgspecError:
                return
            end += HEAD.size + size
            yield entry, end


def _keep_newest(folder: Path, pattern: str, many: int, mine: Path) -> None:
    """Delete the oldest files beyond so many."""
    with contextlib.suppress(OSError):
        found = sorted((one for one in folder.glob(pattern) if one != mine), key=lambda one: one.stat().st_mtime_ns)
        for path in found[: max(0, len(found) + 1 - many)]:
            path.unlink(missing_ok=True)
