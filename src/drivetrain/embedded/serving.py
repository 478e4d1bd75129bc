"""What one process serves: the Snapshots that the control log makes live, loaded beside the old ones and swapped in.

Owns which Snapshots are in memory and which of them answer. Another `Live` comes from a `LiveWatch`; what it names and
is not in memory is loaded in a thread, its models are prepared, and then one assignment on the loop makes the change:
no request sees half of it, and Calls that run keep what they began with. Snapshots of before stay in memory for a
while, so going back loads nothing. A Release is served once it was found to be what its records say. What is not, and
what cannot be loaded, is told, and what was served before is served on.

`Serving` is how a worker follows; `served_by` is how others see what workers serve. How it starts is in `starting`.
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

from drivetrain.core.errors import DrivetrainError, report_fault
from drivetrain.core.releases import Live
from drivetrain.embedded.live_watch import LiveWatch
from drivetrain.embedded.releasing import ReleasePlace, doubted, doubts_about
from drivetrain.embedded.runtime import Ready, Runtime
from drivetrain.embedded.snapshot_loading import TakesTooLong, apart, loaded
from drivetrain.project.load import unload
from drivetrain.project.snapshot import Snapshot

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
        """live: what the runtime's Snapshot was loaded for; it was found to be what its records say."""
        self.failures = 0
        """Changes of what is live that this worker could not follow."""
        self._runtime = runtime
        self._watch = watch
        self._swapped = swapped
        self._tell = tell
        self._worker = worker
        first = runtime.ready.snapshot
        self._root = first.root
        self._place = ReleasePlace(
            root=first.root, environment=first.environment, data_folder=first.data_folder,
            keys_folder=first.keys_folder,
        )  # fmt: skip
        self._proved = {live.release}
        """Releases that are what their records say; 0 is the folder."""
        self._kept: dict[str, Ready] = {runtime.ready.snapshot.hash: runtime.ready}
        """By hash; what was served last stands last."""
        self._wanted, self._watched = watch.live, watch.watched
        self._loading: asyncio.Task[None] | None = None
        self._failed: dict[int, str] = {}
        """Release -> why it is wanted and not served."""
        self._resting: set[int] = set()
        """Releases that are not tried now."""
        self._hanging: set[str] = set()
        """Hashes of those that are not tried again in this process."""
        self._retry: asyncio.TimerHandle | None = None
        self.live = msgspec.structs.replace(live, active=None)
        """What is served: the newest that this worker could follow."""
        self.served = self._told()

    async def begin(self, *, must: bool) -> None:
        """Serve what is live before the first request, and follow it from then on.

        must: raises DrivetrainError where what was given is live and cannot be served; else it is told.
        """
        given = self.live.release
        self._step()
        while self._loading is not None:
            candidate = self._is_followed
            await asyncio.wait({self._loading}, timeout=CANDIDATE_S if candidate else None)
            if candidate:
                break
        why = self._failed.get(self._wanted.release, "")
        if why and must and self._wanted.release == given:
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
        wanted, active = self._wanted, self._wanted.active
        named = {wanted.release, active.release if active is not None else 0}
        self._failed = {release: why for release, why in self._failed.items() if release in named}
        ready = self._runtime.ready if not wanted.snapshot else self._held(wanted.release, wanted.snapshot)
        candidate = self._held(active.release, active.snapshot) if active is not None else None
        if ready is not None:
            try:
                self._swap(ready, candidate, wanted)
            except DrivetrainError as error:
                self._fail(wanted.release, wanted.snapshot, str(error))
        missing = [(wanted.release, wanted.snapshot)] if ready is None else []
        if active is not None and candidate is None:
            missing.append((active.release, active.snapshot))
        missing = [one for one in missing if one[0] not in self._resting and one[1] not in self._hanging]
        if self._loading is not None and self._loading.get_name() not in [_named(*one) for one in missing]:
            self._loading.cancel()  # nobody wants it any more, and another may be waiting
            self._loading = None
        if missing and self._loading is None:
            self._loading = self._runtime.loop.create_task(self._load(*missing[0]), name=_named(*missing[0]))

    def _held(self, release: int, digest: str) -> Ready | None:
        """What can be swapped in at once: in memory, and found to be what it is said to be."""
        return self._kept.get(digest) if release in self._proved else None

    async def _load(self, release: int, digest: str) -> None:
        """One Release's Snapshot into memory where it is not there, proved, and on from there."""
        folder = self._runtime.ready.snapshot.snapshots_folder
        made: Ready | None = None
        try:
            ready = self._kept.get(digest)
            if ready is None:
                ready = made = await loaded(folder, digest, self._root)
                now, then = self._runtime.ready.snapshot, ready.snapshot
                if then.data_folder != now.data_folder:
                    raise DrivetrainError("It keeps its records elsewhere.", do="Restart the gateway to move them.")
                if then.keys_folder != now.keys_folder:
                    raise DrivetrainError("It keeps its keys elsewhere.", do="Restart the gateway to move them.")
            await self._prove(release, ready.snapshot)
            if made is not None:
                await self._runtime.prepare(ready.snapshot, *(one.snapshot for one in self._kept.values()))
        except DrivetrainError as error:
            if isinstance(error, TakesTooLong):
                self._hanging.add(digest)
            self._give_up(release, digest, made, str(error))
        except asyncio.CancelledError:
            if made is not None:
                unload(made.snapshot)
            raise
        except Exception as fault:  # noqa: BLE001  a fault of ours must not end the following
            report_fault("loading a Snapshot", fault)
            self._give_up(release, digest, made, "Drivetrain failed at loading it.")
        else:
            self._loading = None
            self._proved.add(release)
            self._kept[digest] = ready
            self._keep_few()
        self._step()

    async def _prove(self, release: int, snapshot: Snapshot) -> None:
        """Raises: DrivetrainError where the Release is not what its records say."""
        if release in self._proved:
            return
        held = {digest: one.snapshot for digest, one in self._kept.items()}
        proved = frozenset(self._proved)
        why = await apart(
            lambda: doubts_about(self._place, release, snapshot, held=held, proved=proved),
            f"Release {release} could not be compared with what was live before it", snapshot.snapshots_folder,
        )  # fmt: skip
        if why:
            raise doubted(release, why)

    def _give_up(self, release: int, digest: str, made: Ready | None, why: str) -> None:
        self._loading = None
        if made is not None:
            unload(made.snapshot)
        self._fail(release, digest, why)

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
        self._failed.pop(live.release, None)
        if candidate is not None and live.active is not None:
            self._failed.pop(live.active.release, None)
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

    def _fail(self, release: int, digest: str, why: str) -> None:
        if release not in self._failed:
            self.failures += 1
        if self._failed.get(release) != why:
            print(
                f"drivetrain: snapshot {digest[:16]} is not served, the old one is served on.\n{why}", file=sys.stderr
            )
        self._failed[release] = why
        self._resting.add(release)
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


def _named(release: int, digest: str) -> str:
    """Of what is being loaded."""
    return f"{release}/{digest}"


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
