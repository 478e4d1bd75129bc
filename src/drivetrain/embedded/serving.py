"""What one process serves: the Snapshots that the control log makes live, loaded beside the old ones and swapped in.

Owns which Snapshots are in memory and which of them answer. Another `Live` comes from a `LiveWatch`; what it names and
is not in memory is loaded in a thread, its models are prepared, and then one assignment on the loop makes the change:
no request sees half of it, and Calls that run keep what they began with. Snapshots of before stay in memory for a
while, so going back loads nothing. What cannot be loaded is told, and what was served before is served on.

`to_serve` is how a gateway starts; `Serving` is how a worker follows; `served_by` is how others see what workers serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from drivetrain.adapters.sqlite_control_feed import SqliteControlFeed
from drivetrain.core.errors import DrivetrainError, report_fault
from drivetrain.core.releases import RELEASE_KINDS, Live
from drivetrain.embedded.live_watch import LiveWatch
from drivetrain.embedded.runtime import Ready, Runtime
from drivetrain.embedded.snapshot_loading import TakesTooLong, loaded
from drivetrain.project.files import SETTINGS_FILE
from drivetrain.project.load import load, unload
from drivetrain.project.problems import Problems
from drivetrain.project.settings import environment_name, overlay, parse, read
from drivetrain.project.snapshot import LedgerSettings, Snapshot
from drivetrain.project.stored import load_stored
from drivetrain.promotion.state import live as live_by

KEPT_MAX = 4
"""Snapshots in memory, those that are served included: enough for a candidate, what is live, and two ways back."""
OLD_SNAPSHOT_S = 600.0
"""How long the code of a Snapshot that was let go stays importable for the calls that began with it."""
RETRY_S = 10.0
"""Before a Snapshot that could not be loaded is tried again: a missing secret or file may have come."""
CANDIDATE_S = 10.0
"""For a canary's candidate when a worker starts; then it serves without, until that is loaded."""
SERVED_SUFFIX = ".live"


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker serves, as it tells others in the run folder."""

    worker: str
    """`NAME-PID`."""
    release: int = 0
    """0: the project's folder, since nothing was released."""
    snapshot: str
    """The whole hash."""
    candidate: int = 0
    """The Release that a canary rolls out; 0: none."""
    candidate_snapshot: str = ""
    """Empty where it could not be loaded."""
    stage: int = 0
    share_ppm: int = 0
    """Of the units that the candidate answers."""
    watched: bool = True
    """Whether the canary's watcher shows life; where it does not, the share is 0."""
    failed: str = ""
    """Why this worker does not serve what is live; empty where it does."""
    at_ns: int
    """Since when."""


class ToServe(msgspec.Struct, frozen=True):
    """What a gateway starts with."""

    snapshot: Snapshot
    live: Live


def to_serve(root: Path, environment: str | None = None) -> ToServe:
    """The live Release's stored Snapshot; the project's folder only where nothing was ever released.

    Raises: DrivetrainError where the Release cannot be loaded, ProjectError with every mistake in the folder.
    """
    root = root.resolve()
    environment, ledger = _whereabouts(root, environment)
    path = root / ledger.folder / "control.db"
    feed = SqliteControlFeed(path)
    try:
        live = live_by(feed.read(RELEASE_KINDS), environment)
    finally:
        feed.close()
    if not live.release:
        return ToServe(load(root, environment), live)
    snapshot = load_release(root, live)
    if snapshot.data_folder != root / ledger.folder:
        raise DrivetrainError(
            f"Release {live.release} keeps its records in {snapshot.data_folder}, and the project's folder says "
            f"{root / ledger.folder}.",
            looked=[str(root / SETTINGS_FILE), str(path)],
            do="Set [ledger] folder back, or move the records and release that setting.",
        )
    return ToServe(snapshot, live)


def load_release(root: Path, live: Live) -> Snapshot:
    """The stored Snapshot of what is live, proved to be what was approved. Raises: DrivetrainError."""
    folder = root / ".drivetrain" / "snapshots"
    try:
        return load_stored(folder, live.snapshot, root)
    except DrivetrainError as error:
        raise DrivetrainError(
            f"Release {live.release} is live in `{live.environment}`, and its Snapshot {live.snapshot[:16]} cannot be "
            f"loaded.\n{error}",
            looked=[str(folder)],
            do="Restore it from your backup, or run `drivetrain rollback`.",
        ) from error


def _whereabouts(root: Path, environment: str | None) -> tuple[str, LedgerSettings]:
    """Environment and ledger by the folder's settings, whatever else is wrong with it."""
    problems = Problems()
    try:
        parsed = parse((root / SETTINGS_FILE).read_bytes(), problems)
    except OSError:
        parsed = None
    name = environment_name(parsed, environment, os.environ)
    settings = read(overlay(parsed, name, problems), root, problems) if parsed is not None else None
    return name, settings.ledger if settings is not None else LedgerSettings()


