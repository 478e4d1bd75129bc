"""Whoever can write to the control log, and wants served what was never told, proved or approved."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from drivetrain.adapters.sqlite import open_control_log, record_hash
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import PROMOTED, PROPOSED, ChangeV1, EvidenceV1, ProposalV1, ReleaseV1
from drivetrain.embedded import promoting
from drivetrain.embedded.releasing import live_of, place_of
from drivetrain.embedded.serving import served_by
from drivetrain.embedded.starting import to_serve
from drivetrain.ports.control import ControlRecord
from drivetrain.project.load import unload
from drivetrain.promotion import releasing
from drivetrain.simulator import SimulatorProcess
from promises.promise_gateway import Gateway, chat_project, eventually, gateway, simulated
from promotion.shop import Shop
from support import wire
from support.projects import workflow
from support.releases import BY, Releases

pytestmark = pytest.mark.slow

HARMLESS = (ChangeV1(workflow="said", aspect="prompts", what="a typo"),)
GOLDEN = 'import drivetrain as dt\n\ngolden = dt.Eval("said-golden", dataset="golden@1", gates=["exact >= 0.9"])\n'


@pytest.fixture
def shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shop:
    return Shop(tmp_path / "shop", capsys)


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess({"seed": 1, "models": {"m": simulated(output_tokens=5)}}) as running:
        yield running


def project(url: str, answer: str) -> dict[str, str]:
    rule = f"{{ rule = 'all', matches = '[?]', answer = '{answer}' }}"
    return chat_project(url, more=workflow("said", rule, '{ name = "v0", model = "sim/m" }'))


def said(served: Gateway) -> str:
    body = {"model": "said", "messages": [{"role": "user", "content": "?"}]}
    answer = wire.one(served.port, wire.request(body))
    assert answer.status == 200, answer
    text: str = answer.json["choices"][0]["message"]["content"]
    return text


def serves(releases: Releases, release: int) -> bool:
    told = served_by(releases.run_folder)
    return bool(told) and all(one.release == release and not one.failed for one in told)


def forge(
    root: Path,
    digest: str,
    changes: tuple[ChangeV1, ...] = HARMLESS,
    *,
    evidence: tuple[EvidenceV1, ...] = (),
    number: int = 0,
) -> None:
    """A proposal and its Release, past every command, with the log's own key. number: the proposal's."""
    place = place_of(root)
    state = Releases(root).live
    release = state.release + 1
    keys = Releases(root).planned(digest).keys
    made = ProposalV1(
        number=number or release, environment="default", snapshot=digest, base=state.release,
        base_snapshot=state.snapshot, by=BY, keys=keys, changes=changes, evidence=evidence,
    )  # fmt: skip
    forged = ReleaseV1(
        number=release, environment="default", way="promote", snapshot=digest, previous=state.release, by=BY,
        proposal=made.number, proposal_hash=made.hash, workflows=tuple(sorted(keys)),
    )  # fmt: skip
    for kind, body in ((PROPOSED, made), (PROMOTED, forged)):
        place.log().append(kind=kind, actor=BY, subject=f"default/{body.number}", body=msgspec.to_builtins(body))
    assert live_of(root).release == release, "the log alone cannot tell"


def test_a_release_that_hides_what_it_changes_is_not_served_by_any_start(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "good")) as served:
        releases = Releases(served.root)
        good = releases.store({}).hash
        releases.release(good)
        assert eventually(lambda: serves(releases, 1)), served.stderr
        forge(served.root, releases.store(project(simulator.url, "evil")).hash)
        assert eventually(lambda: "Release 2 is not what its records say" in served.stderr), served.stderr
        assert "variants of said changes" in served.stderr
        assert said(served) == "good"
        (told,) = served_by(releases.run_folder)
        assert (told.release, "not what its records say" in told.failed) == (1, True)
        served.stop()
        served.start()
        assert "RELEASE 2 IS NOT SERVED" in served.stderr
        assert said(served) == "good", "a start takes the newest Release that holds"
        assert [one.release for one in served_by(releases.run_folder)] == [1]
        releases.roll_back(1, good)
        assert eventually(lambda: serves(releases, 3)), served.stderr


def test_a_forged_release_of_a_snapshot_in_memory_is_looked_at_too(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "first")) as served:
        releases = Releases(served.root)
        first = releases.store({}).hash
        second = releases.store(project(simulator.url, "second")).hash
        for number, digest in ((1, first), (2, second)):
            releases.release(digest)
            assert eventually(lambda number=number: serves(releases, number)), served.stderr
        forge(served.root, first)
        assert eventually(lambda: "Release 3 is not what its records say" in served.stderr), served.stderr
        assert said(served) == "second"


def test_going_back_to_what_was_never_served_does_not_serve_it(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "good")) as served:
        releases = Releases(served.root)
        good = releases.store({}).hash
        releases.release(good)
        assert eventually(lambda: serves(releases, 1)), served.stderr
        evil = releases.store(project(simulator.url, "evil")).hash
        forge(served.root, evil)
        releases.roll_back(1, good)
        assert eventually(lambda: serves(releases, 3)), served.stderr
        with pytest.raises(DrivetrainError, match="Release 2 is not what its records say"):
            promoting.roll_back(place_of(served.root), 2, "back")
        releases.roll_back(2, evil)
        assert eventually(lambda: "Release 4 is not what its records say" in served.stderr), served.stderr
        assert said(served) == "good"


def test_what_was_hidden_is_not_washed_by_the_next_release(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "good")) as served:
        releases = Releases(served.root)
        releases.release(releases.store({}).hash)
        assert eventually(lambda: serves(releases, 1)), served.stderr
        forge(served.root, releases.store(project(simulator.url, "evil")).hash)
        releases.store({"workflows/code.py": "HARMLESS = 1\n"})
        promoting.propose(place_of(served.root), "harmless, and the policy of Release 2 is in it")
        with pytest.raises(DrivetrainError, match="Release 2 is not what its records say, so nothing is built on it"):
            promoting.promote(place_of(served.root), 3)
        releasing.promote(promoting.desk_of(place_of(served.root)), 3)
        assert eventually(lambda: "it builds on Release 2, which is not" in served.stderr), served.stderr
        assert said(served) == "good"
        served.stop()
        served.start()
        assert said(served) == "good"


def test_a_candidate_that_hides_what_it_changes_gets_nobody(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "good")) as served:
        releases = Releases(served.root)
        releases.release(releases.store({}).hash)
        assert eventually(lambda: serves(releases, 1)), served.stderr
        evil = releases.store(project(simulator.url, "evil")).hash
        honest = releases.planned(evil)
        releases.release(evil, ["said"], 1.0, planned=msgspec.structs.replace(honest, changes=HARMLESS))
        releases.beat()
        assert eventually(lambda: "Release 2 is not what its records say" in served.stderr), served.stderr
        assert said(served) == "good"
        (told,) = served_by(releases.run_folder)
        assert (told.share_ppm, told.candidate_snapshot) == (0, "")


def test_a_log_that_is_edited_under_a_running_gateway_changes_nothing(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "first")) as served:
        releases = Releases(served.root)
        first = releases.store({}).hash
        releases.release(first)
        assert eventually(lambda: serves(releases, 1)), served.stderr
        second = releases.store(project(simulator.url, "second")).hash
        with sqlite3.connect(served.data_folder / "control.db") as database:
            for seq, body in database.execute("SELECT seq, body FROM control WHERE body LIKE ?", (f"%{first}%",)):
                database.execute("UPDATE control SET body = ? WHERE seq = ?", (body.replace(first, second), seq))
                rehash(database, seq)
        assert eventually(lambda: "was changed from outside" in served.stderr), served.stderr
        assert said(served) == "first"
        served.stop()
        with pytest.raises(AssertionError, match="changed from outside"):
            served.start()


def test_a_record_that_is_added_without_its_chain_changes_nothing(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "first")) as served:
        releases = Releases(served.root)
        first, second = releases.store({}).hash, releases.store(project(simulator.url, "second")).hash
        for number, digest in ((1, first), (2, second)):
            releases.release(digest)
            assert eventually(lambda number=number: serves(releases, number)), served.stderr
        body = ReleaseV1(
            number=3, environment="default", way="rollback", snapshot=first, previous=2, by=BY, restores=1, reason="x"
        )
        with sqlite3.connect(served.data_folder / "control.db") as database:
            (last,) = database.execute("SELECT max(seq) FROM control").fetchone()
            text = msgspec.json.encode(msgspec.to_builtins(body), order="deterministic").decode()
            database.execute(
                "INSERT INTO control VALUES (?, 1, ?, ?, 'default/3', ?, ?, ?)",
                (last + 1, PROMOTED, BY, text, "0" * 64, ""),
            )
            rehash(database, last + 1)
        assert eventually(lambda: "was changed from outside" in served.stderr), served.stderr
        assert said(served) == "second"


def rehash(database: sqlite3.Connection, seq: int) -> None:
    """The record's own hash fits it again."""
    row = database.execute("SELECT * FROM control WHERE seq = ?", (seq,)).fetchone()
    record = ControlRecord(**dict(zip(ControlRecord.__struct_fields__, row, strict=True)))
    database.execute("UPDATE control SET hash = ? WHERE seq = ?", (record_hash(record), seq))


