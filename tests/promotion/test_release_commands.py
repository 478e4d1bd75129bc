"""From the folder to what is live, by the commands: planned, proposed, proved, approved, released, undone."""

from __future__ import annotations

import getpass
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from shop import Shop

from drivetrain.embedded.applying import person
from drivetrain.embedded.releasing import doubts_about, live_of, state_of, stored_snapshot
from drivetrain.project.load import load, unload
from drivetrain.project.snapshot import Snapshot
from drivetrain.promotion.signing import make_key

pytestmark = pytest.mark.slow

ME = pwd.getpwuid(os.geteuid()).pw_name
TEAM = """
[people.{me}]
roles = ["lead"]

[people.bob]
roles = ["risk"]
key = "{key}"

[releases]
override = ["lead"]

[[releases.approvals]]
aspect = "any"
roles = ["risk"]
"""


def json(text: str) -> dict[str, object]:
    found = msgspec.json.decode(text)
    assert isinstance(found, dict)
    return found


def test_from_the_folder_to_live_and_back(shop: Shop) -> None:
    assert "gateways serve the project's folder" in shop.ok("live")
    assert "is new" in shop.ok("plan")
    shop.ok("propose", "-m", "first")
    assert "2 changes of triage; approved by nobody yet" in shop.ok("history")
    shop.ok("promote", "1")
    first = live_of(shop.root)
    assert (first.release, first.by, first.refused) == (1, ME, ())
    assert "Nothing changes" in shop.ok("plan", "--exit-code")
    shop.edit("workflows/triage.j2", "Sort", "Route")
    assert live_of(shop.root) == first, "an edit of the folder changes nothing that is live"
    planned = shop.run("plan", "--exit-code")
    assert planned.code == 3
    assert "-Sort: {{ text }}" in planned.out
    assert "+Route: {{ text }}" in planned.out
    shop.ok("propose")
    shop.ok("promote", "2")
    assert stored_snapshot(shop.place, live_of(shop.root).snapshot).templates["workflows/triage.j2"].startswith("Route")
    assert shop.run("rollback").code == 1, "a rollback says why"
    assert "brings back Release 1" in shop.ok("rollback", "--reason", "worse")
    assert live_of(shop.root).snapshot == first.snapshot
    assert "rollback to 1" in shop.ok("history")
    at = json(shop.ok("live", "--json"))
    assert (at["release"], at["way"]) == (3, "rollback")


def test_what_was_live_at_a_time(shop: Shop) -> None:
    shop.ok("propose")
    shop.ok("promote", "1")
    said = str(json(shop.ok("live", "--json"))["since"])
    assert json(shop.ok("live", "--json", "--at", "2h"))["release"] == 0
    assert json(shop.ok("live", "--json", "--at", "now"))["release"] == 1
    assert said.endswith("Z")


def test_each_environment_has_releases_of_its_own(shop: Shop) -> None:
    shop.edit("drivetrain.toml", "[providers.openai]", "[env.prod.gateway]\nport = 9000\n\n[providers.openai]")
    shop.ok("propose", "--env", "prod")
    shop.ok("promote", "1", "--env", "prod")
    assert live_of(shop.root, "prod").release == 1
    assert live_of(shop.root).release == 0
    assert "Did you mean `prod`?" in shop.run("rollback", "--env", "prd", "-m", "worse").err


def test_nothing_to_propose(shop: Shop) -> None:
    shop.ok("propose")
    shop.ok("promote", "1")
    done = shop.run("propose")
    assert (done.code, "Nothing changes" in done.err) == (1, True)


