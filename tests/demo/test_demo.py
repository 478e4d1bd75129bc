"""`drivetrain demo` through its public door: a command in, a report out, and the ledger that it must agree with."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from drivetrain.cli.demo_change import Change
from drivetrain.cli.demo_change_print import print_change
from drivetrain.cli.demo_report import MESSAGES_MIN, Claim, read_report
from drivetrain.cli.demo_texts import own_texts
from drivetrain.cli.demo_traffic import CHATS, CONCURRENCY, Seen
from drivetrain.cli.demo_trials import BROKEN, FALLING_BACK, FALLING_BACK_CALLS, TEAM, Told
from drivetrain.core.money import nano_usd
from drivetrain.core.times import NS_PER_S, iso
from drivetrain.embedded.modelling import open_registry, open_reports
from drivetrain.embedded.releasing import place_of, state_of
from drivetrain.lake.calls import Calls
from drivetrain.lake.costs import ATTEMPT_DIMENSIONS, CALL_DIMENSIONS, LedgerQueries
from drivetrain.project import load
from drivetrain.providers.pricing import price_book
from support.lakes import lake_at

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
BANKING77 = REPOSITORY.parent / "shared" / "data" / "banking77"
COMMAND = [sys.executable, "-m", "drivetrain.cli.main", "demo"]
CALLS = 300
RUN_S = 240
"""Ends what hangs; a run takes some seconds."""
BACK_S_MAX = 2
"""It goes back within a second; machines that run tests are busy."""
STILL_S = 0.1
"""Between two Calls of a busy demo at most so much is time: where it is longer, the machine stood still."""
TRAINED_RUN_S = 900
"""With a training on 10,000 texts."""


real_texts = pytest.mark.skipif(
    not (BANKING77 / "test.csv").is_file(), reason="the real texts are absent: ../shared/data/banking77"
)


def demo(*arguments: str, cwd: Path, run_s: float = RUN_S) -> subprocess.CompletedProcess[str]:
    # Two demos that start at the same moment could both find the default port free.
    port = () if "--port" in arguments else ("--port", "0")
    return subprocess.run(
        [*COMMAND, *arguments, *port], cwd=cwd, capture_output=True, text=True, timeout=run_s, check=False
    )


def report_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def report(place: Path) -> dict[str, Any]:
    return report_of(demo("--once", "--json", "--calls", str(CALLS), "--dir", "first", cwd=place))


def untrained_texts(folder: Path) -> str:
    """A folder of texts with nothing to train on, so that a run is short; its path."""
    folder.mkdir()
    (folder / "categories.json").write_text('["loan", "rent"]')
    (folder / "test.csv").write_text("text,category\nI need a loan.,loan\nIs my rent paid?,rent\nLend me some,loan\n")
    return str(folder)


def holds_together(report: dict[str, Any]) -> None:
    """The promises that hold on any texts."""
    messages = report["texts"]["messages"]
    total = report["cost_nano_usd"]
    assert report["adds_up"] is True
    assert report["problems"] == []
    assert report["holds"] is True
    baselines = [report["frontier_only"], report["efficient_only"]]
    baselines += [report["untrained"]] if report["trained"] else []
    sent = messages * (1 + len(baselines)) + CHATS
    changing = report["change"]["calls"] if report["change"] else 0
    assert report["calls"] == sent + report["budget"]["calls"] + report["fault"]["calls"] + changing
    assert bool(report["change"]) == (messages >= MESSAGES_MIN) == (not report["not_changed"])
    assert sum(row["answered"] for row in report["route"]) == messages
    for row in (*report["route"], report["route_total"], *baselines):
        assert row["judged"] == row["answered"], "every answered message has its truth"
    for name, rows in report["spend"].items():
        assert sum(row["cost_nano_usd"] for row in rows) == total, name
        assert sum(row["tokens"] for row in rows) == report["tokens"], name
        assert name == "variant" or sum(row["calls"] for row in rows) == report["calls"]
    checks = {check["what"]: check for check in report["checks"]}
    assert {name.replace("_", " ") for name in (*CALL_DIMENSIONS, *ATTEMPT_DIMENSIONS)} < set(checks)
    assert all(check["cost_nano_usd"] == total for check in checks.values())
    assert checks["the provider's invoice"]["tokens"] == report["tokens"]
    assert checks["the clients' own count"]["calls"] == checks["answering variant"]["calls"] == report["calls"]


def test_the_table_adds_up(report: dict[str, Any]) -> None:
    holds_together(report)


def test_it_shows_the_ledgers_own_totals(report: dict[str, Any]) -> None:
    queries = LedgerQueries(lake_at(Path(report["project"]) / ".drivetrain" / "data"))
    total = queries.cost().total
    assert (total.calls, total.cost_nano_usd) == (report["calls"], report["cost_nano_usd"])
    for name in ("team", "workflow", "use_case", "door", "variant"):
        shown = {row["name"]: row["cost_nano_usd"] for row in report["spend"][name]}
        assert shown == {row.keys[0]: row.cost_nano_usd for row in queries.cost((name,)).rows}
    assert queries.outcomes("correct", ()).total.count == queries.outcomes("label", ()).total.count == 4 * CALLS


def test_the_route_is_cheaper_than_the_frontier_and_better_than_the_efficient_model(report: dict[str, Any]) -> None:
    route, frontier, efficient = report["route_total"], report["frontier_only"], report["efficient_only"]
    assert 0 < route["cost_nano_usd"] < report["untrained"]["cost_nano_usd"] < frontier["cost_nano_usd"] // 2
    assert efficient["accuracy"] < report["untrained"]["accuracy"]
    assert efficient["accuracy"] < route["accuracy"]
    assert {row["variant"] for row in report["route"]} >= {"efficient", "frontier"}
    rules = [row for row in report["route"] if not row["model"]]
    assert rules
    assert all(row["cost_nano_usd"] == 0 and row["accuracy"] == 1.0 for row in rules)


def trained_row(report: dict[str, Any]) -> dict[str, Any]:
    return next(row for row in report["route"] if row["variant"] == "trained")


def test_the_trained_model_answers_most_for_nothing_and_the_claim_holds(report: dict[str, Any]) -> None:
    row, claim = trained_row(report), report["claim"]
    assert (row["cost_nano_usd"], row["model"], row["accuracy_declared"]) == (0, "models:/intent/1", None)
    assert row["answered"] > report["texts"]["messages"] / 2
    assert claim["holds"] is True
    assert claim["low"] >= -0.01
    assert claim["cost_share"] == report["route_total"]["cost_nano_usd"] / report["frontier_only"]["cost_nano_usd"]
    assert claim["cost_share"] <= 0.25
    assert claim["trained_wrong"] == row["judged"] - row["right"]


def test_messages_are_paired_one_by_one(report: dict[str, Any]) -> None:
    right: dict[tuple[str, str], bool] = {}
    lake = lake_at(Path(report["project"]) / ".drivetrain" / "data")
    for call in Calls(lake).calls(payloads=False):
        for outcome in call.outcomes:
            if outcome.metric == "correct":
                assert (call.workflow, call.business_key) not in right
                right[call.workflow, call.business_key] = outcome.value is True
    keys = [f"m{place}" for place in range(CALLS)]
    pairs = [(right["intent", key], right["intent-frontier", key]) for key in keys]
    claim = report["claim"]
    assert claim["messages"] == CALLS
    assert (claim["better"], claim["worse"]) == (pairs.count((True, False)), pairs.count((False, True)))
    assert claim["difference"] == pytest.approx((claim["better"] - claim["worse"]) / CALLS)
    accuracies = report["route_total"]["accuracy"] - report["frontier_only"]["accuracy"]
    assert claim["difference"] == pytest.approx(accuracies)
    assert claim["low"] <= claim["difference"] <= claim["high"]


def test_the_threshold_of_the_route_is_the_one_that_the_training_chose(report: dict[str, Any]) -> None:
    project, trained = Path(report["project"]), report["trained"]
    version = open_registry(project).find("intent@champion")
    assert f"{version.name}@{version.number}" == trained["version"] == "intent@1"
    assert version.dataset == "intents@1"
    assert version.thresholds["0.02"] == trained["threshold"]
    assert trained["error_bound"] <= trained["risk"] == 0.02
    route = (project / "workflows" / "intent.py").read_text()
    assert f'model="models:/intent@champion", accept=dt.confidence({trained["threshold"]}))' in route
    queries = LedgerQueries(lake_at(project / ".drivetrain" / "data"))
    models = {row.keys[0]: row.calls for row in queries.cost(("model",), where={"workflow": "intent-untrained"}).rows}
    assert "models:/intent/1" not in models, "the route without the model asks it nothing"


def test_a_claim_that_does_not_hold_fails_the_demo() -> None:
    claim = Claim(
        messages=MESSAGES_MIN, better=9, worse=3, difference=0.02, low=-0.01, high=0.04, trained_wrong=3,
        cost_share=0.25,
    )  # fmt: skip
    assert claim.holds is True
    assert msgspec.structs.replace(claim, low=-0.0101).holds is False
    assert msgspec.structs.replace(claim, cost_share=0.2501).holds is False
    assert msgspec.structs.replace(claim, messages=MESSAGES_MIN - 1, low=-0.5).holds is None


def test_models_are_as_right_as_declared(report: dict[str, Any]) -> None:
    for row in (report["frontier_only"], report["efficient_only"]):
        spread = (row["accuracy_declared"] * (1 - row["accuracy_declared"]) / row["judged"]) ** 0.5
        assert abs(row["accuracy"] - row["accuracy_declared"]) < 4 * spread


def test_prices_are_the_published_ones(report: dict[str, Any]) -> None:
    settings = tomllib.loads((Path(report["project"]) / "drivetrain.toml").read_text())
    for provider, base_url in (("openai", "https://api.openai.com/v1"), ("anthropic", "https://api.anthropic.com")):
        own = "sim" if provider == "openai" else "sim-anthropic"
        models = {name: price for name, price in settings["models"].items() if name.partition("/")[0] == own}
        assert models
        for name, price in models.items():
            published = price_book(f"{provider}/{name.partition('/')[2]}", base_url, None).on("2025-12-01").base
            assert nano_usd(price["usd_per_million_input"]) == published.input
            assert nano_usd(price["usd_per_million_input_cached"]) == published.input_cached
            assert nano_usd(price["usd_per_million_output"]) == published.output


def test_a_budget_bites_and_is_not_overspent(report: dict[str, Any]) -> None:
    budget, told = report["budget"], report["budget"]["told"]
    settings = tomllib.loads((Path(report["project"]) / "drivetrain.toml").read_text())
    cap = nano_usd(settings["limits"]["trial-month"]["usd"])
    assert told["cap_nano_usd"] == cap
    assert 0 < budget["spent_nano_usd"] <= cap
    assert told["left_nano_usd"] == cap - budget["spent_nano_usd"], "to the nano-dollar"
    assert (told["status"], told["code"]) == (429, "budget_exceeded")
    assert told["retry_after_s"] >= 1
    assert "`trial-month` of team `trial`" in told["message"]
    assert "resets at" in told["message"]
    # The last refusal was due: the next call's worst case is more than what is left.
    needed = re.search(r"needs up to ([\d.]+) USD", told["message"])
    assert needed
    assert nano_usd(needed[1]) > told["left_nano_usd"]
    queries = LedgerQueries(lake_at(Path(report["project"]) / ".drivetrain" / "data"))
    rows = {row.keys: row for row in queries.cost(("team", "status")).rows}
    answered, refused = rows[TEAM, "answered"], rows[TEAM, "refused"]
    assert (answered.calls, answered.cost_nano_usd) == (budget["answered"], budget["spent_nano_usd"])
    assert (refused.calls, refused.cost_nano_usd) == (budget["refused"], 0)
    assert refused.calls > CONCURRENCY, "each client until it was refused, and one of them again"


def test_a_provider_fails_and_every_call_is_answered(report: dict[str, Any]) -> None:
    fault = report["fault"]
    assert fault["answered"] == fault["calls"] == FALLING_BACK_CALLS
    assert fault["failed"] == fault["failed_by_provider"]
    assert 5 <= fault["failed"] < FALLING_BACK_CALLS, "its circuit opens after five failures in a row"
    assert fault["withheld"] == FALLING_BACK_CALLS - fault["failed"]
    assert "circuit open after" in fault["why"]
    queries = LedgerQueries(lake_at(Path(report["project"]) / ".drivetrain" / "data"))
    rows = {row.keys[0]: row for row in queries.cost(("model",), where={"workflow": FALLING_BACK}).rows}
    assert rows[BROKEN].cost_nano_usd == 0
    assert sum(row.cost_nano_usd for row in rows.values()) == fault["cost_nano_usd"] > 0


def ledger_of(report: dict[str, Any]) -> LedgerQueries:
    return LedgerQueries(lake_at(Path(report["project"]) / ".drivetrain" / "data"))


def test_the_project_is_released_on_a_frozen_dataset_and_stays_live(report: dict[str, Any]) -> None:
    change, place = report["change"], place_of(report["project"])
    state = state_of(place)
    assert change["holds"] is True
    assert change["before"] == change["after"]
    assert (state.live.release, state.live.snapshot) == (1, change["after"]["snapshot"])
    assert (state.live.active, state.live.refused) == (None, ())
    snapshot = load(place.root)
    assert snapshot.hash == change["after"]["snapshot"], "the folder is again as it was released"
    proof = state.releases[1].release.evidence
    assert [(one.eval, one.workflow) for one in proof] == [("intent-golden", "intent")]
    passed = open_reports(place.root).get(proof[0].report).report
    assert passed.facts["dataset"] == change["proof"]["dataset"] == "golden@1"
    assert passed.facts["accuracy"] == change["proof"]["accuracy"]
    assert passed.facts["rows"] == change["proof"]["rows"] == 300
    log = place.log()
    assert (len(list(log.records())), log.verify().whole) == (change["log_records"], change["log_whole"])


def test_a_better_model_is_found_by_the_recorded_calls(report: dict[str, Any]) -> None:
    change = report["change"]
    found = change["upgrade"]
    stored = open_reports(Path(report["project"])).get(found["report"]).report
    assert (stored.kind, stored.facts["verdict"]) == ("upgrade", found["verdict"])
    assert found["verdict"] == "upgrade"
    assert found["better"] > found["worse"]
    asked = {row.keys[0]: row for row in ledger_of(report).cost(("workflow",), where={"door": "eval"}).rows}
    assert asked["intent-efficient"].calls == found["pairs"]
    assert found["pairs"] + found["saved_calls"] == found["planned"]
    assert asked["intent"].calls == 2 * change["proof"]["rows"], "what is live was not asked again"
    chats = ledger_of(report).cost(where={"workflow": "assistant"}).total
    canary = sum(row.calls for row in asked.values()) + chats.calls - CHATS
    assert canary == change["calls"]


def test_what_is_worse_is_stopped_by_its_gate(report: dict[str, Any]) -> None:
    stopped, state = report["change"]["stopped"], state_of(place_of(report["project"]))
    assert (stopped["eval_exit"], stopped["promote_exit"]) == (3, 1)
    assert "overall not worse than -1 pp" in stopped["gates"]
    assert stopped["accuracy"] < stopped["accuracy_live"] - 0.01
    assert "eval intent-golden of intent: no Report that it passed" in stopped["told"]
    assert state.condition(state.proposals[2]) == "withdrawn"
    assert [one.release.proposal for one in state.releases.values()] == [1, 3]


def test_a_canary_that_fails_more_often_goes_back_by_itself(report: dict[str, Any]) -> None:
    canary, state = report["change"]["canary"], state_of(place_of(report["project"]))
    released = state.releases[canary["release"]]
    at_ns, event = released.events[-1]
    assert (event.event, event.by, event.guard) == ("aborted", "guards", canary["guard"])
    assert iso(at_ns) == canary["at"]
    assert event.verdict == canary["verdict"]
    assert canary["evidence"] == event.evidence
    assert event.evidence["candidate"] > event.evidence["live"]
    assert canary["share"] == 0.05
    calls = [one for one in Calls(lake_at(Path(report["project"]) / ".drivetrain" / "data")).calls(payloads=False)
             if one.workflow == "assistant"]  # fmt: skip
    assert len(calls) == CHATS + canary["calls"], "every request has its Call"
    candidate = [one for one in calls if released.release.snapshot.startswith(one.snapshot)]
    failed = [one for one in calls if one.status != "answered"]
    assert {one.call_id for one in failed} <= {one.call_id for one in candidate}
    assert len(failed) == canary["failed"] == canary["failed_by_candidate"]
    assert failed or canary["guard"] != "errors", "on a busy machine another guard may be sooner"
    last_ns = max(one.opened_ns for one in candidate)
    since = [at_ns, *sorted(one.opened_ns for one in calls if at_ns < one.opened_ns <= last_ns)]
    assert sum(min(later - one, STILL_S * NS_PER_S) for one, later in pairwise(since)) < BACK_S_MAX * NS_PER_S
    users = {one.attribution.user for one in candidate}
    begun_ns = min(one.opened_ns for one in candidate)
    others = {one.attribution.user for one in calls if begun_ns < one.opened_ns < at_ns and one not in candidate}
    assert len(users) > 1
    assert len(others) > len(users)
    assert not users & others, "nobody sees both"
    assert (canary["dropped"], canary["failed_by_live"]) == (0, 0)
    assert canary["afterwards"] == canary["afterwards_well"] > 0


def test_a_change_that_was_not_undone_fails_the_demo(report: dict[str, Any]) -> None:
    change = msgspec.convert({**report["change"]}, Change)
    canary, replace = change.canary, msgspec.structs.replace
    assert change.holds
    for worse in (
        replace(canary, guard=""), replace(canary, dropped=1), replace(canary, failed_by_live=1),
        replace(canary, failed=canary.failed + 1), replace(canary, afterwards_well=0),
    ):  # fmt: skip
        assert not replace(change, canary=worse).holds
    assert not replace(change, stopped=replace(change.stopped, gates=())).holds
    assert not replace(change, after=replace(change.after, release=2)).holds
    assert not replace(change, log_whole=False).holds


def test_a_change_is_told_in_few_lines(report: dict[str, Any]) -> None:
    written = io.StringIO()
    print_change(msgspec.convert(report["change"], Change), Console(file=written, width=100))
    lines = written.getvalue().rstrip().splitlines()
    assert len(lines) <= 20
    assert max(len(line) for line in lines) <= 100
    for words in ("stopped by `", "ended with 3", "back by guard `", " 0 dropped", "control log whole"):
        assert words in written.getvalue()


def test_a_difference_of_one_nano_dollar_is_told(report: dict[str, Any]) -> None:
    folder = Path(report["project"]) / ".drivetrain" / "data"
    total = report["cost_nano_usd"]
    told = Told(**report["budget"]["told"])
    broken = {"requests": report["fault"]["failed"], "tokens_input": 0, "tokens_output": 0}
    models = {"all": {"tokens_input": report["tokens"], "tokens_output": 0}, BROKEN.partition("/")[2]: broken}

    def wrong(calls: int = 0, client: int = 0, provider: int = 0) -> list[str]:
        seen = Seen(calls=report["calls"] + calls, cost_nano_usd=total + client, told=told)
        invoice = {"models": models, "cost_nano_usd": total + provider}
        found = read_report(lake_at(folder), seen, invoice, {}, own_texts(CALLS).examples)
        return [check.what for check in found.checks if not check.ok]

    assert wrong() == []
    assert wrong(calls=1) == wrong(client=1) == ["the clients' own count"]
    assert wrong(provider=-1) == ["the provider's invoice"]


def test_what_does_not_hold_is_told(report: dict[str, Any]) -> None:
    folder = Path(report["project"]) / ".drivetrain" / "data"
    said = report["budget"]["told"]

    def holds(*, cap: int = 0, left: int = 0, failed: int = 0) -> bool:
        broken = {"requests": report["fault"]["failed"] + failed, "tokens_input": 0, "tokens_output": 0}
        models = {"all": {"tokens_input": report["tokens"], "tokens_output": 0}, BROKEN.partition("/")[2]: broken}
        told = Told(
            **{
                **said,
                "cap_nano_usd": said["cap_nano_usd"] + cap,
                "left_nano_usd": said["left_nano_usd"] + left,
            }
        )
        seen = Seen(calls=report["calls"], cost_nano_usd=report["cost_nano_usd"], told=told)
        invoice = {"models": models, "cost_nano_usd": report["cost_nano_usd"]}
        found = read_report(lake_at(folder), seen, invoice, {}, own_texts(CALLS).examples)
        assert found.claim is not None
        worse = msgspec.structs.replace(found.claim, low=-0.02)
        assert not msgspec.structs.replace(found, claim=worse).holds
        return found.holds

    assert holds()
    assert not holds(cap=-said["left_nano_usd"] - 1, left=-said["left_nano_usd"]), "a nano-dollar above its cap"
    assert not holds(left=-1)
    assert not holds(failed=1)


def test_it_runs_again_in_its_folder_and_beside_a_taken_port(report: dict[str, Any], place: Path) -> None:
    # Not the pipes of workers: they are nobody's, and cannot be copied.
    shutil.copytree(report["project"], place / "again", ignore=shutil.ignore_patterns("*.bell"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        texts = untrained_texts(place / "texts")
        done = demo("--once", "--json", "--data", texts, "--calls", "20", "--dir", "again", "--port", port, cwd=place)
    again = report_of(done)
    holds_together(again)
    assert again["not_trained"] == f"{texts} has no train.csv to train on"
    assert (again["trained"], again["untrained"], again["claim"]) == (None, None, None)
    assert {row["variant"] for row in again["route"]} <= {"efficient", "frontier"}
    assert f"port {port} is taken" in done.stderr


def test_people_get_the_same_within_100_columns(place: Path) -> None:
    done = demo("--once", "--calls", "20", "--dir", "people", cwd=place)
    assert done.returncode == 0, done.stderr
    assert max(len(line) for line in done.stdout.splitlines()) <= 100
    lines = done.stdout.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("A budget that bites"))
    assert [bool(line) for line in lines[start + 1 : start + 6]] == [True] * 4 + [False], "two lines each"
    for words in ("budget_exceeded: 0.", "resets at 20", "40 of 40 calls were answered", "circuit open after"):
        assert words in "".join(lines[start + 1 : start + 5])
    assert "left out: it takes 300 different messages" in done.stdout
    for words in ("simulated", "without trained", "intent@1, trained here", "too few messages to tell"):
        assert words in done.stdout
    for words in ("only frontier", "spend by", "adds up: ", "--project people"):
        assert words in done.stdout
    assert (place / "people" / ".gitignore").read_text() == "*\n", "keys of a demo are not committed"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A demo that stays, and what it printed."""
    child = subprocess.Popen(
        [*COMMAND, "--data", untrained_texts(tmp_path / "texts"), "--calls", "20", "--port", "0", "--dir", "stays"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        shown = ""
        for line in child.stdout:
            shown += line
            if line.startswith("print("):
                break
        yield child, shown
    finally:
        child.terminate()
        child.communicate(timeout=RUN_S)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no `curl` on this machine to paste into")
def test_the_curl_line_works_as_pasted(running: tuple[subprocess.Popen[str], str]) -> None:
    pasted = next(line for line in running[1].splitlines() if line.startswith("curl "))
    done = subprocess.run(["sh", "-c", pasted], capture_output=True, text=True, timeout=RUN_S, check=True)
    assert "freeze the card" in json.loads(done.stdout)["choices"][0]["message"]["content"]


@pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="the package `openai` is not installed")
def test_the_sdk_snippet_works_as_pasted(running: tuple[subprocess.Popen[str], str]) -> None:
    lines = running[1].splitlines()
    pasted = lines[lines.index("from openai import OpenAI") :]
    assert len(pasted) == 5
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(pasted)], capture_output=True, text=True, timeout=RUN_S, check=False
    )
    assert "freeze the card" in done.stdout, done.stderr


