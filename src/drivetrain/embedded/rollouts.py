"""A rollout that is under way, wired: how it stands, what people do to it, and the Report of one that has ended.

Used by the watcher's process, by the commands and by programs. What is decided by evidence is `promotion/watching.py`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from drivetrain.core.calls import INTERRUPTED, Call, OutcomeV1
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import ActiveRollout, RolloutEventV1
from drivetrain.embedded.promoting import desk_of
from drivetrain.embedded.releasing import ReleasePlace
from drivetrain.ledger.following import Follower
from drivetrain.promotion.rollout_report import ended_rollouts, rollout_report
from drivetrain.promotion.standing import Released, State
from drivetrain.promotion.state import after
from drivetrain.promotion.watching import Standing, Watch
from drivetrain.promotion.writing import Written, name_of, write

STANDING = "rollout.json"
"""In the run folder: how the stage stands, for whoever asks, written with each look."""
FRESH_NS = 5_000_000_000
"""What the watcher showed longer ago is computed anew, from the ledger."""
REPORTS_RECENT_NS = 3_600_000_000_000
"""Rollouts that ended so long ago had a watcher or a command that stored their Report."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What the watcher shows of itself in the run folder."""

    release: int
    at_ns: int
    paused: bool
    standing: Standing


def steer(
    place: ReleasePlace, event: str, reason: str, key: Path | None = None, *, stage: int | None = None
) -> Written[RolloutEventV1]:
    """Somebody pauses, resumes, aborts or advances the rollout that is under way; what was written last.

    event: `paused`, `resumed`, `aborted`, or `stage` for the next stage, behind the last of which it is completed.
    key: the file of their private key. stage: of `stage`: the one to begin, from 0; each between is begun and recorded
    as well. Raises: DrivetrainError where none is under way, where another stage began while this was written, where a
    guard is broken, where the stage is not ahead, or where they may not.
    """
    assert stage is None or event == "stage"
    if not reason.strip():
        raise DrivetrainError("Whoever steers a rollout says why.", do="Add `--reason`.")
    desk = desk_of(place, key)
    meant: ActiveRollout | None = None

    def make(state: State) -> RolloutEventV1:
        nonlocal meant
        active = state.live.active
        if active is None:
            raise DrivetrainError(
                f"No rollout is under way in `{place.environment}`.", do="`drivetrain history` tells what was."
            )
        if meant is None and event == "stage":
            _refuse_advance(place, state, active, stage)
        meant = meant or active
        if active.release != meant.release or (event == "stage" and active.stage != meant.stage):
            raise DrivetrainError(
                f"Stage {active.stage + 1} of Release {active.release} began just now, so no other was begun.",
                do="Look at `drivetrain rollout status`, and decide anew.",
            )
        last = active.stage + 1 >= len(active.rollout.stages)
        what = "completed" if event == "stage" and last else event
        return RolloutEventV1(
            environment=place.environment, release=active.release, event=what,
            stage=active.stage + 1 if what == "stage" else active.stage, by=name_of(desk, state.live.rules),
            verdict=reason.strip(), rollout=active.rollout.id,
        )  # fmt: skip

    written = write(desk, make)
    while stage is not None and written.body.stage < stage:
        meant = after(written.before, written.record).live.active
        written = write(desk, make)
    if written.body.event in ("aborted", "completed"):
        store_reports(place, after(written.before, written.record), time.time_ns())
    return written


def _refuse_advance(place: ReleasePlace, state: State, active: ActiveRollout, stage: int | None) -> None:
    """Raises: DrivetrainError where nobody may go on now, or not to that stage."""
    stages = len(active.rollout.stages)
    if stage is not None and not active.stage < stage < stages:
        if stage >= stages:
            raise DrivetrainError(
                f"There is no stage {stage + 1}: the rollout of Release {active.release} has {stages}.",
                do="`drivetrain rollout advance` without `--stage` goes on, behind the last one to everybody.",
            )
        if stage == active.stage:
            raise DrivetrainError(f"Stage {stage + 1} of Release {active.release} is under way, so nothing was done.")
        raise DrivetrainError(
            f"Stage {active.stage + 1} of Release {active.release} is under way, so stage {stage + 1} cannot begin: "
            "whoever has the candidate keeps it, so a share never shrinks.",
            do="`drivetrain rollout pause` stays here, `drivetrain rollout abort` gives everybody back.",
        )
    standing, _ = newest_standing(place, state, active, time.time_ns())
    broken = [one for one in standing.findings if one.is_broken]
    if broken:
        why = broken[0].sentence(active.rollout.level)
        raise DrivetrainError(
            f"Nobody goes on from stage {active.stage + 1} of Release {active.release}. {why}",
            do="`drivetrain rollout abort` gives everybody back; where the watcher lives, it does.",
        )