def test_a_gate_must_be_passed_by_what_is_proposed(shop: Shop) -> None:
    shop.add_golden()
    assert "eval triage-golden of triage: no Report; run it" in shop.ok("plan")
    shop.ok("propose")
    refused = shop.run("promote", "1")
    assert refused.code == 1
    assert "eval triage-golden of triage: no Report that it passed" in refused.err
    for wrong in (
        {"passed": False}, {"gates": 0}, {"workflow_key": "0" * 16}, {"eval_key": "0" * 16},
        {"dataset": "golden@2"}, {"eval": "another"}, {"passed": 1},
    ):  # fmt: skip
        shop.passed(**wrong)
        assert shop.run("promote", "1").code == 1, wrong
    report = shop.passed()
    shop.ok("promote", "1")
    state = state_of(shop.place)
    assert [one.report for one in state.releases[1].release.evidence] == [report]


def test_a_report_is_of_exactly_what_it_was_run_on(shop: Shop) -> None:
    shop.add_golden()
    shop.passed()
    shop.ok("propose")
    shop.ok("promote", "1")
    shop.edit("workflows/triage.py", "max_output_tokens=64", "max_output_tokens=32")
    assert "no Report; run it" in shop.ok("plan")
    shop.passed()
    assert "no Report" not in shop.ok("plan")
    shop.edit("evals/golden.py", "0.9", "0.95")
    assert "no Report; run it" in shop.ok("plan"), "an edited gate is another eval"


def test_a_gate_that_compares_was_compared_with_what_is_live(shop: Shop) -> None:
    shop.add_golden()
    shop.edit("evals/golden.py", "exact >= 0.9", "no slice worse than -2 pp")
    shop.passed()
    shop.ok("propose")
    shop.ok("promote", "1")
    shop.edit("workflows/triage.j2", "Sort", "Rank")
    worse = load(shop.root)
    unload(worse)
    shop.edit("workflows/triage.j2", "Rank", "Route")
    for wrong in (None, worse):
        shop.passed(against=wrong)
        assert "no Report; run it" in shop.ok("plan"), "with something worse than what is live it would pass anything"
    with stored(shop) as live:
        shop.passed(against=live)
    shop.ok("propose")
    shop.ok("promote", "2")


@contextmanager
def stored(shop: Shop) -> Iterator[Snapshot]:
    snapshot = stored_snapshot(shop.place, live_of(shop.root).snapshot)
    yield snapshot
    unload(snapshot)


def test_an_unrelated_change_needs_no_new_run(shop: Shop) -> None:
    shop.add_golden()
    shop.passed()
    shop.ok("propose")
    shop.ok("promote", "1")
    shop.edit("workflows/triage.py", "usd_per_day=5", "usd_per_day=9")
    assert "Gates:" not in shop.ok("plan")
    shop.ok("propose")
    shop.ok("promote", "2")


def test_a_report_that_was_changed_since_proves_nothing(shop: Shop) -> None:
    shop.add_golden()
    report = shop.passed()
    shop.ok("propose")
    [file] = (shop.place.data_folder / "reports").glob(f"{report}*.json")
    file.write_bytes(file.read_bytes().replace(b'"gates":1', b'"gates":2'))
    done = shop.run("promote", "1")
    assert (done.code, "was changed" in done.err) == (1, True)
    assert live_of(shop.root).release == 0


def test_whoever_serves_a_release_can_prove_it(shop: Shop) -> None:
    shop.add_golden()
    report = shop.passed()
    shop.ok("propose")
    shop.ok("promote", "1")
    state = state_of(shop.place)
    after = stored_snapshot(shop.place, state.live.snapshot)
    assert doubts_about(shop.place, 1, after) == ()
    [file] = (shop.place.data_folder / "reports").glob(f"{report}*.json")
    file.unlink()
    [doubt] = doubts_about(shop.place, 1, after)
    assert "does not prove it" in doubt


@pytest.fixture
def team(shop: Shop, tmp_path: Path) -> Path:
    """The project has people and rules, live; the file of bob's key."""
    key = make_key(tmp_path / "bob.pem")
    shop.edit(
        "drivetrain.toml",
        '[project]\nname = "shop"\n',
        '[project]\nname = "shop"\n' + TEAM.format(me=ME, key=key.public),
    )
    shop.ok("propose")
    shop.ok("approve", "1", "--key", str(tmp_path / "bob.pem"))
    shop.ok("promote", "1")
    shop.edit("workflows/triage.j2", "Sort", "Route")
    return tmp_path / "bob.pem"


