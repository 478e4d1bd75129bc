"""The watcher of a canary: a process of its own that reads the ledger and goes on or back by itself.

`python -m drivetrain.embedded.watching --project ROOT`. Owns when the ledger and the control log are read, where what
it sees is told, and when the process ends: with its parent, on a signal, or once no rollout is under way. What is
decided, and why, is `promotion/watching.py`. It may be killed at any moment: the next one reads the stage's Calls anew
from the ledger and the lake, and while there is none for half a minute, live answers everybody. A restart of the
gateway, however it ended, is no evidence against a candidate, though it cuts Calls.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from drivetrain.adapters.sqlite_control_feed import open_control_feed
from drivetrain.core.calls import Call
from drivetrain.core.errors import DrivetrainError, report_fault
from drivetrain.core.releases import RELEASE_KINDS, ActiveRollout, RolloutEventV1
from drivetrain.core.times import NS_PER_S
from drivetrain.embedded.live_watch import BEAT
from drivetrain.embedded.releasing import ReleasePlace, place_of
from drivetrain.embedded.rollouts import STANDING, Told, catch_up, feed, store_reports, told_by
from drivetrain.embedded.serving import served_by
from drivetrain.ledger.following import Follower
from drivetrain.promotion.counting import GUARDS
from drivetrain.promotion.rollouts import record_event
from drivetrain.promotion.standing import State
from drivetrain.promotion.state import read
from drivetrain.promotion.watching import Step, Watch

LOOK_S = 1.0
NICE = 10
"""Whoever serves goes first."""
READING_S = 300.0
"""So long after the last whole look a watcher that reads the stage anew counts as life: some millions of Calls."""


class Watching:
    """Follows one environment's rollouts, one look at a time."""

    def __init__(self, place: ReleasePlace, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._place = place
        self._now_ns = now_ns
        self._run_folder = place.data_folder / "run"
        self._run_folder.mkdir(parents=True, exist_ok=True)
        self._feed = open_control_feed(place.data_folder)
        self._follower: Follower | None = None
        self._watch: Watch | None = None
        self._cut: list[Call] = []
        """Calls whose process ended before they did, by the last look. They count at the next one: whatever ended the
        whole gateway has ended this process by then."""
        self._unwritten = ""
        """Why the last decision is not in the log."""
        self._torn = ""
        """Why some workers do not have the candidate, as it was told."""

    def look(self) -> bool:
        """One look; False once no rollout is under way. Raises: DrivetrainError where the log cannot be used."""
        if self._feed.changed():
            self._renew(read(self._feed.read(RELEASE_KINDS), self._place.environment))
        watch = self._watch
        if watch is None:
            return False
        if self._follower is not None:
            cut, self._cut = self._cut, []
            feed(watch, cut)
            feed(watch, self._follower.new(), cut=self._cut)
            if self._follower.lost:
                watch = self._begin(watch.active, watch.live)
        now_ns = self._now_ns()
        step = watch.look(now_ns)
        told = Told(
            release=watch.active.release, at_ns=now_ns, paused=watch.active.paused, standing=watch.standing(now_ns)
        )
        self._tell(told)
        if step is not None:
            self._decide(watch.active, step)
        self._beat()  # once it has done all that a watcher does
        return True

    def close(self) -> None:
        """Stores the Report of a rollout that ended, and lets the log go."""
        try:
            if self._feed.changed():
                self._renew(read(self._feed.read(RELEASE_KINDS), self._place.environment))
        finally:
            self._feed.close()
            (self._run_folder / STANDING).unlink(missing_ok=True)

    def _renew(self, state: State) -> None:
        """The log says something else."""
        self._unwritten = ""
        store_reports(self._place, state, self._now_ns())
        active = state.live.active
        before = self._watch
        if active is None:
            self._watch = self._follower = None
        elif before is not None and same_stage(before.active, active):
            before.active = active
        elif self._follower is None:
            self._begin(active, state.live.snapshot)
        else:
            self._watch = Watch(active, state.live.snapshot)

    def _begin(self, active: ActiveRollout, live: str) -> Watch:
        """With all that the ledger and the lake have of the stage."""
        watch = self._watch = Watch(active, live)
        self._cut = []
        self._follower = Follower(self._place.data_folder, active.stage_ns, self._breathe)
        catch_up(self._place, watch, self._follower)
        return watch

    def _decide(self, active: ActiveRollout, step: Step) -> None:
        event = RolloutEventV1(
            environment=self._place.environment, release=active.release, event=step.event, stage=step.stage, by=GUARDS,
            guard=step.guard, verdict=step.verdict, evidence=step.evidence,
        )  # fmt: skip
        try:
            record_event(self._place.log(), self._place.environment, event)
        except DrivetrainError as error:
            # Somebody else decided meanwhile, which the next look sees, or the log takes nothing.
            if str(error) != self._unwritten:
                print(f"drivetrain: the watcher's decision was not taken. {error}", file=sys.stderr)
            self._unwritten = str(error)
            return
        print(f"drivetrain: Release {active.release}: {step.verdict}", file=sys.stderr)

    def _beat(self) -> None:
        """Not while a decision cannot be written, or the candidate serves by halves: then live answers everybody soon,
        which harms nobody."""
        if not self._unwritten and not self._is_torn():
            (self._run_folder / BEAT).touch()

    def _breathe(self) -> None:
        """While much is read. Who fails after it at each start takes its last look away, and so shows no life."""
        told = told_by(self._run_folder)
        if told is not None and abs(self._now_ns() - told.at_ns) < READING_S * NS_PER_S:
            self._beat()

    def _is_torn(self) -> bool:
        """Whether some workers have the candidate and others cannot load it: a user would see both arms."""
        if self._watch is None:
            return False
        release = self._watch.active.release
        having = {bool(one.candidate_snapshot): one for one in served_by(self._run_folder) if one.candidate == release}
        why = having[False].failed if len(having) == len((True, False)) else ""
        if why and why != self._torn:
            print(f"drivetrain: not every worker has the candidate, so live answers soon. {why}", file=sys.stderr)
        self._torn = why
        return bool(why)

    def _tell(self, told: Told) -> None:
        made = self._run_folder / f".{STANDING}.tmp"
        with contextlib.suppress(OSError):  # on a full disk a decision to go back must be tried all the same
            made.write_bytes(msgspec.json.encode(told))
            made.replace(self._run_folder / STANDING)


def same_stage(one: ActiveRollout, other: ActiveRollout) -> bool:
    """Whether they differ at most in a pause."""
    return (one.release, one.rollout.id, one.stage, one.stage_ns) == (
        other.release, other.rollout.id, other.stage, other.stage_ns,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """The process; its exit code."""
    parser = argparse.ArgumentParser(prog="drivetrain.embedded.watching")
    parser.add_argument("--project", type=Path, required=True)
    options = parser.parse_args(arguments)
    parent = os.getppid()
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    os.setpriority(os.PRIO_PROCESS, 0, NICE)
    try:
        watching = Watching(place_of(options.project))
    except DrivetrainError as error:
        print(f"drivetrain: the watcher: {error}", file=sys.stderr)
        return 1
    return run(watching, stop, lambda: os.getppid() == parent)


def run(watching: Watching, stop: threading.Event, has_parent: Callable[[], bool]) -> int:
    """Looks every second until there is nothing to watch; the exit code."""
    try:
        while not stop.is_set() and has_parent() and watching.look():
            stop.wait(LOOK_S)
    except DrivetrainError as error:
        print(f"drivetrain: the watcher: {error}", file=sys.stderr)
        return 1
    except Exception as fault:  # noqa: BLE001  at the edge of the process; its parent starts another
        report_fault("the watcher", fault)
        return 1
    finally:
        try:
            watching.close()
        except DrivetrainError as error:
            print(f"drivetrain: the watcher: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
