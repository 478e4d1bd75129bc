"""Who takes a rollout on by hand: to which stage, never beyond a broken guard, never to a smaller share, on record."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from drivetrain.cli.rollout import app
from drivetrain.core.calls import Attribution, ClosedV1, OpenedV1, Stored
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.ids import call_ids
from drivetrain.core.releases import (
    PROMOTED,
    PROPOSED,
    GuardV1,
    PersonV1,
    ProposalV1,
    ReleaseV1,
    RolloutEventV1,
    RolloutV1,
    RulesV1,
    StageV1,
)
from drivetrain.embedded.modelling import reports_in
from drivetrain.embedded.releasing import ReleasePlace, live_of, state_of
from drivetrain.embedded.rollouts import steer
from drivetrain.embedded.watching import Watching
from drivetrain.promotion.rollouts import record_event
from support.records import write
from support.rollouts import BY, CANDIDATE, LIVE, placed, release

SHARES = (0, 50_000, 200_000, 500_000)
STAGES = tuple(StageV1(share_ppm=share, minutes=60, units=20, shadow_ppm=0 if share else 1_000_000) for share in SHARES)
NEXT_ID = call_ids(time.time_ns)


@pytest.fixture
def place(tmp_path: Path) -> ReleasePlace:
    """Release 2 is rolled out beside Release 1, in four stages, of which the first is a shadow."""
    found = placed(tmp_path)
    release(found, CANDIDATE, RolloutV1(id="0" * 16, stages=STAGES, guards=(GuardV1(watch="errors"),)))
    return found


def advance(place: ReleasePlace, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["advance", *arguments, "--project", str(place.root)])


def stage(place: ReleasePlace) -> int:
    active = live_of(place.root).active
    assert active is not None
    return active.stage


def traffic(count: int, *, failing: bool) -> Iterator[Stored]:
    """Half of the Calls are the candidate's; failing: half of those fail."""
    for number in range(count):
        call_id, now_ns = NEXT_ID(), time.time_ns()
        snapshot = (LIVE if number % 2 else CANDIDATE)[:16]
        yield OpenedV1(call_id, now_ns, snapshot, "triage", "chat", False, Attribution(user=f"u{number}"))
        status, http = ("failed", 502) if failing and number % 4 == 0 else ("answered", 200)
        yield ClosedV1(call_id, now_ns + 1_000_000, status, http, "small", 1_000)


def test_a_stage_is_named_and_each_step_to_it_is_on_record(place: ReleasePlace) -> None:
    done = advance(place, "--stage", "3", "-m", "it ran for a week elsewhere")
    assert done.exit_code == 0, done.output
    assert "is in stage 3, 20 % of the units" in done.output
    state = state_of(place)
    steps = [(one.event, one.stage, one.verdict) for _, one in state.releases[2].events]
    assert steps == [("stage", 1, "it ran for a week elsewhere"), ("stage", 2, "it ran for a week elsewhere")]
    assert not state.live.refused
    last = list(place.log().records())[-1]
    assert (last.kind, last.subject, last.actor) == ("rollout", "default/2", state.releases[2].events[-1][1].by)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("1", "whoever has the candidate keeps it"),
        ("2", "is under way"),
        ("5", "There is no stage 5"),
        ("0", "greater than or equal to 1"),
    ],
)
def test_a_stage_that_is_not_ahead_is_refused(place: ReleasePlace, wanted: str, told: str) -> None:
    assert advance(place, "-m", "on").exit_code == 0
    before = live_of(place.root)
    refused = advance(place, "--stage", wanted, "-m", "back")
    assert refused.exit_code != 0
    assert told in " ".join(refused.output.split())
    assert live_of(place.root) == before


def test_it_says_why_and_not_while_it_is_paused(place: ReleasePlace) -> None:
    assert "--reason" in advance(place, "--stage", "2").output
    steer(place, "paused", "lunch")
    refused = advance(place, "--stage", "2", "-m", "on")
    assert refused.exit_code == 1
    assert "it is paused" in refused.output
    assert stage(place) == 0