def newest_standing(place: ReleasePlace, state: State, active: ActiveRollout, now_ns: int) -> tuple[Standing, int]:
    """How the rollout under way stands, and when a watcher saw it so; 0: none did lately, so it is computed here."""
    told = told_by(place.data_folder / "run")
    if told is not None and (told.release, told.standing.stage) == (active.release, active.stage):
        is_fresh = abs(now_ns - told.at_ns) <= FRESH_NS  # what stands in the future is of a clock that was put back
        if is_fresh:
            return told.standing, told.at_ns
    found = standing_of(place, state, now_ns)
    assert found is not None  # it is under way
    return found, 0


def standing_of(place: ReleasePlace, state: State, now_ns: int) -> Standing | None:
    """How the rollout that is under way stands, computed here and now; None where none is."""
    active = state.live.active
    if active is None:
        return None
    watch = Watch(active, state.live.snapshot)
    catch_up(place, watch, Follower(place.data_folder, active.stage_ns))
    return watch.standing(now_ns)


def told_by(run_folder: Path) -> Told | None:
    """What a watcher that lives has shown last; None where there is none."""
    try:
        return msgspec.json.decode((run_folder / STANDING).read_bytes(), type=Told)
    except (OSError, msgspec.MsgspecError):
        return None


def feed(
    watch: Watch, found: Iterable[Call | OutcomeV1], seen: set[str] | None = None, cut: list[Call] | None = None
) -> None:
    """What the ledger has, into the watch. seen: takes the ids of its Calls. cut: takes those whose process ended
    before they did, which the watch then does not see."""
    for one in found:
        if isinstance(one, Call):
            if cut is not None and one.status == INTERRUPTED:
                cut.append(one)
                continue
            watch.see(one)
            if seen is not None:
                seen.add(one.call_id)
        elif watch.wants_outcomes:
            watch.see_outcome(
                metric=one.metric, value=one.value, arrived_ns=one.arrived_ns, call_id=one.call_id,
                workflow=one.workflow, business_key=one.business_key,
            )  # fmt: skip


def catch_up(place: ReleasePlace, watch: Watch, follower: Follower) -> None:
    """All of the stage so far: from the segments, and what was rolled since it began, from the lake.

    But for Calls whose process ended before they did: who did not see it end cannot tell whether one of them was the
    cause, or whether the gateway was ended with all that it ran.
    """
    from drivetrain.lake import plans

    seen: set[str] = set()
    until_ns = time.time_ns()
    feed(watch, follower.new(), seen, [])
    newest = plans.newest(place.data_folder)
    if newest is None or newest.made_ns < watch.active.stage_ns:
        return
    from drivetrain.embedded.asking import lake_in, settings_of
    from drivetrain.lake.calls import Calls, Wanted

    settings = settings_of(place.root, {**os.environ, "DRIVETRAIN_ENV": place.environment})
    lake = lake_in(place.root, place.data_folder, place.keys_folder, settings.lake)
    for name in watch.active.workflows:
        wanted = Wanted(since_ns=watch.active.stage_ns, until_ns=until_ns, workflow=name)
        for call in Calls(lake).calls(wanted, outcomes=watch.wants_outcomes, payloads=False):
            if call.closed_ns and call.closed_ns <= until_ns and call.call_id not in seen:
                watch.see(call)
            elif watch.wants_outcomes:
                for truth in call.outcomes:
                    watch.see_outcome(
                        metric=truth.metric, value=truth.value, arrived_ns=truth.arrived_ns, call_id=call.call_id
                    )


def store_reports(place: ReleasePlace, state: State, now_ns: int) -> list[str]:
    """Keeps the Reports of rollouts that ended lately; their ids. One that is kept already changes nothing."""
    lately = [one for one in ended_rollouts(state) if _ended_ns(one) > now_ns - REPORTS_RECENT_NS]
    if not lately:
        return []
    from drivetrain.embedded.modelling import reports_in

    reports = reports_in(place.data_folder, place.keys_folder)
    made = [rollout_report(state, one.release.number) for one in lately]
    return [reports.put(one) for one in made if one is not None]


def _ended_ns(one: Released) -> int:
    return max(one.until_ns, one.since_ns)
