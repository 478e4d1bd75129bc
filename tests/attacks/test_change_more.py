"""Rollouts with odd truths, records that go away, people and watchers at once, persons who are to be forgotten."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drivetrain.adapters.files import FileVault
from drivetrain.adapters.sqlite import SqliteControlLog
from drivetrain.core.calls import Attribution, ClosedV1, OpenedV1, OutcomeV1, Stored
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.ids import call_ids
from drivetrain.core.releases import (
    GuardV1,
    RolloutEventV1,
    RolloutV1,
    StageV1,
)
from drivetrain.embedded.asking import lake_for
from drivetrain.embedded.releasing import ReleasePlace, live_of, state_of
from drivetrain.embedded.rollouts import feed, steer, told_by
from drivetrain.embedded.serving import Served, served_by, tell
from drivetrain.embedded.starting import to_serve
from drivetrain.embedded.upkeep import Upkeep
from drivetrain.embedded.watching import Watching
from drivetrain.evals.run_files import Kept
from drivetrain.lake.calls import Calls
from drivetrain.ledger.following import Follower
from drivetrain.ports.control import ControlRecord
from drivetrain.project.load import load, unload
from drivetrain.promotion.rollouts import record_event
from drivetrain.promotion.watching import Watch
from promises.promise_gateway import Gateway, eventually, gateway
from promotion.shop import Shop
from support import wire
from support.projects import model, provider, settings
from support.records import put, write
from support.releases import Releases
from support.rollouts import CANDIDATE, LIVE, placed, release
from support.upstream import Asked, Upstream, Wire, completion, http

STAGES = tuple(StageV1(share_ppm=share, minutes=60, units=20) for share in (200_000, 500_000, 800_000))
SOLVED = (GuardV1(watch="outcome", metric="solved"),)
NEXT_ID = call_ids(time.time_ns)


@pytest.fixture
def place(tmp_path: Path) -> ReleasePlace:
    """Release 1 is live; its records are all that there is of it."""
    return placed(tmp_path)


def canary(place: ReleasePlace, *guards: GuardV1) -> None:
    """Release 2 is rolled out beside it."""
    release(place, CANDIDATE, RolloutV1(id="0" * 16, stages=STAGES, guards=guards or (GuardV1(watch="errors"),)))


def traffic(count: int, *, failing: bool = False) -> Iterator[Stored]:
    """One Call of two is the candidate's; failing: half of those fail."""
    for number in range(count):
        call_id, now_ns = NEXT_ID(), time.time_ns()
        snapshot = (LIVE if number % 2 else CANDIDATE)[:16]
        yield OpenedV1(call_id, now_ns, snapshot, "triage", "chat", False, Attribution(user=f"u{number}"))
        status, http = ("failed", 502) if failing and number % 4 == 0 else ("answered", 200)
        yield ClosedV1(call_id, now_ns + 1_000_000, status, http, "small", 1_000)


def truth(call_id: str, value: float, metric: str = "solved") -> OutcomeV1:
    now_ns = time.time_ns()
    return OutcomeV1(call_id, metric, "desk", value, now_ns, now_ns)


