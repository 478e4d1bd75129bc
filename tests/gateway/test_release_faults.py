"""What goes wrong with a Release costs the change, and not what is served."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivetrain.adapters.sqlite import open_control_log
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import PROMOTED, RELEASE_KINDS, Live
from drivetrain.embedded.live_watch import LiveWatch
from drivetrain.embedded.serving import served_by
from drivetrain.gateway.following import SETTLED_S
from drivetrain.ports.control import ControlRecord
from drivetrain.simulator import SimulatorProcess
from promises.promise_gateway import Gateway, chat_project, eventually, gateway, simulated
from support import wire
from support.projects import workflow
from support.releases import Releases
from support.tries import Spoiled, in_one_try, measured

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess({"seed": 1, "models": {"m": simulated(output_tokens=5)}}) as running:
        yield running


def project(url: str, answer: str, more: str = "", code: str = "") -> dict[str, str]:
    rule = f"{{ rule = 'all', matches = '[?]', answer = '{answer}' }}"
    files = chat_project(url, more=workflow("said", rule, '{ name = "v0", model = "sim/m" }') + more)
    return {**files, "workflows/code.py": code or "NOTHING = 0\n"}


def said(served: Gateway) -> str:
    body = {"model": "said", "messages": [{"role": "user", "content": "?"}]}
    answer = wire.one(served.port, wire.request(body))
    assert answer.status == 200, answer
    text: str = answer.json["choices"][0]["message"]["content"]
    return text


def serves(releases: Releases, release: int, workers: int = 1) -> bool:
    told = served_by(releases.run_folder)
    return len(told) == workers and all(one.release == release and not one.failed for one in told)


def test_nothing_waits_for_a_release_that_hangs_while_it_is_loaded(simulator: SimulatorProcess) -> None:
    measured(1.0, lambda: _past_one_that_hangs(simulator))


def _past_one_that_hangs(simulator: SimulatorProcess) -> float:
    """Seconds until every worker had gone back, or a third of what it took them to go on, whichever was more."""
    with gateway(project(simulator.url, "first"), workers=2) as served:
        releases = Releases(served.root)
        first = releases.store({}).hash
        second = releases.store(project(simulator.url, "second")).hash
        mark = served.root / "hang"
        hangs = f"import pathlib, time\ntime.sleep(50 if pathlib.Path({str(mark)!r}).exists() else 0)\n"
        third = releases.store(project(simulator.url, "third", code=hangs)).hash
        fourth = releases.store(project(simulator.url, "fourth")).hash
        for number, digest in ((1, first), (2, second)):
            releases.release(digest)
            assert eventually(lambda number=number: serves(releases, number, 2)), served.stderr
        planned = releases.planned(third)  # which loads it, too
        mark.touch()
        releases.release(third, planned=planned)
        time.sleep(0.5)
        assert said(served) == "second"
        releases.roll_back(1, first)
        begun = time.monotonic()
        assert eventually(lambda: serves(releases, 4, 2), 20), served_by(releases.run_folder)
        back_s = time.monotonic() - begun
        assert {said(served) for _ in range(8)} == {"first"}
        releases.release(fourth)
        begun = time.monotonic()
        assert eventually(lambda: serves(releases, 5, 2), 20), served_by(releases.run_folder)
        on_s = time.monotonic() - begun
        assert {said(served) for _ in range(8)} == {"fourth"}
        return max(back_s, on_s / 3)


def test_a_release_that_keeps_its_records_elsewhere_needs_a_restart(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "here")) as served:
        releases = Releases(served.root)
        releases.release(releases.store({}).hash)
        assert eventually(lambda: serves(releases, 1)), served.stderr
        files = project(simulator.url, "there")
        moved = files["drivetrain.toml"].replace("[ledger]", '[ledger]\nfolder = ".drivetrain/other"')
        releases.release(releases.store({**files, "drivetrain.toml": moved}).hash)
        assert eventually(lambda: "keeps its records elsewhere" in served.stderr), served.stderr
        assert said(served) == "here"


def test_a_release_whose_key_has_no_secret_is_not_served_until_it_has(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "good")) as served:
        releases = Releases(served.root)
        releases.release(releases.store({}).hash)
        assert eventually(lambda: serves(releases, 1)), served.stderr
        keyed = '[keys.shop]\nsecret = "file:secrets/shop.key"\nteam = "support"\n\n'
        releases.release(releases.store(project(simulator.url, "keyed", keyed)).hash)
        assert eventually(lambda: "is not served, the old one is served on" in served.stderr), served.stderr
        assert "shop" in served.stderr
        assert said(served) == "good", "the keys of what is served must stay"
        (told,) = served_by(releases.run_folder)
        assert (told.release, bool(told.failed)) == (1, True)


def test_a_candidate_that_cannot_be_loaded_leaves_everything_to_live(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "old")) as served:
        releases = Releases(served.root)
        releases.release(releases.store({}).hash)
        new = releases.store(project(simulator.url, "new"))
        planned = releases.planned(new.hash)
        (new.snapshots_folder / new.hash / "files" / "workflows" / "code.py").write_text("CHANGED = 1\n")
        releases.release(new.hash, ["said"], 1.0, planned=planned)
        releases.beat()
        assert eventually(lambda: "is not served, the old one is served on" in served.stderr), served.stderr
        assert said(served) == "old"
        (told,) = served_by(releases.run_folder)
        assert (told.release, told.candidate, told.candidate_snapshot, told.share_ppm) == (1, 2, "", 0)


def test_a_forged_record_is_told_once_and_changes_nothing(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "good"), workers=2) as served:
        releases = Releases(served.root)
        releases.release(releases.store({}).hash)
        assert eventually(lambda: serves(releases, 1, 2)), served.stderr
        data, keys = served.root / ".drivetrain" / "data", served.root / ".drivetrain" / "keys"
        body = {"type": "release.1", "number": 2, "snapshot": "0" * 64}
        open_control_log(data, keys).append(kind=PROMOTED, actor="mallory", subject="default/2", body=body)
        assert eventually(lambda: "does not count" in served.stderr), served.stderr
        assert eventually(lambda: serves(releases, 1, 2)), served.stderr
        assert said(served) == "good"
        time.sleep(0.6)
        assert served.stderr.count("does not count") == 1


class Feed:
    """A control log whose records a test puts in."""

    def __init__(self) -> None:
        self.records: list[ControlRecord] = []
        self.broken = False

    def changed(self) -> bool:
        return True

    def read(self, kinds: object) -> list[ControlRecord]:
        assert kinds == RELEASE_KINDS
        if self.broken:
            raise DrivetrainError("the disk is gone")
        return list(self.records)

    def close(self) -> None:
        """Nothing is open."""


def record(seq: int) -> ControlRecord:
    return ControlRecord(seq=seq, at_ns=seq, kind=PROMOTED, actor="a", subject="x/1", body="", prev_hash="", hash="")


def test_a_log_that_lost_records_or_cannot_be_read_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    feed = Feed()
    feed.records = [record(1), record(2)]
    watch = LiveWatch(
        "x", feed, tmp_path / "beat", fold=lambda records, name: Live(environment=name, release=len(list(records)))
    )
    assert watch.live.release == 2
    feed.records.pop()
    assert not watch.look()
    assert not watch.look()
    assert watch.live.release == 2
    assert "has 1" in watch.problem
    assert capsys.readouterr().err.count("what was live stays so") == 1
    feed.broken = True
    assert not watch.look()
    feed.broken = False
    feed.records += [record(2), record(3)]
    assert watch.look()
    assert (watch.live.release, watch.problem) == (3, "")
    assert "can be read again" in capsys.readouterr().err


@pytest.mark.timeout(180)
def test_workers_that_come_later_start_from_what_is_live(simulator: SimulatorProcess) -> None:
    """The supervisor has loaded it by then, so the first Call needs no load; and the way back is found again. When it
    has loaded it nobody can see, so a machine that stands still gets more time in the next try."""
    pauses_s = iter((1.0, 2.0, 4.0, 8.0, 8.0))
    in_one_try(lambda: _comes_later(simulator, SETTLED_S + next(pauses_s)))


def _comes_later(simulator: SimulatorProcess, after_s: float) -> None:
    with gateway(project(simulator.url, "first"), workers=2) as served:
        releases = Releases(served.root)
        first = releases.store({}).hash
        for number, digest in ((1, first), (2, releases.store(project(simulator.url, "second")).hash)):
            releases.release(digest)
            assert eventually(lambda number=number: serves(releases, number, 2)), served.stderr
        time.sleep(after_s)
        before = {one.worker for one in served_by(releases.run_folder)}
        for worker in before:
            os.kill(int(worker.rpartition("-")[2]), signal.SIGKILL)
        assert eventually(lambda: before.isdisjoint(one.worker for one in served_by(releases.run_folder)))
        assert eventually(lambda: serves(releases, 2, 2)), served.stderr
        loaded = served.stderr.count("serving snapshot")
        assert {said(served) for _ in range(8)} == {"second"}
        releases.roll_back(1, first)
        assert eventually(lambda: serves(releases, 3, 2)), served.stderr
        assert {said(served) for _ in range(8)} == {"first"}
        if loaded != 2:
            raise Spoiled(f"after {after_s} s the new workers loaded it themselves: {loaded} loads were told")
