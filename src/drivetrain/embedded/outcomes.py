"""Outcomes from Python and from files: checked, recognised where they were recorded before, and written to the ledger.

Owns this process's writer of Outcomes: one journal per data folder, in a thread of its own, since a journal is not for
threads and may not meet an event loop of the caller's. Called by programs and by `drivetrain outcomes import`.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from datetime import datetime
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import msgspec

from drivetrain.core.calls import OutcomeV1
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.outcomes import OutcomeMistake, read_outcome
from drivetrain.embedded.asking import open_lake
from drivetrain.ledger.journal import FrameJournal
from drivetrain.ports.locks import locked
from drivetrain.project.files import find_root
from drivetrain.project.load import load, unload

if TYPE_CHECKING:
    from drivetrain.lake.lake import Lake

CHUNK = 5_000
"""Outcomes of one write: far below what a journal buffers, whatever their values."""
ROWS_FETCHED = 10_000
"""Of the ledger's Outcomes at once, while known ones are looked for."""
SOURCE = "python"
"""Who says so, unless the caller does."""
LINGER_S = 1.0
"""How long a segment stays open for the next Outcome; as long others may have to wait until it is let go."""
LOCK_FILE = "outcomes.lock"
IMPORT_WAIT_S = 600.0
"""How long an import waits for another, which looks through every value that ever arrived."""


class Recorded(msgspec.Struct, frozen=True):
    """What became of some Outcomes."""

    new: int
    known: int
    """They were recorded before, or stood twice among those given."""


def record_outcome(
    *,
    metric: str,
    value: str | float | bool,
    call_id: str | None = None,
    workflow: str | None = None,
    key: str | None = None,
    source: str = SOURCE,
    event_time: str | datetime | None = None,
    project: Path | str | None = None,
) -> None:
    """Record the truth about the Call `call_id`, or about the Calls of `workflow` whose business key is `key`.

    On return it is on disk. project: its folder; by default found upwards. Raises: DrivetrainError.
    """
    given = {"call_id": call_id, "workflow": workflow, "key": key, "metric": metric, "value": value, "source": source}
    record_outcomes([{**given, "event_time": event_time}], project=project)


def record_outcomes(
    outcomes: Iterable[Mapping[str, Any]], *, project: Path | str | None = None, once: bool = False
) -> Recorded:
    """Record several, all or none of them: objects with the fields of `POST /v1/outcomes`.

    once: leave out those that were recorded before with the same Call, metric, source, value and event time, which
    reads the ledger's Outcomes. Raises: DrivetrainError that names the first that is wrong, and how.
    """
    place = _placed(find_root(Path(project) if project is not None else Path.cwd()))
    now_ns, found = time.time_ns(), []
    for number, one in enumerate(outcomes):
        try:
            found.append(read_outcome(_plain(one), place.snapshot.workflows, arrived_ns=now_ns + number))
        except OutcomeMistake as error:
            raise DrivetrainError(f"outcomes[{number}] is wrong: {error}.", do="None of them was recorded.") from error
    return place.writer.record(found, once=once)


def close() -> None:
    """Ends this process's writers and lets its projects go; a later Outcome begins anew."""
    with _lock:
        for key in [key for key in _places if key[0] == os.getpid()]:
            _places.pop(key).close()