def test_it_ends_with_its_children_and_keeps_its_folder_to_itself(
    running: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    child, _ = running
    second = demo("--once", "--calls", "5", "--dir", "stays", cwd=tmp_path)
    assert second.returncode == 1
    assert "still running" in second.stderr
    children = _children(child.pid)
    assert len(children) == 2, "the simulator and the gateway"
    child.send_signal(signal.SIGINT)
    assert child.wait(RUN_S) == 0
    assert not [pid for pid in children if _lives(pid)]


def test_children_end_when_the_demo_is_killed(running: tuple[subprocess.Popen[str], str]) -> None:
    child, _ = running
    children = _children(child.pid)
    assert len(children) == 2
    child.kill()
    child.wait()
    deadline_s = time.monotonic() + RUN_S
    while any(_lives(pid) for pid in children) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not [pid for pid in children if _lives(pid)]


@real_texts
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_training_ends_with_the_demo(tmp_path: Path, signum: int) -> None:
    child = subprocess.Popen(
        [*COMMAND, "--once", "--data", str(BANKING77), "--port", "0", "--dir", "ends"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = tmp_path / "ends" / "training.log"
    try:
        deadline_s = time.monotonic() + RUN_S
        while not (log.exists() and "fold 1" in log.read_text()) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        children = _children(child.pid)
        assert len(children) == 1, "the training"
        child.send_signal(signum)
        assert child.wait(RUN_S) == (130 if signum == signal.SIGINT else -signal.SIGKILL)
        deadline_s = time.monotonic() + RUN_S
        while _lives(children[0]) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert not _lives(children[0])
    finally:
        child.kill()
        child.communicate(timeout=RUN_S)


@pytest.mark.timeout(TRAINED_RUN_S)
@real_texts
def test_on_real_texts_it_adds_up_and_holds(place: Path) -> None:
    report = report_of(
        demo("--once", "--json", "--data", str(BANKING77), "--dir", "banking77", cwd=place, run_s=TRAINED_RUN_S)
    )
    assert report["texts"] == {"name": "BANKING77", "attribution": "BANKING77, PolyAI, CC-BY-4.0", "messages": 3080}
    holds_together(report)
    test_models_are_as_right_as_declared(report)
    test_the_trained_model_answers_most_for_nothing_and_the_claim_holds(report)
    assert report["trained"]["texts"] + report["trained"]["dropped"] == 10_003
    row = trained_row(report)
    assert row["judged"] - row["right"] <= report["trained"]["risk"] * row["judged"]
    test_the_route_is_cheaper_than_the_frontier_and_better_than_the_efficient_model(report)
    test_what_is_worse_is_stopped_by_its_gate(report)
    test_a_canary_that_fails_more_often_goes_back_by_itself(report)


def _children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Killed with its parent, it may wait as a zombie for whoever adopted it.
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return not state.stdout.strip().startswith("Z") and state.stdout.strip() != ""
