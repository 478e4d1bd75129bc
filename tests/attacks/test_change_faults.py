"""Clocks that jump, disks that are full, processes that are killed, names that are odd: while something is changed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from drivetrain.adapters.sqlite_control_feed import open_control_feed
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import PROMOTED, PROPOSED, ProposalV1, ReleaseV1
from drivetrain.embedded import promoting
from drivetrain.embedded.live_watch import UNWATCHED_S, LiveWatch
from drivetrain.embedded.releasing import live_of, place_of, state_of
from drivetrain.embedded.serving import served_by
from drivetrain.embedded.starting import to_serve
from drivetrain.embedded.watching import Watching
from drivetrain.gateway.arms import is_candidates
from drivetrain.project.load import unload
from drivetrain.simulator import SimulatorProcess
from promises.promise_gateway import chat_project, eventually, gateway, simulated
from promotion.shop import Shop
from support import wire
from support.projects import workflow
from support.releases import BY, ID, Releases

pytestmark = pytest.mark.slow

KILLED_BEFORE = """
import os, signal, sys
from drivetrain.adapters.sqlite import SqliteControlLog
from drivetrain.cli.main import main

def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(SqliteControlLog, sys.argv.pop(1), killed)
main()
"""
ROLLOUT = "    rollout=dt.Rollout(stages=[dt.Stage(share=0.1, minutes=5)]),\n    budget="


@pytest.fixture
def shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shop:
    """Release 1 is live."""
    made = Shop(tmp_path / "shop", capsys)
    made.ok("propose", "--reason", "first")
    made.ok("promote", "1")
    return made


@pytest.fixture
def canary(shop: Shop) -> Releases:
    """Release 2 is rolled out beside it."""
    releases = Releases(shop.root)
    shop.edit("workflows/triage.j2", "Sort", "Order")
    releases.release(releases.store({}).hash, ["triage"], 0.2)
    releases.run_folder.mkdir(parents=True, exist_ok=True)
    return releases


@pytest.mark.parametrize("put_back_s", [3600.0, UNWATCHED_S + 5])
def test_a_watcher_that_died_before_the_clock_was_put_back_is_missed(canary: Releases, put_back_s: float) -> None:
    canary.beat()
    now = [time.time()]
    feed = open_control_feed(canary.root / ".drivetrain/data")
    watch = LiveWatch("default", feed, canary.run_folder / "rollout.beat", now_s=lambda: now[0])
    assert watch.watched
    now[0] -= put_back_s
    assert watch.look()
    assert not watch.watched, "what stands in the future is no sign of life"
    os.utime(canary.run_folder / "rollout.beat", (now[0], now[0]))
    assert watch.look()
    assert watch.watched
    feed.close()


def test_a_watcher_that_cannot_tell_how_it_stands_still_decides(canary: Releases) -> None:
    place = place_of(canary.root)
    (canary.run_folder / ".rollout.json.tmp").mkdir()  # as on a full disk, nothing can be written there
    watching = Watching(place)
    assert watching.look()
    assert (canary.run_folder / "rollout.beat").exists()


def test_a_watcher_that_fails_at_each_start_is_no_watcher(canary: Releases) -> None:
    place = place_of(canary.root)

    def no_clock() -> int:
        raise OSError("no space left on device")

    for _ in range(3):
        with pytest.raises(OSError, match="no space"):
            Watching(place, now_ns=no_clock).look()
    assert not (canary.run_folder / "rollout.beat").exists(), "it decides nothing, and must not look as if it did"


@pytest.mark.parametrize(("before", "is_released"), [("append_after", False), ("_write_anchor", True)])
def test_a_promotion_that_is_killed_is_whole_or_was_not(shop: Shop, before: str, is_released: bool) -> None:
    shop.edit("workflows/triage.j2", "Sort", "Order")
    shop.ok("propose", "--reason", "second")
    command = [sys.executable, "-c", KILLED_BEFORE, before, "promote", "2", "--project", str(shop.root)]
    killed = subprocess.run(command, capture_output=True, timeout=200, check=False)
    assert killed.returncode == -signal.SIGKILL, killed
    assert live_of(shop.root).release == (2 if is_released else 1)
    starts = to_serve(shop.root)
    unload(starts.snapshot)
    assert starts.live == live_of(shop.root)
    if not is_released:
        shop.ok("promote", "2")
    shop.ok("rollback", "--reason", "the log goes on")
    assert live_of(shop.root).refused == ()


def test_what_was_made_for_one_environment_is_not_released_in_another(shop: Shop) -> None:
    shop.edit("drivetrain.toml", "[project]", '[env.lab.ledger]\nretention = "none"\n\n[project]')
    lab = Releases(shop.root, "lab").store({}).hash
    releases = Releases(shop.root)
    live, planned = releases.live, releases.planned(lab)
    proposal = ProposalV1(
        number=2, environment="default", snapshot=lab, base=live.release, base_snapshot=live.snapshot, by=BY,
        changes=planned.changes, keys=planned.keys, rules=planned.rules,
    )  # fmt: skip
    releases.log.append(kind=PROPOSED, actor=BY, subject="default/2", body=msgspec.to_builtins(proposal))
    with pytest.raises(DrivetrainError, match="of the environment `lab`"):
        promoting.promote(place_of(shop.root), 2)
    forged = ReleaseV1(
        number=2, environment="default", way="promote", snapshot=lab, previous=1, by=BY, proposal=2,
        proposal_hash=proposal.hash, workflows=tuple(sorted(proposal.keys)),
    )  # fmt: skip
    releases.log.append(kind=PROMOTED, actor=BY, subject="default/2", body=msgspec.to_builtins(forged))
    assert live_of(shop.root).release == 2
    starts = to_serve(shop.root)
    unload(starts.snapshot)
    assert starts.live.release == 1


def test_declared_stages_are_not_skipped_by_a_record(shop: Shop) -> None:
    shop.edit("workflows/triage.py", "    budget=", ROLLOUT)
    shop.ok("propose", "--reason", "second")
    place = place_of(shop.root)
    proposal = state_of(place).proposals[2].proposal
    forged = ReleaseV1(
        number=2, environment="default", way="promote", snapshot=proposal.snapshot, previous=1, by=BY, proposal=2,
        proposal_hash=proposal.hash, workflows=tuple(sorted(proposal.keys)),
    )  # fmt: skip
    place.log().append(kind=PROMOTED, actor=BY, subject="default/2", body=msgspec.to_builtins(forged))
    assert live_of(shop.root).release == 2
    starts = to_serve(shop.root)
    unload(starts.snapshot)
    assert starts.live.release == 1


def test_declared_stages_that_are_skipped_with_a_reason_are_served(shop: Shop) -> None:
    shop.edit("workflows/triage.py", "    budget=", ROLLOUT)
    shop.ok("propose", "--reason", "second")
    shop.ok("promote", "2", "--now", "--reason", "nobody calls at night")
    starts = to_serve(shop.root)
    unload(starts.snapshot)
    assert starts.live.release == 2


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess({"seed": 1, "models": {"m": simulated(output_tokens=5)}}) as running:
        yield running


ODD = ("", " ", "ä" * 200, "\u202eevil", "a\x00b", "../../etc/passwd", "\U0001f600", "'; DROP TABLE", "0", "null")


def test_users_with_odd_names_have_an_arm_and_keep_it(simulator: SimulatorProcess) -> None:
    def project(answer: str) -> dict[str, str]:
        rule = f"{{ rule = 'all', matches = '[?]', answer = '{answer}' }}"
        return chat_project(simulator.url, more=workflow("said", rule, '{ name = "v0", model = "sim/m" }'))

    with gateway(project("old")) as served:
        releases = Releases(served.root)
        releases.release(releases.store({}).hash)
        assert eventually(lambda: [one.release for one in served_by(releases.run_folder)] == [1])
        releases.release(releases.store(project("new")).hash, ["said"], 0.5)
        releases.beat()
        assert eventually(lambda: [one.share_ppm for one in served_by(releases.run_folder)] == [500_000])

        def ask(user: str | None, raw: str = "") -> tuple[int, str]:
            body = {"model": "said", "messages": [{"role": "user", "content": "?"}], "user": user or "x"}
            sent = msgspec.json.encode(body).decode()
            answer = wire.one(served.port, wire.request(sent.replace('"x"', raw) if raw else body))
            return answer.status, answer.json["choices"][0]["message"]["content"] if answer.status == 200 else ""

        for user in ODD:
            first = ask(user)
            assert first == ask(user)
            if first[0] == 200 and user:
                assert first[1] == ("new" if is_candidates(ID, user, 500_000) else "old"), user
        assert ask(None, '"\\ud800"')[0] in (200, 400), "half a character is no fault of ours"
        assert "Traceback" not in served.stderr


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "raise StopIteration", "raise KeyboardInterrupt"])
def test_code_that_ends_its_process_when_it_is_loaded_ends_no_worker(simulator: SimulatorProcess, code: str) -> None:
    with gateway({**chat_project(simulator.url), "workflows/code.py": "NOTHING = 0\n"}) as served:
        releases = Releases(served.root)
        releases.release(releases.store({}).hash, [])
        assert eventually(lambda: [one.release for one in served_by(releases.run_folder)] == [1])
        pids = served.worker_pids
        mark = served.root / "mark"
        trap = f"import pathlib\nif pathlib.Path({str(mark)!r}).exists():\n    {code}\n"
        second = releases.store({"workflows/code.py": trap}).hash
        planned = releases.planned(second)
        mark.touch()
        releases.release(second, [], planned=planned)
        assert eventually(lambda: "is not served, the old one is served on" in served.stderr), served.stderr
        assert served.worker_pids == pids
        assert [one.release for one in served_by(releases.run_folder)] == [1]


def test_a_release_that_keeps_its_keys_elsewhere_needs_a_restart(simulator: SimulatorProcess) -> None:
    with gateway(chat_project(simulator.url)) as served:
        releases = Releases(served.root)
        releases.release(releases.store({}).hash, [])
        assert eventually(lambda: [one.release for one in served_by(releases.run_folder)] == [1])
        settings = (served.root / "drivetrain.toml").read_text()
        moved = releases.store({"drivetrain.toml": settings.replace("[ledger]", '[ledger]\nkeys_folder = "k"')}).hash
        releases.release(moved, [])
        assert eventually(lambda: "keeps its keys elsewhere" in served.stderr), served.stderr
        assert [one.release for one in served_by(releases.run_folder)] == [1]


@pytest.mark.parametrize("at", ["1970-01-01", "9999-12-31", "0001-01-01", "yesterday-ish", "", "1e400", "2026-02-30"])
def test_what_was_live_at_an_odd_time_is_told_or_refused(shop: Shop, at: str) -> None:
    done = shop.run("live", "--at", at)
    assert "Traceback" not in done.err
    assert done.code == 0 or done.err.strip()