class Serving:
    """One worker's Snapshots, kept at what is live. On its event loop; made once the runtime is prepared.

    swapped: called within each change; raises DrivetrainError where it cannot be, and then the change is taken back.
    tell: told of what is served, and why it is not what is live, whenever that is another.
    """

    def __init__(
        self,
        runtime: Runtime,
        watch: LiveWatch,
        live: Live,
        *,
        worker: str,
        swapped: Callable[[], None],
        tell: Callable[[Served], None],
    ) -> None:
        """live: what the runtime's Snapshot was loaded for."""
        self.failures = 0
        """Changes of what is live that this worker could not follow."""
        self._runtime = runtime
        self._watch = watch
        self._swapped = swapped
        self._tell = tell
        self._worker = worker
        self._root = runtime.ready.snapshot.root
        self._kept: dict[str, Ready] = {runtime.ready.snapshot.hash: runtime.ready}
        """By hash; what was served last stands last."""
        self._wanted, self._watched = watch.live, watch.watched
        self._loading: asyncio.Task[None] | None = None
        self._failed: dict[str, str] = {}
        """Hash -> why it is wanted and not served."""
        self._resting: set[str] = set()
        """Hashes of those that are not tried now."""
        self._hanging: set[str] = set()
        """Hashes of those that are not tried again in this process."""
        self._retry: asyncio.TimerHandle | None = None
        self.live = msgspec.structs.replace(live, active=None)
        """What is served: the newest that this worker could follow."""
        self.served = self._told()

    async def begin(self, *, must: bool) -> None:
        """Serve what is live before the first request, and follow it from then on.

        must: raises DrivetrainError where the live Release cannot be loaded; else what was given is served.
        """
        self._step()
        while self._loading is not None:
            candidate = self._is_followed
            await asyncio.wait({self._loading}, timeout=CANDIDATE_S if candidate else None)
            if candidate:
                break
        why = self._failed.get(self._wanted.snapshot, "")
        if why and must:
            raise DrivetrainError(why)
        self._watch.start(self.hear, self._runtime.loop)

    def hear(self, live: Live, watched: bool) -> None:
        """Something else is live."""
        self._wanted, self._watched = live, watched
        self._step()

    def replace(self, ready: Ready) -> None:
        """Serve another state of the project's folder, where nothing was released; raises as `swapped` does."""
        before = self._runtime.ready
        self._swap(ready, None, self._wanted)
        if self._kept.get(before.snapshot.hash) is before:
            del self._kept[before.snapshot.hash]
        self._runtime.loop.call_later(OLD_SNAPSHOT_S, unload, before.snapshot)

    def close(self) -> None:
        """Follow no more."""
        self._watch.close()
        if self._retry is not None:
            self._retry.cancel()
        if self._loading is not None:
            self._loading.cancel()

    @property
    def candidate(self) -> Ready | None:
        """What is served beside what is live."""
        return self._runtime.candidate

    @property
    def share_ppm(self) -> int:
        """Of the units that the candidate answers now."""
        return self.served.share_ppm

    @property
    def _is_followed(self) -> bool:
        """Whether what is live answers, its candidate aside."""
        return self.live is self._wanted

    def _step(self) -> None:
        """Serve what is wanted where it is in memory; else see to it that it is loaded."""
        wanted = self._wanted
        named = {wanted.snapshot, wanted.active.snapshot if wanted.active is not None else ""}
        self._failed = {digest: why for digest, why in self._failed.items() if digest in named}
        ready = self._runtime.ready if not wanted.snapshot else self._kept.get(wanted.snapshot)
        candidate = self._kept.get(wanted.active.snapshot) if wanted.active is not None else None
        if ready is not None:
            try:
                self._swap(ready, candidate, wanted)
            except DrivetrainError as error:
                self._fail(wanted.snapshot, str(error))
        missing = [wanted.snapshot] if ready is None else []
        if wanted.active is not None and candidate is None:
            missing.append(wanted.active.snapshot)
        missing = [one for one in missing if one not in self._resting and one not in self._hanging]
        if self._loading is not None and self._loading.get_name() not in missing:
            self._loading.cancel()  # nobody wants it any more, and another may be waiting
            self._loading = None
        if missing and self._loading is None:
            self._loading = self._runtime.loop.create_task(self._load(missing[0]), name=missing[0])

    async def _load(self, digest: str) -> None:
        """One Snapshot into memory, and on from there."""
        folder = self._runtime.ready.snapshot.snapshots_folder
        ready: Ready | None = None
        try:
            ready = await loaded(folder, digest, self._root)
            if ready.snapshot.data_folder != self._runtime.ready.snapshot.data_folder:
                raise DrivetrainError("It keeps its records elsewhere.", do="Restart the gateway to move them.")
            await self._runtime.prepare(ready.snapshot, *(one.snapshot for one in self._kept.values()))
        except DrivetrainError as error:
            if isinstance(error, TakesTooLong):
                self._hanging.add(digest)
            self._give_up(digest, ready, str(error))
        except Exception as fault:  # noqa: BLE001  a fault of ours must not end the following
            report_fault("loading a Snapshot", fault)
            self._give_up(digest, ready, "Drivetrain failed at loading it.")
        else:
            self._loading = None
            self._kept[digest] = ready
            self._keep_few()
        self._step()

    def _give_up(self, digest: str, ready: Ready | None, why: str) -> None:
        self._loading = None
        if ready is not None:
            unload(ready.snapshot)
        self._fail(digest, why)

    def _swap(self, ready: Ready, candidate: Ready | None, live: Live) -> None:
        """The change itself. Raises: DrivetrainError, and what was served is served on."""
        runtime = self._runtime
        before = (runtime.ready, runtime.candidate)
        served_before = (self.live, self.served)
        changed = before != (ready, candidate)
        try:
            if changed:
                runtime.use(ready, candidate)
            self.live = live
            self.served = self._told()
            self._swapped()
        except DrivetrainError:
            self.live, self.served = served_before
            if changed:
                runtime.use(*before)
            raise
        for one in (candidate, ready):
            if one is not None:
                self._kept.pop(one.snapshot.hash, None)
                self._kept[one.snapshot.hash] = one
                self._failed.pop(one.snapshot.hash, None)
        self._keep_few()
        self.served = self._told()
        self._tell(self.served)
        if before[0] is not ready:
            named = f" (Release {live.release})" if live.release else ""
            print(f"drivetrain: serving snapshot {ready.snapshot.short_hash}{named}", file=sys.stderr)

    def _told(self) -> Served:
        live, runtime = self.live, self._runtime
        active = live.active
        watched = self._watched or active is None
        candidate = runtime.candidate is not None and active is not None
        return Served(
            worker=self._worker,
            release=live.release,
            snapshot=runtime.ready.snapshot.hash,
            candidate=active.release if active is not None else 0,
            candidate_snapshot=runtime.candidate.snapshot.hash if candidate and runtime.candidate is not None else "",
            stage=active.stage if active is not None else 0,
            share_ppm=active.share_ppm if active is not None and candidate and watched else 0,
            watched=watched,
            failed="; ".join(self._failed.values()),
            at_ns=time.time_ns(),
        )

    def _fail(self, digest: str, why: str) -> None:
        if digest not in self._failed:
            self.failures += 1
        if self._failed.get(digest) != why:
            print(
                f"drivetrain: snapshot {digest[:16]} is not served, the old one is served on.\n{why}", file=sys.stderr
            )
        self._failed[digest] = why
        self._resting.add(digest)
        self.served = self._told()
        self._tell(self.served)
        if self._retry is None:
            self._retry = self._runtime.loop.call_later(RETRY_S, self._again)

    def _again(self) -> None:
        self._retry = None
        self._resting.clear()
        self._step()

    def _keep_few(self) -> None:
        """No more than `KEPT_MAX` stay in memory."""
        served = {self._runtime.ready, self._runtime.candidate}
        for digest in [one for one, ready in self._kept.items() if ready not in served]:
            if len(self._kept) > KEPT_MAX:
                self._let_go(digest)

    def _let_go(self, digest: str) -> None:
        gone = self._kept.pop(digest, None)
        if gone is not None:
            self._runtime.loop.call_later(OLD_SNAPSHOT_S, unload, gone.snapshot)


# The run folder.


def tell(folder: Path, served: Served) -> None:
    """Replaces what a worker told of itself before. Raises: OSError."""
    made = folder / f".{served.worker}{SERVED_SUFFIX}.tmp"
    made.write_bytes(msgspec.json.encode(served))
    made.replace(folder / f"{served.worker}{SERVED_SUFFIX}")


def served_by(folder: Path) -> list[Served]:
    """What each worker that lives serves, by name; empty where no gateway runs."""
    found = []
    for path in sorted(folder.glob(f"*{SERVED_SUFFIX}")):
        with contextlib.suppress(OSError, msgspec.MsgspecError):  # its worker is gone
            served = msgspec.json.decode(path.read_bytes(), type=Served)
            if lives(served.worker):
                found.append(served)
    return found


def lives(worker: str) -> bool:
    """Whether the process of `NAME-PID` is there."""
    try:
        os.kill(int(worker.rpartition("-")[2]), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
