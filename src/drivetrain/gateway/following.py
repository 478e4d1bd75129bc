"""What is live, as the supervisor follows it: for workers that come later, and for the processes beside them.

Workers follow by themselves. The supervisor only keeps a Snapshot loaded that a new worker can start from, since what
is loaded before the fork is shared and takes no time after it; it loads once those that serve have theirs. A worker
that comes earlier starts from the old one and loads the new one before it serves. Called by the supervisor.
"""

from __future__ import annotations

import sys
from pathlib import Path

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import Live
from drivetrain.embedded.live_watch import UNWATCHED_S, live_watch
from drivetrain.embedded.serving import served_by
from drivetrain.embedded.starting import load_release
from drivetrain.project.load import unload
from drivetrain.project.snapshot import Snapshot

SETTLED_S = 5.0
"""After a change of what is live, before it is loaded here: workers that serve need the machine first."""


class Followed:
    """One gateway's view of what is live. Raises (constructor): DrivetrainError where the log cannot be read."""

    def __init__(self, snapshot: Snapshot, live: Live, run_folder: Path) -> None:
        self.snapshot = snapshot
        """What a new worker starts from."""
        self.live = live
        """What `snapshot` was loaded for."""
        self._run_folder = run_folder
        self._watch = live_watch(snapshot.environment, snapshot.data_folder, run_folder)
        self._seen = self.newest
        self._due_s: float | None = 0.0
        """When what is live is loaded here; None: it is."""
        self._watched = True
        """Whether the canary's watcher showed life, as it was told."""
        self._refused: set[str] = set()
        """Records that do not count, as they were told."""
        if self.newest.release == live.release:
            self.live, self._due_s = self.newest, None
        self._tell_refused()

    @property
    def newest(self) -> Live:
        """What is live by the last look."""
        return self._watch.live

    def look(self, now_s: float) -> bool:
        """Whether `snapshot` became another. Blocks while one is loaded that a worker serves already."""
        self._watch.look()
        self._tell_watched()
        if self.newest != self._seen:
            self._seen = self.newest
            self._tell_refused()
            self._due_s = now_s + SETTLED_S
        if self._due_s is None or now_s < self._due_s:
            return False
        before, live = self.snapshot, self.newest
        self._due_s = None
        if live.release != self.live.release and all(
            one.release != live.release for one in served_by(self._run_folder)
        ):
            self._due_s = now_s + SETTLED_S  # no worker serves it: it might hang here, or is not what it is said to be
            return False
        if live.snapshot and live.snapshot != before.hash:
            try:
                self.snapshot = load_release(before.root, live)
            except DrivetrainError as error:
                print(f"drivetrain: workers that are replaced start from the old Snapshot.\n{error}", file=sys.stderr)
                return False
            unload(before)  # workers have their own
        self.live = live
        return self.snapshot is not before

    def keeps_folder_out(self) -> bool:
        """Whether a Release is live, so that the project's folder is not loaded; told where it is."""
        self._watch.look()
        if not self.newest.release:
            return False
        print(
            f"drivetrain: Release {self.newest.release} is live, so the project's folder is not loaded. `drivetrain "
            "plan` shows how it differs, `drivetrain propose` is its way to get live.",
            file=sys.stderr,
        )
        return True

    def use(self, snapshot: Snapshot) -> None:
        """The project's folder was loaded anew."""
        self.snapshot = snapshot

    def let_go(self) -> None:
        """Before a fork."""
        self._watch.let_go()

    def _tell_watched(self) -> None:
        watched, active = self._watch.watched, self.newest.active
        if watched == self._watched:
            return
        self._watched = watched
        if active is not None and not watched:
            print(
                f"drivetrain: the canary's watcher has shown no life for {UNWATCHED_S:.0f} s, so what is live answers "
                f"everybody until it does; Release {active.release} stays in stage {active.stage}.",
                file=sys.stderr,
            )
        elif active is not None:
            print(f"drivetrain: the canary of Release {active.release} is watched again", file=sys.stderr)

    def _tell_refused(self) -> None:
        for one in self.newest.refused:
            if one not in self._refused:
                print(f"drivetrain: a record of a Release does not count: {one}", file=sys.stderr)
        self._refused = set(self.newest.refused)