class OutcomeWriter:
    """Writes Outcomes into the ledger of one data folder, from any thread.

    open_lake: gives the Lake in which known Outcomes are looked for.
    """

    def __init__(self, data_folder: Path, open_lake: Callable[[], Lake]) -> None:
        self._data_folder = data_folder
        self._open_lake = open_lake
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="drivetrain-outcomes", daemon=True)
        self._thread.start()

    def record(self, outcomes: Sequence[OutcomeV1], *, once: bool = False) -> Recorded:
        """On return they are on disk, in their order. Raises: DrivetrainError, which says how many are."""
        if not once:
            return Recorded(self._written(outcomes), 0)
        with self._locked():
            fresh = self.unknown(outcomes)
            return Recorded(self._written(fresh), len(outcomes) - len(fresh))

    def unknown(self, outcomes: Sequence[OutcomeV1]) -> list[OutcomeV1]:
        """Those of `outcomes` that the ledger does not have, each once."""
        wanted: dict[tuple[Any, ...], OutcomeV1] = {}
        for one in outcomes:
            wanted.setdefault(_identity(one), one)
        if wanted:
            from drivetrain.lake.lake import again

            again(lambda: self._forget_known(wanted))
        return list(wanted.values())

    def close(self) -> None:
        """Ends the thread and lets the segment go."""
        self._jobs.put(None)
        self._thread.join()

    def _forget_known(self, wanted: dict[tuple[Any, ...], OutcomeV1]) -> None:
        """Takes from `wanted` what the ledger has, reading every value of the metrics that ever arrived."""
        from drivetrain.lake.sandbox import translated

        metrics = sorted({one.metric for one in wanted.values()})
        with self._open_lake().connect(only=("outcomes_history",)) as connection, translated(connection):
            connection.execute(KNOWN, [metrics])
            while rows := connection.fetchmany(ROWS_FETCHED):
                for row in rows:
                    wanted.pop(row, None)

    def _written(self, outcomes: Sequence[OutcomeV1]) -> int:
        if not outcomes:
            return 0
        job = _Job(outcomes)
        self._jobs.put(job)
        return job.done.result()

    def _work(self) -> None:
        """Write what comes. A segment is let go as soon as nothing comes, so that it can be rolled and deleted."""
        journal: FrameJournal | None = None
        while True:
            try:
                job = self._jobs.get(timeout=None if journal is None else LINGER_S)
            except Empty:
                if journal is not None:
                    journal.close()
                journal = None
                continue
            if job is None:
                break
            try:
                if journal is None:
                    journal = FrameJournal(self._data_folder)
                journal.look()
                job.done.set_result(self._write(journal, job.outcomes))
            except OSError as error:
                job.done.set_exception(self._unwritable(error.strerror or str(error), 0, len(job.outcomes)))
            except Exception as error:  # noqa: BLE001  it belongs to whoever waits; the thread goes on for others
                job.done.set_exception(error)
        if journal is not None:
            journal.close()

    def _write(self, journal: FrameJournal, outcomes: Sequence[OutcomeV1]) -> int:
        done, waiting = 0, iter(outcomes)
        while chunk := list(islice(waiting, CHUNK)):
            written: list[bool] = []
            for place, one in enumerate(chunk, start=1):
                journal.append(one, written.append, sync=place == len(chunk))
            journal.flush()
            done += sum(written)
            if len(written) < len(chunk) or not all(written):
                raise self._unwritable(journal.failed or "unknown reason", done, len(outcomes))
        return done

    def _unwritable(self, why: str, done: int, of: int) -> DrivetrainError:
        return DrivetrainError(
            f"The ledger cannot be written: {why}. {done} of {of} outcomes are recorded.",
            looked=[str(self._data_folder)],
            do="Once it can, give all of them again: an import leaves out those that are recorded.",
        )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One import at a time from looking to writing, so that two of one file do not both find nothing."""
        try:
            self._data_folder.mkdir(parents=True, exist_ok=True)
            waiting = ExitStack()
            is_held = waiting.enter_context(locked(self._data_folder / LOCK_FILE, wait_s=IMPORT_WAIT_S))
        except OSError as error:
            raise DrivetrainError(
                f"{self._data_folder} cannot be written: {error.strerror}.", do="Let us write there, and try again."
            ) from error
        with waiting:
            if not is_held:
                raise DrivetrainError(
                    f"Another process has been importing Outcomes for {IMPORT_WAIT_S:g} s.",
                    looked=[str(self._data_folder / LOCK_FILE)],
                    do="Wait for its end, and try again: nothing of these was recorded.",
                )
            yield


class _Job:
    """Outcomes that a thread waits for."""

    def __init__(self, outcomes: Sequence[OutcomeV1]) -> None:
        self.outcomes = outcomes
        self.done: Future[int] = Future()


KNOWN = """
SELECT call_id, workflow, business_key, metric, source, kind = 'text', value,
    CASE WHEN event_ns <> arrived_ns THEN event_ns END
FROM outcomes_history WHERE list_contains(?, metric)
"""


def _identity(outcome: OutcomeV1) -> tuple[Any, ...]:
    """What makes two Outcomes the same: all but when and with which key they came. As `KNOWN` gives it."""
    value = outcome.value
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return (
        outcome.call_id,
        outcome.workflow,
        outcome.business_key,
        outcome.metric,
        outcome.source,
        isinstance(value, str),
        text,
        outcome.event_ns if outcome.event_ns != outcome.arrived_ns else None,
    )


class _Place:
    """A loaded project and its writer."""

    def __init__(self, root: Path) -> None:
        self.snapshot = load(root)
        self.writer = OutcomeWriter(self.snapshot.data_folder, lambda: open_lake(root))

    def close(self) -> None:
        self.writer.close()
        unload(self.snapshot)


_lock = threading.Lock()
_places: dict[tuple[int, Path], _Place] = {}


def _placed(root: Path) -> _Place:
    """The project in `root`, loaded once per process."""
    key = (os.getpid(), root.resolve())
    with _lock:
        if key not in _places:
            if not _places:
                atexit.register(close)
            _places[key] = _Place(root)
        return _places[key]


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """What Python gives, as JSON would: times as text, and no field that is None. Without a source it is `SOURCE`."""
    if not isinstance(given, Mapping):
        raise OutcomeMistake("", "must be a mapping")
    found = {name: value for name, value in given.items() if value is not None}
    when = found.get("event_time")
    if isinstance(when, datetime):
        if when.tzinfo is None:
            raise OutcomeMistake("event_time", "must say its time zone, as in `datetime.now(UTC)`")
        found["event_time"] = when.isoformat()
    return {"source": SOURCE, **found}
