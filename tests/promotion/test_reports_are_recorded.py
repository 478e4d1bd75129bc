"""A Report is evidence where a run recorded it, and rows and Calls bear it out; an invented one opens nothing."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from shop import Shop

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import EVAL_RAN
from drivetrain.embedded import promoting
from drivetrain.embedded.eval_baseline import baseline_of
from drivetrain.embedded.releasing import doubts_about, live_of, records_of, state_of, stored_snapshot
from drivetrain.evals.rows import Run
from drivetrain.evals.run_files import BASELINES, RunFiles
from drivetrain.project.load import load, unload
from drivetrain.project.snapshot import Snapshot
from drivetrain.promotion import approving, releasing
from drivetrain.promotion.recorded import runs_in
from support.eval_runs import record_run, report_of, run_of, store_report

pytestmark = pytest.mark.slow

UNRECORDED = "the control log has no record of a run that made it; run the eval again"


def invented(shop: Shop) -> str:
    """The newest Report, which says all that a gate asks for, stored by its own hash; no run made it."""

    def made(snapshot: Snapshot) -> str:
        report = report_of(snapshot, run_of(snapshot, "triage-golden"))
        return store_report(snapshot, msgspec.structs.replace(report, made_ns=2))

    return with_snapshot(shop, made)


def with_snapshot(shop: Shop, made: Callable[[Snapshot], str]) -> str:
    snapshot = load(shop.root)
    try:
        return made(snapshot)
    finally:
        unload(snapshot)


def recorded(shop: Shop, change: Callable[[Run], Run], right: float = 1.0) -> str:
    """A Report whose record and rows are of a changed run."""

    def made(snapshot: Snapshot) -> str:
        run = change(run_of(snapshot, "triage-golden", right=right))
        return record_run(snapshot, report_of(snapshot, run), run)

    return with_snapshot(shop, made)


def with_first_row(run: Run, **row: object) -> Run:
    return msgspec.structs.replace(run, rows=(msgspec.structs.replace(run.rows[0], **row), *run.rows[1:]))


@pytest.fixture
def gated(shop: Shop) -> Shop:
    shop.add_golden()
    return shop


def test_an_invented_report_is_taken_by_no_command(gated: Shop) -> None:
    report = invented(gated)
    for command in (("plan",), ("propose",)):
        done = gated.run(*command)
        assert (done.code, report in done.err, UNRECORDED in done.err) == (0, True, True), done
        assert "no Report that it passed" in done.out
    assert state_of(gated.place).proposals[1].proposal.evidence[0].report == ""
    refused = gated.run("promote", "1")
    assert (refused.code, report in refused.err, UNRECORDED in refused.err) == (1, True, True), refused
    assert live_of(gated.root).release == 0


def test_an_invented_report_is_taken_by_no_function(gated: Shop) -> None:
    report = invented(gated)
    desk = promoting.desk_of(gated.place)
    plan = promoting.plan(gated.place).plan
    assert [one.report for one in plan.evidence] == [""]
    citing = tuple(msgspec.structs.replace(one, report=report) for one in plan.evidence)
    with pytest.raises(DrivetrainError, match=UNRECORDED):
        approving.propose(desk, msgspec.structs.replace(plan, evidence=citing), "")
    promoting.propose(gated.place, "")
    with pytest.raises(DrivetrainError, match=UNRECORDED):
        promoting.promote(gated.place, 1)
    with pytest.raises(DrivetrainError, match=UNRECORDED):
        releasing.promote(desk, 1, evidence=citing)
    assert live_of(gated.root).release == 0


def test_a_proposal_that_cites_one_past_the_commands_is_not_approved(gated: Shop) -> None:
    report = invented(gated)
    plan = promoting.plan(gated.place).plan
    proposal = promoting.propose(gated.place, "").body
    citing = tuple(msgspec.structs.replace(one, report=report) for one in plan.evidence)
    forged = msgspec.structs.replace(proposal, number=2, evidence=citing)
    gated.place.log().append(
        kind="release.proposed", actor=forged.by, subject="default/2", body=msgspec.to_builtins(forged)
    )
    with pytest.raises(DrivetrainError, match=UNRECORDED):
        promoting.approve(gated.place, 2)
    with pytest.raises(DrivetrainError, match=UNRECORDED):
        approving.approve(promoting.desk_of(gated.place), 2)
    assert gated.run("approve", "2").code == 1
    assert gated.run("promote", "2").code == 1


def test_a_release_forged_upon_one_is_not_what_its_records_say(gated: Shop) -> None:
    gated.passed()
    gated.ok("propose")
    gated.ok("promote", "1")
    gated.edit("workflows/triage.j2", "Sort", "Order")
    honest = gated.passed()
    report = invented(gated)
    gated.ok("propose")
    state = state_of(gated.place)
    proposal = state.proposals[2].proposal
    assert [one.report for one in proposal.evidence] == [honest], "the newest that a run made"
    releases = state.releases[1].release
    forged = msgspec.structs.replace(
        releases, number=2, previous=1, snapshot=proposal.snapshot, proposal=2, proposal_hash=proposal.hash,
        workflows=tuple(sorted(proposal.keys)),
        evidence=tuple(msgspec.structs.replace(one, report=report) for one in proposal.evidence),
    )  # fmt: skip
    gated.place.log().append(
        kind="release.promoted", actor=forged.by, subject="default/2", body=msgspec.to_builtins(forged)
    )
    assert live_of(gated.root).release == 2
    after = stored_snapshot(gated.place, proposal.snapshot)
    [doubt] = doubts_about(gated.place, 2, after)
    assert UNRECORDED in doubt


@pytest.mark.parametrize(
    ("change", "right", "why"),
    [
        (lambda run: with_first_row(run, call_id="call_" + "0" * 30), 1.0, "1 of its 40 Calls are not in the ledger"),
        (lambda run: with_first_row(run, call_id="x"), 1.0, "it cites what is no Call"),
        (lambda run: with_first_row(run, call_id=""), 1.0, "was answered by no Call"),
        (lambda run: with_first_row(run, variant="large"), 1.0, "is not what Call"),
        (lambda run: msgspec.structs.replace(run, eval_key="0" * 16), 1.0, "edited since"),
        (lambda run: run, 0.5, "by its rows gate `exact >= 0.9` is not passed"),
    ],
)
def test_a_recorded_report_must_be_borne_out(gated: Shop, change: Callable[[Run], Run], right: float, why: str) -> None:
    gated.ok("propose")
    recorded(gated, change, right)
    done = gated.run("promote", "1")
    assert (done.code, why in done.err) == (1, True), done
    assert live_of(gated.root).release == 0


def test_answers_of_another_workflow_bear_nothing_out(gated: Shop) -> None:
    gated.edit("workflows/triage.j2", "Sort", "Order")
    other = load(gated.root)
    unload(other)
    gated.edit("workflows/triage.j2", "Order", "Sort")
    key = with_snapshot(gated, lambda one: run_of(one, "triage-golden").workflow_key)

    def made(snapshot: Snapshot) -> str:
        run = msgspec.structs.replace(run_of(snapshot, "triage-golden", other), workflow_key=key)
        return record_run(snapshot, report_of(snapshot, run), run)

    with_snapshot(gated, made)
    done = gated.run("propose")
    assert (done.code, "its Calls were answered in another way" in done.err) == (1, True), done


def test_an_edited_row_contradicts(gated: Shop) -> None:
    report = gated.passed()
    gated.ok("propose")
    files = RunFiles(gated.place.data_folder)
    run = files.run(report)
    files.keep(with_first_row(run, cost_nano_usd=1))
    for command in (("propose",), ("promote", "1"), ("approve", "1")):
        done = gated.run(*command)
        assert (done.code, "its rows are not those that the control log has" in done.err) == (1, True), done
    files.keep(run)
    gated.ok("promote", "1")


def test_what_was_compared_with_is_held_against_its_record_too(gated: Shop) -> None:
    gated.edit("evals/golden.py", "exact >= 0.9", "overall not worse than -1 pp")
    gated.passed()
    gated.ok("propose")
    gated.ok("promote", "1")
    live = stored_snapshot(gated.place, live_of(gated.root).snapshot)
    unload(live)
    gated.edit("workflows/triage.j2", "Sort", "Order")
    report = gated.passed(against=live)
    gated.ok("propose")
    files = RunFiles(gated.place.data_folder)
    baseline = files.run(report, BASELINES)
    files.keep(with_first_row(baseline, scores={}), BASELINES)
    done = gated.run("promote", "2")
    assert (done.code, "the rows that it was compared with are not those" in done.err) == (1, True), done
    files.keep(baseline, BASELINES)
    gated.ok("promote", "2")


def test_answers_of_a_snapshot_that_answers_alike_bear_it_out(gated: Shop) -> None:
    gated.passed()
    asked = with_snapshot(gated, lambda one: one.hash)
    gated.edit("workflows/triage.py", "usd_per_day=5", "usd_per_day=9")
    gated.ok("propose")
    manifest = gated.place.snapshots_folder / asked / "manifest.json"
    content = manifest.read_bytes()
    manifest.write_bytes(b"{}")
    done = gated.run("promote", "1")
    assert (done.code, "which its Calls are of, cannot be loaded" in done.err) == (1, True), done
    manifest.write_bytes(content)
    gated.ok("promote", "1")


def test_an_invented_report_is_no_baseline(gated: Shop) -> None:
    """Where nothing is live yet, a run is compared with what passed before; an invented Report says so of nothing."""
    made = invented(gated)
    ran = gated.passed()
    gated.edit("workflows/triage.j2", "Sort", "Order")

    def baseline(snapshot: Snapshot) -> str:
        found = baseline_of(snapshot, "triage-golden", "triage", None)
        assert found is not None
        return found.what

    found = with_snapshot(gated, baseline)
    assert (made in found, ran in found) == (False, True), found


def test_an_invented_report_is_listed_as_one_without_a_record(gated: Shop) -> None:
    def state() -> str:
        [one] = msgspec.json.decode(gated.ok("eval", "list", "--json"))["evals"]
        return str(one["state"])

    gated.passed()
    assert state() == "passed"
    invented(gated)
    assert state() == "unrecorded"


def test_what_an_erasure_takes_from_rows_contradicts_nothing(gated: Shop) -> None:
    report = recorded(gated, lambda run: with_first_row(run, group="a", notes=b"sealed"))
    gated.ok("propose")
    files = RunFiles(gated.place.data_folder)
    files.keep(with_first_row(files.run(report), group="erased-1", notes=b""))
    gated.ok("promote", "1")


def test_rows_that_are_gone_take_a_new_run_and_change_nothing_that_is_live(gated: Shop) -> None:
    report = gated.passed()
    gated.ok("propose")
    [file] = gated.place.data_folder.glob(f"evals/*/runs/{report}.json")
    content = file.read_bytes()
    file.unlink()
    refused = gated.run("promote", "1")
    assert (refused.code, "are not kept here" in refused.err) == (1, True)
    file.write_bytes(content)
    gated.ok("promote", "1")
    file.unlink()
    assert doubts_about(gated.place, 1, stored_snapshot(gated.place, live_of(gated.root).snapshot)) == ()


def test_what_was_live_before_runs_were_recorded_stays_and_what_is_next_takes_a_run(
    gated: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = invented(gated)
    with monkeypatch.context() as before:  # as the version before did it
        before.setattr(approving, "check_recorded", lambda *_: None)
        plan = promoting.plan(gated.place).plan
        citing = tuple(msgspec.structs.replace(one, report=old) for one in plan.evidence)
        gated.ok("propose")
        proposal = state_of(gated.place).proposals[1].proposal
        before.setattr(releasing, "check_recorded", lambda *_: None)
        releasing.promote(promoting.desk_of(gated.place), 1, evidence=citing)
    after = stored_snapshot(gated.place, proposal.snapshot)
    assert doubts_about(gated.place, 1, after) == ()
    gated.edit("evals/golden.py", "0.9", "0.8")
    told = gated.run("plan")
    assert "no Report" in told.out
    gated.passed()
    gated.ok("propose")
    gated.ok("promote", "2")
    assert doubts_about(gated.place, 1, after) == (), "a run that was recorded since makes the old Release no worse"


def test_a_record_is_amended_by_nobody(gated: Shop) -> None:
    report = gated.passed()
    log = gated.place.log()
    [(seq, first)] = [(one.seq, one) for one in records_of(gated.place) if one.kind == EVAL_RAN]
    body = msgspec.json.decode(first.body)
    log.append(kind=EVAL_RAN, actor="eve", subject=first.subject, body={**body, "rows": "0" * 64})
    log.append(kind=EVAL_RAN, actor="eve", subject="report:eval@other", body={**body, "report": "f" * 16})
    assert [(id, one.seq) for id, one in runs_in(log.records()).items()] == [(report, seq)]


def test_audit_verify_tells_of_reports_without_record_and_records_without_report(gated: Shop) -> None:
    kept, free = gated.passed(), invented(gated)
    done = gated.run("audit", "verify")
    assert (done.code, f"Report {free} of an eval has no record" in done.out, kept in done.out) == (0, True, False)
    said = msgspec.json.decode(gated.ok("audit", "verify", "--json"))
    assert (said["whole"], said["unrecorded_reports"]) == (True, [free])
    [file] = (gated.place.data_folder / "reports").glob(f"{kept}*.json")
    content = file.read_bytes()
    file.unlink()
    gone = gated.run("audit", "verify")
    assert (gone.code, f"its Report {kept} is not there" in gone.err) == (1, True)
    file.write_bytes(content + b" ")
    assert gated.run("audit", "verify").code == 1