@pytest.mark.parametrize("watched", [True, False])
def test_nobody_goes_beyond_a_broken_guard(place: ReleasePlace, watched: bool) -> None:
    """Neither by what the watcher saw last, nor where none lives and the ledger alone tells."""
    assert advance(place, "--stage", "4", "-m", "on").exit_code == 0
    write(place.data_folder, *traffic(400, failing=True))
    if watched:
        anchor = place.keys_folder / "control.anchor"
        kept = anchor.read_bytes()
        watching = Watching(place)
        anchor.unlink()  # so its own decision is not taken
        watching.look()
        anchor.write_bytes(kept)
    for arguments in ((), ("--stage", "4")):
        assert advance(place, *arguments, "-m", "hurry").exit_code == 1
    refused = advance(place, "-m", "hurry")
    assert "Guard `errors`" in refused.output
    assert "rollout abort" in refused.output
    assert stage(place) == 3
    steer(place, "aborted", "it is worse")
    assert live_of(place.root).snapshot == LIVE


def test_behind_the_last_stage_the_release_is_live(place: ReleasePlace) -> None:
    assert advance(place, "--stage", "4", "-m", "on").exit_code == 0
    write(place.data_folder, *traffic(40, failing=False))
    done = advance(place, "-m", "all of them")
    assert "the Release is live" in done.output, done.output
    assert live_of(place.root).release == 2
    (stored,) = reports_in(place.data_folder, place.keys_folder).list("rollout")
    assert stored.report.facts["ended"] == "completed"
    assert [one["event"] for one in stored.report.body["events"]] == ["stage", "stage", "stage", "completed"]


def test_who_is_not_among_the_people_takes_nothing_on(tmp_path: Path) -> None:
    place = placed(tmp_path)
    rules = RulesV1(people=(PersonV1(name=BY),), gates=False)
    log, now = place.log(), state_of(place)
    for number, snapshot, rollout in ((2, "c" * 64, None), (3, CANDIDATE, RolloutV1(id="1" * 16, stages=STAGES))):
        proposal = ProposalV1(
            number=number, environment="default", snapshot=snapshot, base=now.live.release,
            base_snapshot=now.live.snapshot, by=BY, keys={"triage": "k"}, rules=rules,
            changes=now.proposals[1].proposal.changes,
        )  # fmt: skip
        made = ReleaseV1(
            number=number, environment="default", way="promote", snapshot=snapshot, previous=now.live.release, by=BY,
            proposal=number, proposal_hash=proposal.hash, workflows=("triage",), rollout=rollout,
        )  # fmt: skip
        for kind, body in ((PROPOSED, proposal), (PROMOTED, made)):
            log.append(kind=kind, actor=BY, subject=f"default/{number}", body=msgspec.to_builtins(body))
        now = state_of(place)
        assert not now.live.refused
    refused = advance(place, "--stage", "3", "-m", "let me")
    assert refused.exit_code == 1
    assert "is not among `[people]`" in refused.output
    # Nor by a record of its own.
    event = RolloutEventV1(environment="default", release=3, event="stage", stage=1, by="mallory", verdict="x")
    with pytest.raises(DrivetrainError, match=r"not among `\[people\]`"):
        record_event(place.log(), "default", event)
    log.append(kind="rollout", actor="mallory", subject="default/3", body=msgspec.to_builtins(event))
    skipping = msgspec.structs.replace(event, by=BY, stage=2)
    log.append(kind="rollout", actor=BY, subject="default/3", body=msgspec.to_builtins(skipping))
    live = live_of(place.root)
    assert len(live.refused) == 2
    assert "stage 2 does not follow stage 0" in live.refused[1]
    assert stage(place) == 0


def test_status_tells_what_became_of_copies(place: ReleasePlace) -> None:
    """As the gateway's workers and the shadow leave it in the run folder."""
    run = place.data_folder / "run"
    run.mkdir(exist_ok=True)
    for name, counted in (
        ("w0-1", {"triage\x00sent": 90, "triage\x00unsent": 10, "other\x00sent": 7}),
        ("w1-2", {"triage\x00sent": 10}),
        ("shadow-3", {"triage\x00answered": 50, "triage\x00late": 30, "triage\x00unaffordable": 5}),
    ):
        (run / f"{name}.metrics").write_bytes(msgspec.msgpack.encode({"shadow_copies": counted, "release": 1}))
    (run / "torn.metrics").write_bytes(b"\x81")
    command = ["status", "--project", str(place.root)]
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert found["copies"] == {
        "sent": 100, "unsent": 10, "answered": 50, "failed": 0, "refused": 0, "late": 30, "unaffordable": 5,
        "open": 15, "lost": 45,
    }  # fmt: skip
    page = CliRunner().invoke(app, command).stdout
    assert "45 lost: 10 too large, or not taken in time, 30 too many at once, 5 beyond the shadow's budget" in " ".join(
        page.split()
    )