@pytest.mark.parametrize("odd", [1e60, -1e160, 1.7e308])
def test_an_outcome_without_measure_neither_ends_the_watching_nor_blinds_it(place: ReleasePlace, odd: float) -> None:
    canary(place, *SOLVED)
    made = list(traffic(400))
    write(place.data_folder, *made)
    calls = [(one.call_id, one.snapshot == CANDIDATE[:16]) for one in made if isinstance(one, OpenedV1)]
    watching = Watching(place)
    assert watching.look()
    write(place.data_folder, truth(calls[-1][0], odd))
    assert watching.look()
    assert (place.data_folder / "run/rollout.beat").exists()
    write(place.data_folder, truth(calls[-1][0], 1.0))  # it was corrected
    assert watching.look()
    # Three of ten of the candidate's are solved, and nine of ten of the live ones.
    solved = [float(number // 2 % 10 < (3 if candidates else 9)) for number, (_, candidates) in enumerate(calls)]
    write(place.data_folder, *(truth(call_id, value) for (call_id, _), value in zip(calls, solved, strict=True)))
    assert watching.look()
    assert not watching.look()
    _, event = state_of(place).releases[2].events[-1]
    assert (event.event, event.guard) == ("aborted", "outcome:solved")
    assert event.evidence["live"] == pytest.approx(0.9, abs=1e-3)
    assert event.evidence["candidate"] == pytest.approx(0.3, abs=1e-3)


def test_outcomes_that_no_guard_looks_at_are_not_kept(place: ReleasePlace) -> None:
    canary(place, *SOLVED)
    live = live_of(place.root)
    assert live.active is not None
    watch = Watch(live.active, live.snapshot)
    made = list(traffic(20))
    ids = [one.call_id for one in made if isinstance(one, OpenedV1)]
    write(place.data_folder, *made)
    follower = Follower(place.data_folder, live.active.stage_ns)
    feed(watch, follower.new())
    tracemalloc.start()
    try:
        for metric in range(5_000):
            watch.see_outcome(metric=f"other-{metric}", value=1.0, arrived_ns=1, call_id=ids[metric % 20])
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 50_000


def test_a_watcher_that_reads_much_and_fails_at_each_start_is_no_watcher(place: ReleasePlace) -> None:
    canary(place)
    write(place.data_folder, *traffic(2_500, failing=True))

    times = iter([time.time_ns()])

    def no_clock() -> int:
        """Fails once all was read."""
        for now_ns in times:
            return now_ns
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        Watching(place, now_ns=no_clock).look()
    assert not (place.data_folder / "run/rollout.beat").exists(), "it decided nothing of what it read"


def test_what_is_rolled_and_erased_between_two_looks_is_seen(place: ReleasePlace) -> None:
    canary(place)
    first, second = list(traffic(40)), list(traffic(60))
    journal = write(place.data_folder, *first, *list(traffic(2))[:3], keep_open=True)  # the last one runs
    watching = Watching(place)
    assert watching.look()
    put(journal, *second)
    journal.close()
    Upkeep(place.root).roller().roll()
    for segment in (place.data_folder / "calls").glob("*.seg"):
        segment.unlink()
    assert watching.look()
    told = told_by(place.data_folder / "run")
    assert told is not None
    assert (told.standing.calls_live, told.standing.calls_candidate) == (50, 51)
    write(place.data_folder, *traffic(10))
    assert watching.look()
    told = told_by(place.data_folder / "run")
    assert told is not None
    assert (told.standing.calls_live, told.standing.calls_candidate) == (55, 56), "each once"


def test_a_candidate_that_some_workers_lost_answers_nobody_soon(
    place: ReleasePlace, capsys: pytest.CaptureFixture[str]
) -> None:
    canary(place)
    watching, run_folder = Watching(place), place.data_folder / "run"

    def beats(*candidates: str) -> bool:
        """Whether the watcher shows life where workers serve these candidates."""
        for number, candidate in enumerate(candidates):
            told = Served(
                worker=f"w{number}-{os.getpid()}", release=1, snapshot=LIVE, candidate=2, candidate_snapshot=candidate,
                failed="" if candidate else "No stored Snapshot has this hash.", at_ns=time.time_ns(),
            )  # fmt: skip
            tell(run_folder, told)
        (run_folder / "rollout.beat").unlink(missing_ok=True)
        assert watching.look()
        return (run_folder / "rollout.beat").exists()

    assert beats(CANDIDATE, CANDIDATE)
    assert not beats(CANDIDATE, "")
    assert not beats(CANDIDATE, "")
    assert capsys.readouterr().err.count("No stored Snapshot has this hash") == 1
    assert beats(CANDIDATE, CANDIDATE), "it was restored"


def test_a_watcher_that_is_replaced_shows_life_while_it_reads_much(place: ReleasePlace) -> None:
    canary(place)
    write(place.data_folder, *traffic(1_500))
    assert Watching(place).look()
    beat = place.data_folder / "run/rollout.beat"
    beat.unlink()  # without `close`: it was killed
    seen: list[bool] = []

    def now_ns() -> int:
        seen.append(beat.exists())
        return time.time_ns()

    Watching(place, now_ns=now_ns).look()
    assert seen[-1], "before its first look has ended"


class Beaten(SqliteControlLog):
    """The watcher writes between a person's reading and their writing, once."""

    stage = 0

    def append_after(
        self, seq: int, *, kind: str, actor: str, subject: str, body: Mapping[str, Any]
    ) -> ControlRecord | None:
        if not self.stage:
            self.stage = 1
            event = RolloutEventV1(environment="default", release=2, event="stage", stage=1, by="guards")
            record_event(self, "default", event)
        return super().append_after(seq, kind=kind, actor=actor, subject=subject, body=body)


class BeatenPlace(ReleasePlace, frozen=True, kw_only=True):
    def log(self) -> SqliteControlLog:
        return Beaten(self.data_folder / "control.db", self.keys_folder)


def test_who_advances_while_the_watcher_does_skips_no_stage(place: ReleasePlace) -> None:
    canary(place)
    beaten = BeatenPlace(**msgspec.structs.asdict(place))
    with pytest.raises(DrivetrainError, match="Stage 2 of Release 2 began just now"):
        steer(beaten, "stage", "looks good")
    active = live_of(place.root).active
    assert active is not None
    assert active.stage == 1


def test_who_aborts_while_the_watcher_goes_on_aborts(place: ReleasePlace) -> None:
    canary(place)
    beaten = BeatenPlace(**msgspec.structs.asdict(place))
    assert steer(beaten, "aborted", "a caller complained").body.stage == 1
    assert live_of(place.root).active is None
    assert live_of(place.root).refused == ()


HER, HIM = "mary-4711", "bob-4712"
CODE = """\
import drivetrain as dt


class Ticket(dt.Record):
    text: str


class Route(dt.Record):
    intent: str
    note: str = ""


triage = dt.Workflow(
    "triage", input=Ticket, output=Route, owner="a@b.example", team="support", use_case="tests",
    route=[dt.Variant("model", model="raw/MODEL", max_output_tokens=64)],
)
edge = dt.Eval("edge", workflow="triage", dataset="edge-cases")
"""


@pytest.mark.slow
def test_nothing_of_who_was_erased_is_read_from_evals_upgrades_and_rollouts() -> None:
    def answer(asked: Asked, sent: Wire) -> None:
        whose = "her" if b"prompt-her" in asked.body else "his"
        sent.send(http(completion(json.dumps({"intent": "a", "note": f"answer-{whose}"}))))

    with Upstream() as upstream:
        upstream.on("/v1", answer)
        tables = provider("raw", f"{upstream.url}/v1") + "".join(model(f"raw/{name}") for name in "mno")
        files = {
            "drivetrain.toml": settings(ledger='retention = "full"\n', tables=tables),
            "workflows/triage.py": CODE.replace("MODEL", "m"),
        }
        with gateway(files) as served:
            releases = Releases(served.root)
            releases.release(releases.store({}).hash, ["triage"])
            candidate = releases.store({"workflows/triage.py": CODE.replace("MODEL", "n")}).hash
            served.write(files)
            releases.release(candidate, ["triage"], 0.5)
            releases.beat()
            assert eventually(lambda: [one.share_ppm for one in served_by(releases.run_folder)] == [500_000])
            hers = [told_call(served, HER, f"prompt-her-{number}") for number in range(4)]
            his = told_call(served, HIM, "prompt-his")
            releases.event("aborted")
            for one in (hers[0], his):
                served.command("eval", "add", one, "--expect", '{"intent": "a"}', "--to", "edge-cases")
            served.command("eval", "run", "edge")
            served.command("upgrade", "triage", "--candidate", "raw/o", "--rows", "20")
            before, opened = totals(served), readable(served)
            assert any("answer-her" in text for text in opened)
            served.command("erase", "--subject", HER, "--yes")
            left = readable(served)
            assert not [text for text in left if "prompt-her" in text or "answer-her" in text or HER in text]
            assert sum("answer-his" in text for text in left) == sum("answer-his" in text for text in opened)
            found = b"".join(one.read_bytes() for one in served.data_folder.rglob("*") if one.is_file())
            assert not [text for text in (HER, "prompt-her", "answer-her") if text.encode() in found]
            assert totals(served) == before
            assert "exact 100.0%" in served.command("eval", "show", "edge")
            assert {"eval", "upgrade"} <= set(served.command("report", "list").split())


def told_call(served: Gateway, user: str, text: str) -> str:
    """The id of a Call of somebody, the truth about it told."""
    header = f"x-drivetrain-user: {user}\r\n"
    answer = wire.one(served.port, wire.request({"text": text}, path="/v1/workflows/triage", headers=header))
    assert answer.status == 200, answer
    truth = [{"call_id": answer.json["call_id"], "metric": "intent", "value": "a"}]
    assert wire.one(served.port, wire.request(json.dumps(truth), path="/v1/outcomes")).status == 200
    return str(answer.json["call_id"])


def totals(served: Gateway) -> Any:
    return json.loads(served.command("cost", "--json"))["total"]["cost_nano_usd"]


def readable(served: Gateway) -> list[str]:
    """What the keys that are there still open: payloads of all Calls, and answers of evals and upgrades."""
    found: list[str] = []
    snapshot = load(served.root)
    vault = FileVault(snapshot.keys_folder)
    for call in Calls(lake_for(snapshot)).calls():
        found.append(call.attribution.user)
        for kind, sealed in (("request", call.request), ("answers", call.answers)):
            text = vault.open(call.call_id, kind, sealed) if sealed else None
            found += [text.decode(errors="replace")] if text else []
    for journal in (served.data_folder / "evals").rglob("*.journal"):
        for kept in Kept(journal).answers.values():
            said = vault.open(kept.row.call_id, "eval", kept.sealed)
            found += [said.decode(errors="replace")] if said else []
    vault.close()
    unload(snapshot)
    return found


@pytest.mark.slow
def test_a_promotion_that_is_killed_at_any_moment_is_whole_or_was_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    shop = Shop(tmp_path / "shop", capsys)
    shop.ok("propose", "--reason", "first")
    shop.ok("promote", "1")
    for number in range(5):
        shop.write("workflows/triage.j2", f"Sort {number}: {{{{ text }}}}\n")
        shop.ok("propose", "--reason", "another")
        before = state_of(shop.place)
        newest = max(before.proposals)
        command = [sys.executable, "-m", "drivetrain.cli.main", "promote", str(newest), "--project", str(shop.root)]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(dice.uniform(0.2, 1.0))
        running.kill()
        running.wait()
        live = live_of(shop.root)
        assert live.refused == ()
        assert live.release in (before.live.release, before.live.release + 1)
        starts = to_serve(shop.root)
        unload(starts.snapshot)
        assert starts.live == live
        if live.release == before.live.release:
            shop.ok("promote", str(newest))
    assert live_of(shop.root).release == 6
