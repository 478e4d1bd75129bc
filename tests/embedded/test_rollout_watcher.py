"""The watcher of a canary: what stands in the ledger decides, a restart loses nothing, and people may steer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivetrain.core.calls import Attribution, ClosedV1, OpenedV1, OutcomeV1, Stored
from drivetrain.core.ids import call_ids
from drivetrain.core.releases import (
    GuardV1,
    RolloutV1,
    StageV1,
)
from drivetrain.embedded.modelling import reports_in
from drivetrain.embedded.releasing import ReleasePlace, live_of, state_of
from drivetrain.embedded.rollouts import steer, told_by
from drivetrain.embedded.upkeep import Upkeep
from drivetrain.embedded.watching import Watching
from support.records import write
from support.rollouts import CANDIDATE, LIVE, placed, release

STAGES = (StageV1(share_ppm=200_000, minutes=60, units=20), StageV1(share_ppm=500_000, minutes=60, units=20))
ERRORS = (GuardV1(watch="errors"),)
NEXT_ID = call_ids(time.time_ns)


@pytest.fixture
def place(tmp_path: Path) -> ReleasePlace:
    """Release 1 is live; its records are all that there is of it."""
    return placed(tmp_path)


def canary(place: ReleasePlace, guards: tuple[GuardV1, ...] = ERRORS) -> None:
    release(place, CANDIDATE, RolloutV1(id="0" * 16, stages=STAGES, guards=guards))


def traffic(count: int, *, failing: bool) -> Iterator[Stored]:
    """One Call of five is the candidate's; failing: half of those fail."""
    for number in range(count):
        candidate = number % 5 == 0
        call_id, now_ns = NEXT_ID(), time.time_ns()
        snapshot = (CANDIDATE if candidate else LIVE)[:16]
        user = Attribution(user=f"u{number}")
        yield OpenedV1(call_id, now_ns, snapshot, "triage", "chat", False, user)
        bad = failing and number % 10 == 0
        status, http = ("failed", 502) if bad else ("answered", 200)
        yield ClosedV1(call_id, now_ns + 1_000_000, status, http, "small", 1_000)


def test_a_regression_is_rolled_back_and_reported(place: ReleasePlace) -> None:
    canary(place)
    watching = Watching(place)
    assert watching.look()
    write(place.data_folder, *traffic(100, failing=False))
    assert watching.look()
    run_folder = place.data_folder / "run"
    told = told_by(run_folder)
    assert told is not None
    assert (told.standing.calls_live, told.standing.calls_candidate) == (80, 20)
    assert time.time() - (run_folder / "rollout.beat").stat().st_mtime < 60
    write(place.data_folder, *traffic(300, failing=True))
    assert watching.look()  # it decides
    assert not watching.look()
    watching.close()
    state = state_of(place)
    assert state.live.active is None
    assert state.live.snapshot == LIVE
    _, event = state.releases[2].events[-1]
    assert (event.event, event.by, event.guard) == ("aborted", "guards", "errors")
    (stored,) = reports_in(place.data_folder, place.keys_folder).list("rollout")
    assert stored.report.subject == f"release:{place.environment}@2"
    assert stored.report.verdict == event.verdict
    assert stored.report.facts["guard"] == "errors"


def test_another_watcher_knows_what_the_one_before_knew_also_what_was_rolled_away(place: ReleasePlace) -> None:
    canary(place, (GuardV1(watch="errors"), GuardV1(watch="outcome", metric="solved")))
    first = Watching(place)
    made = list(traffic(50, failing=False))
    write(place.data_folder, *made)
    truths = [
        OutcomeV1(one.call_id, "solved", "desk", True, one.opened_ns, time.time_ns())
        for one in made
        if isinstance(one, OpenedV1)
    ]
    write(place.data_folder, *truths)
    first.look()
    before = told_by(place.data_folder / "run")
    assert before is not None
    # Without `close`: it was killed.
    second = Watching(place)
    second.look()
    after = told_by(place.data_folder / "run")
    assert after is not None
    assert after.standing.findings == before.standing.findings

    Upkeep(place.root).roller().roll()
    for segment in (place.data_folder / "calls").glob("*.seg"):
        segment.unlink()
    write(place.data_folder, *traffic(10, failing=False))
    third = Watching(place)
    third.look()
    last = told_by(place.data_folder / "run")
    assert last is not None
    assert (last.standing.calls_live, last.standing.calls_candidate) == (48, 12)
    solved = last.standing.findings[1]
    assert (solved.guard, solved.comparison.calls_live, solved.comparison.live) == ("outcome:solved", 40, 1.0)