def test_somebody_else_approves_with_their_key(shop: Shop, team: Path) -> None:
    assert "any change: 0 of 1 approvals by risk" in shop.ok("plan")
    shop.ok("propose", "-m", "wording")
    own = shop.run("approve", "2")
    assert (own.code, "nobody approves their own" in own.err) == (1, True)
    lacking = shop.run("promote", "2")
    assert (lacking.code, "0 of 1 approvals" in lacking.err) == (1, True)
    assert "Approved by bob" in shop.ok("approve", "2", "--key", str(team), "-m", "read it")
    shop.ok("promote", "2")
    assert live_of(shop.root).release == 2


def test_the_key_may_come_from_the_environment(shop: Shop, team: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.ok("propose")
    monkeypatch.setenv("DRIVETRAIN_PERSON_KEY", str(team))
    assert "Approved by bob" in shop.ok("approve", "2")


def test_an_override_is_loud_and_told_until_the_next_release(shop: Shop, team: Path) -> None:
    shop.ok("propose")
    assert shop.run("promote", "2", "--override").code == 1, "an override says why"
    done = shop.run("promote", "2", "--override", "--reason", "the provider is down")
    assert done.code == 0
    assert "OVERRIDE" in done.err
    assert "0 of 1 approvals" in done.err
    told = shop.run("live")
    assert "live by override and lacks: any change: 0 of 1 approvals by risk" in told.err
    assert live_of(shop.root).way == "override"


def test_a_withdrawn_proposal_stays_withdrawn(shop: Shop, team: Path) -> None:
    shop.ok("propose")
    shop.ok("withdraw", "2", "-m", "a typing error")
    assert shop.run("approve", "2", "--key", str(team)).code == 1
    assert "Proposal 2" not in shop.ok("history")


def test_a_canary_leaves_what_is_live_until_it_is_complete(shop: Shop) -> None:
    shop.ok("propose")
    first = shop.run("promote", "1", "--canary")
    assert (first.code, "first Release" in first.err) == (1, True)
    shop.ok("promote", "1")
    shop.edit("workflows/triage.j2", "Sort", "Route")
    shop.ok("propose")
    assert "5 %, 20 %, 50 %, then all" in shop.ok("promote", "2", "--canary")
    live = live_of(shop.root)
    assert live.active is not None
    assert (live.release, live.active.release, live.active.workflows) == (1, 2, ("triage",))
    assert "stage 1 of 3" in shop.ok("live")
    assert "is ended" in shop.ok("rollback", "--reason", "slow")
    assert (live_of(shop.root).active, live_of(shop.root).release) == (None, 1)


def test_a_declared_rollout_is_followed(shop: Shop) -> None:
    shop.ok("propose")
    shop.ok("promote", "1")
    shop.edit(
        "workflows/triage.py", "    budget=",
        "    rollout=dt.Rollout(stages=[dt.Stage(share=0.1, minutes=3)], shadow=dt.Shadow(share=0.5)),\n    budget=",
    )  # fmt: skip
    shop.ok("propose")
    assert "a shadow, 10 %, then all" in shop.ok("promote", "2")
    active = live_of(shop.root).active
    assert active is not None
    assert (active.share_ppm, active.shadow_ppm) == (0, 500_000)
    assert shop.run("promote", "2", "--now").code == 1, "skipping the stages says why"


def test_a_new_key_is_made_by_the_command(shop: Shop, tmp_path: Path) -> None:
    said = shop.ok("approve", "--new-key", str(tmp_path / "ann.pem"))
    assert said.startswith('key = "')
    assert (tmp_path / "ann.pem").stat().st_mode & 0o077 == 0


def test_who_somebody_is_comes_from_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "bob")
    assert getpass.getuser() == "bob"
    assert person() == ME