def test_a_log_that_is_gone_is_not_begun_anew(shop: Shop) -> None:
    shop.ok("propose", "--reason", "first")
    shop.ok("promote", "1")
    place = shop.place
    for file in (*place.data_folder.glob("control.db*"), place.keys_folder / "control.anchor"):
        file.unlink()
    for act in (
        lambda: open_control_log(place.data_folder, place.keys_folder),
        lambda: live_of(shop.root),
        lambda: to_serve(shop.root),
    ):
        with pytest.raises(DrivetrainError, match="The control log is gone"):
            act()
    assert not (place.data_folder / "control.db").exists()


def gated(shop: Shop) -> str:
    """Release 1 is live; the hash of a stored Snapshot whose workflow has a gate and another prompt."""
    shop.ok("propose", "--reason", "first")
    shop.ok("promote", "1")
    shop.add_golden()
    shop.edit("workflows/triage.j2", "Sort", "Order")
    return Releases(shop.root).store({}).hash


def newest_that_holds(shop: Shop) -> int:
    starts = to_serve(shop.root)
    unload(starts.snapshot)
    return starts.live.release


def test_evidence_that_is_left_out_is_asked_for_where_it_is_served(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = gated(shop)
    forge(shop.root, digest, Releases(shop.root).planned(digest).changes)
    assert newest_that_holds(shop) == 1
    assert "eval triage-golden of triage: no Report that it passed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"passed": False}, "its gates were not passed"),
        ({"workflow_key": "0" * 16}, "answers in another way"),
        ({"eval_key": "0" * 16}, "the eval was edited since"),
        ({"gates": 0}, "it had no gates"),
    ],
)
def test_a_report_that_does_not_prove_it_is_told_by_promote_and_found_where_it_is_served(
    shop: Shop, capsys: pytest.CaptureFixture[str], facts: dict[str, str | int | bool], why: str
) -> None:
    digest = gated(shop)
    shop.ok("propose", "--reason", "second")
    report = shop.passed(**facts)
    done = shop.run("promote", "2")
    assert done.code != 0
    assert report in done.err
    assert why in done.err
    planned = Releases(shop.root).planned(digest)
    evidence = tuple(msgspec.structs.replace(one, report=report) for one in planned.evidence)
    forge(shop.root, digest, planned.changes, evidence=evidence, number=3)
    assert newest_that_holds(shop) == 1
    assert why in capsys.readouterr().err