def test_the_next_stage_begins_with_no_evidence(place: ReleasePlace) -> None:
    canary(place)
    watching = Watching(place)
    write(place.data_folder, *traffic(100, failing=False))
    watching.look()
    steer(place, "stage", "looks good")
    write(place.data_folder, *traffic(10, failing=False))
    watching.look()
    told = told_by(place.data_folder / "run")
    assert told is not None
    assert (told.standing.stage, told.standing.calls_live) == (1, 8)
    steer(place, "stage", "enough")
    assert not watching.look()
    watching.close()
    live = live_of(place.root)
    assert (live.release, live.snapshot) == (2, CANDIDATE)
    (stored,) = reports_in(place.data_folder, place.keys_folder).list("rollout")
    assert stored.report.facts["ended"] == "completed"


def test_where_its_decision_cannot_be_written_it_shows_no_life(
    place: ReleasePlace, capsys: pytest.CaptureFixture[str]
) -> None:
    canary(place)
    watching = Watching(place)
    watching.look()
    beat = place.data_folder / "run" / "rollout.beat"
    write(place.data_folder, *traffic(300, failing=True))
    anchor = place.keys_folder / "control.anchor"
    kept = anchor.read_bytes()
    anchor.unlink()  # the log takes nothing more
    watching.look()
    beat.unlink()
    watching.look()
    assert not beat.exists()
    assert capsys.readouterr().err.count("was not taken") == 1
    anchor.write_bytes(kept)
    watching.look()
    assert live_of(place.root).active is None


def drivetrain(place: ReleasePlace, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "drivetrain.cli.main", "rollout", *arguments, "--project", str(place.root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.slow
def test_people_see_and_steer_it(place: ReleasePlace) -> None:
    assert "No rollout is under way" in drivetrain(place, "status").stdout
    assert "No rollout is under way" in drivetrain(place, "pause", "--reason", "x").stderr
    canary(place)
    write(place.data_folder, *traffic(20, failing=False))
    told = drivetrain(place, "status", "--json")
    found = json.loads(told.stdout)
    assert (found["stage"], found["share"], found["watched"]) == (0, 0.2, False)
    assert found["calls"] == {"live": 16, "candidate": 4}
    assert found["guards"][0]["guard"] == "errors"
    assert found["waits"][1] == "evidence: the candidate arm has seen 4 of 20 units"
    page = drivetrain(place, "status")
    assert "stage 1 of 2, 20 % of the units" in page.stdout
    assert "no watcher shows life" in page.stderr
    refused = drivetrain(place, "pause")
    assert refused.returncode == 1
    assert "--reason" in refused.stderr
    assert drivetrain(place, "pause", "--reason", "lunch").returncode == 0
    assert drivetrain(place, "pause", "--reason", "again").returncode == 1
    active = live_of(place.root).active
    assert active is not None
    assert active.paused
    assert drivetrain(place, "resume", "--reason", "back").returncode == 0
    assert "in stage 2, 50 %" in drivetrain(place, "advance", "--reason", "fine").stdout
    assert drivetrain(place, "abort", "--reason", "a caller complained").returncode == 0
    assert live_of(place.root).snapshot == LIVE
    assert "a caller complained" in drivetrain(place, "status").stdout
    (stored,) = reports_in(place.data_folder, place.keys_folder).list("rollout")
    assert stored.report.facts["ended"] == "aborted"


def started(place: ReleasePlace) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "drivetrain.embedded.watching", "--project", str(place.root)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    beat = place.data_folder / "run" / "rollout.beat"
    until_s = time.monotonic() + 100
    while not beat.exists():
        assert time.monotonic() < until_s
        assert process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.slow
def test_the_process_rolls_back_and_ends_with_the_rollout(place: ReleasePlace) -> None:
    canary(place)
    process = started(place)
    try:
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 10
        write(place.data_folder, *traffic(300, failing=True))
        assert process.wait(100) == 0
        assert live_of(place.root).active is None
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_process_ends_on_a_signal_and_with_its_parent(place: ReleasePlace) -> None:
    canary(place)
    process = started(place)
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 0
    assert live_of(place.root).active is not None
    (place.data_folder / "run" / "rollout.beat").unlink()
    module = ["-m", "drivetrain.embedded.watching", "--project", str(place.root)]
    script = (
        f"import subprocess, sys, time; made = subprocess.Popen([sys.executable, *{module!r}]); "
        "print(made.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    until_s = time.monotonic() + 100
    while not (place.data_folder / "run" / "rollout.beat").exists():
        assert time.monotonic() < until_s
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < until_s
        time.sleep(0.05)
