"""Probes: a changed provider is told, a noisy one is not, and what is asked is bounded, frozen and said before."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from typer.testing import CliRunner, Result

from drivetrain.adapters.sqlite import open_control_log
from drivetrain.cli import probe as probe_cli
from drivetrain.embedded.probe_baselines import Baselines
from drivetrain.embedded.probing import Probes, Wish
from drivetrain.evals.probing import ASPECTS, LEVEL, AnswerV1, answer_of, probe
from drivetrain.ledger.reader import LedgerReader
from drivetrain.project import load, unload
from drivetrain.registry.reports import Reports
from drivetrain.simulator import SimulatorProcess

pytestmark = pytest.mark.slow

KEY = b"k" * 32
SEED = 20261121
WORDS = ["please", "refund", "my", "order", "it", "arrived", "broken", "and", "late", "so", "send", "the", "money"]
app = typer.Typer()
app.command()(probe_cli.probe_command)


# The test itself, on simulated models.


def said(text: str, *, form: str = "stop", tokens: int = 0, model: str = "m-1", fingerprint: str = "fp") -> AnswerV1:
    return answer_of(text, key=KEY, form=form, tokens=tokens or len(text) // 4, model=model, fingerprint=fingerprint,
                     call_id="call_x")  # fmt: skip


Model = Callable[[int, random.Random], AnswerV1]


def noisy(row: int, chance: random.Random) -> AnswerV1:
    """As a model at a high temperature: words, length and now and then the form differ each time."""
    words = [WORDS[(row + chance.randrange(5)) % len(WORDS)] for _ in range(chance.randint(4, 14))]
    return said(" ".join(words), form=chance.choice(("stop", "stop", "stop", "length")), tokens=chance.randint(5, 40))


def answers(model: Model, chance: random.Random, rows: int = 20, repeats: int = 1) -> dict[str, list[AnswerV1]]:
    return {str(row): [model(row, chance) for _ in range(repeats)] for row in range(rows)}


def test_a_noisy_model_that_does_not_change_raises_few_alarms_over_many_probes() -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    baselines, probes = 40, 20
    alarmed = 0
    for _ in range(baselines):
        before = answers(noisy, chance, rows=12, repeats=3)
        found = [probe(before, answers(noisy, chance, rows=12), number=number + 1) for number in range(probes)]
        alarmed += any(one.changed for one in found)
    assert alarmed <= LEVEL * baselines, f"{alarmed} of {baselines} baselines raised an alarm"


def test_the_evidence_of_an_unchanged_model_is_one_on_average_exactly() -> None:
    """Over every way in which four equally likely answers might have been baseline and new ones."""
    chance = random.Random(SEED)
    drawn = [noisy(1, chance) for _ in range(4)]
    total = 0.0
    for chosen in combinations(range(4), 1):
        before = [one for place, one in enumerate(drawn) if place not in chosen]
        found = probe({"r": before}, {"r": [drawn[chosen[0]]]}, number=1)
        total += 2.718281828459045**found.log_evidence / 4
    assert total == pytest.approx(1.0, abs=1e-9)


def test_evidence_is_told_in_plain_numbers() -> None:
    chance = random.Random(SEED)
    found = probe(answers(noisy, chance, rows=6, repeats=3), answers(noisy, chance, rows=6), number=1)
    told = found.verdict.partition("(evidence ")[2]
    assert told.endswith(" of 40 needed)")
    value = float(told.removeprefix("less than ").split()[0])
    assert value == pytest.approx(max(0.01, math.exp(found.log_evidence)), rel=0.06)
    sure = msgspec.structs.replace(found, changed=True, log_evidence=50.0)
    assert "evidence 1,000,000 or more of 40 needed" in sure.verdict


@pytest.mark.parametrize(
    ("aspect", "changed"),
    [
        ("words", lambda row, chance: said("no refund is possible " + WORDS[row % 5], tokens=9)),
        ("form", lambda row, chance: msgspec.structs.replace(noisy(row, chance), form="failed output_invalid json")),
        ("length", lambda row, chance: said(" ".join(WORDS * 6), tokens=20)),
        ("tokens", lambda row, chance: msgspec.structs.replace(noisy(row, chance), tokens=400)),
    ],
)
def test_each_kind_of_change_is_found_and_named(aspect: str, changed: Model) -> None:
    chance = random.Random(SEED)
    before = answers(noisy, chance, rows=30, repeats=3)
    found = probe(before, answers(changed, chance, rows=30), number=10)
    assert found.changed
    assert found.aspects[aspect] >= found.log_needed
    assert aspect in found.verdict
    assert "of 2,200 needed" in found.verdict, "10 * 11 / 0.05"
    assert found.apart[aspect] > found.noise[aspect]


def test_one_changed_answer_of_five_is_enough_where_there_is_no_noise_and_one_of_thirty_is_not() -> None:
    def steady(row: int, _chance: random.Random) -> AnswerV1:
        return said(f'{{"intent": "label-{row % 3}"}}')

    def changed(share: int) -> Model:
        return lambda row, chance: said('{"intent": "other"}') if row % share == 0 else steady(row, chance)

    chance = random.Random(SEED)
    before = answers(steady, chance, rows=30, repeats=3)
    assert not probe(before, answers(steady, chance, rows=30), number=1).changed
    assert probe(before, answers(changed(5), chance, rows=30), number=1).changed
    assert not probe(before, answers(changed(30), chance, rows=30), number=1).changed


def test_another_name_in_the_responses_is_a_change_and_another_fingerprint_is_only_told() -> None:
    before = {str(row): [said("yes")] * 3 for row in range(6)}
    renamed = probe(before, {str(row): [said("yes", model="m-2")] for row in range(6)}, number=1)
    assert renamed.changed
    assert renamed.renamed == ("m-1", "m-2")
    moved = probe(before, {str(row): [said("yes", fingerprint="fp2")] for row in range(6)}, number=1)
    assert not moved.changed
    assert moved.fingerprints == ("fp", "fp2")


def test_too_few_rows_show_nothing() -> None:
    before = {str(row): [said("yes")] * 3 for row in range(4)}
    found = probe(before, {str(row): [said("no")] for row in range(4)}, number=1)
    assert not found.changed
    assert "not enough answers" in found.verdict
    assert not probe({}, {}, number=1).changed


def test_nothing_of_an_answer_is_kept_but_figures_and_keyed_hashes() -> None:
    kept = said("the secret of Ann")
    assert b"secret" not in msgspec.json.encode(kept)
    assert answer_of("the secret of Ann", key=b"other", form="stop", tokens=1, model="", fingerprint="",
                     call_id="").words != kept.words  # fmt: skip
    assert set(ASPECTS) == {"words", "form", "length", "tokens"}


# The whole way, through a simulated provider.

MODELS: dict[str, dict[str, Any]] = {
    "small": {
        "answer": "refunds take five days",
        "usd_per_million_input": "1", "usd_per_million_output": "2",
    },
    "noisy": {"output_tokens": {"min": 5, "max": 30}, "usd_per_million_input": "1", "usd_per_million_output": "2"},
}  # fmt: skip
SETTINGS = """\
[project]
name = "shop"

[providers.sim]
dialect = "openai"
base_url = "URL/v1"
breaker = false

[models."sim/small"]
usd_per_million_input = "1"
usd_per_million_output = "2"
retires = "2026-01-01"

[models."sim/noisy"]
usd_per_million_input = "1"
usd_per_million_output = "2"

[workflows.help]
owner = "team@acme.example"
team = "support"
use_case = "tests"
retention = "full"
route = [
  { name = "small", model = "sim/small", max_output_tokens = 64 },
  { name = "noisy", model = "sim/noisy", max_output_tokens = 64 },
]
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def simulated(port: int, **changed: Any) -> SimulatorProcess:
    return SimulatorProcess({"seed": 1, "models": {**MODELS, **changed}}, port=port)


@pytest.fixture
def project(tmp_path: Path, port: int) -> Path:
    root = tmp_path / "shop"
    root.mkdir()
    (root / "drivetrain.toml").write_text(SETTINGS.replace("URL", f"http://127.0.0.1:{port}"))
    return root


def with_dataset(root: Path, rows: int = 12) -> None:
    from drivetrain.datasets.sources import FromFile
    from drivetrain.embedded.training import datasets_in

    (root / "golden.jsonl").write_text("".join(f'{{"text": "ticket {row} of Ann"}}\n' for row in range(rows)))
    snapshot = load(root)
    datasets_in(snapshot).create("golden", FromFile("golden.jsonl"))
    unload(snapshot)


def run(root: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["--project", str(root), *more])


def probed(root: Path, *more: str) -> dict[str, dict[str, Any]]:
    found = run(root, "--json", *more)
    assert found.exit_code in (0, 1, 3), found.output
    line = next(one for one in found.output.splitlines() if one.startswith("{"))
    return {one["model"]: {**one, "code": found.exit_code} for one in json.loads(line)["probes"]}


def test_a_changed_provider_is_told_once_there_is_a_baseline_and_a_noisy_one_is_not(project: Path, port: int) -> None:
    with_dataset(project)
    with simulated(port):
        told = run(project, "--dataset", "golden")
        assert told.exit_code == 0, told.output
        assert "sim/small: baseline, 36 Calls of golden@1 through help, at most " in told.output
        assert "sim/small was retired on 2026-01-01" in told.output
        same = probed(project)
        assert {one["state"] for one in same.values()} == {"unchanged"}, same
    with simulated(port, small={**MODELS["small"], "answer": "we do not give refunds"}):
        changed = probed(project)
    assert changed["sim/small"]["code"] == 3
    assert (changed["sim/small"]["state"], changed["sim/noisy"]["state"]) == ("changed", "unchanged")
    report = Reports(project / ".drivetrain/data/reports").get(changed["sim/small"]["report"]).report
    assert report.facts["changed"] is True
    assert report.facts["probe"] == 2
    assert report.subject == "workflow:help"
    kept = b"".join(one.read_bytes() for one in (project / ".drivetrain/data/probes").iterdir())
    assert b"refund" not in kept
    assert b"Ann" not in kept
    calls = list(LedgerReader(project / ".drivetrain/data").calls())
    assert {one.door for one in calls} == {"eval"}
    assert all(one.attribution.tags == (f"probe=sim/{one.variant}",) for one in calls)
    assert len(calls) == 2 * (36 + 12 + 12)


def test_an_accepted_baseline_is_noted_with_its_reason_and_is_what_counts(project: Path, port: int) -> None:
    with_dataset(project)
    with simulated(port):
        probed(project, "--dataset", "golden", "--model", "sim/small")
    with simulated(port, small={**MODELS["small"], "answer": "we do not give refunds"}):
        assert run(project, "--accept").exit_code == 1, "without a reason"
        again = probed(project, "--model", "sim/small", "--accept", "-m", "the new wording is right")
        assert again["sim/small"]["state"] == "baseline"
        assert probed(project, "--model", "sim/small")["sim/small"]["state"] == "unchanged"
    log = open_control_log(project / ".drivetrain/data", project / ".drivetrain/keys")
    noted = [one for one in log.records() if one.kind == "probe.accepted"]
    assert [(one.subject, json.loads(one.body)["reason"]) for one in noted] == [
        ("sim/small", "the new wording is right")
    ]  # fmt: skip


def test_what_the_project_itself_changed_is_no_change_of_the_provider(project: Path, port: int) -> None:
    with_dataset(project)
    with simulated(port):
        probed(project, "--dataset", "golden", "--model", "sim/small")
        text = (project / "drivetrain.toml").read_text()
        (project / "drivetrain.toml").write_text(f"# who to ask: ann\n{text}")
        assert probed(project, "--model", "sim/small")["sim/small"]["state"] == "unchanged"
        (project / "drivetrain.toml").write_text(text.replace("max_output_tokens = 64", "max_output_tokens = 32"))
        found = probed(project, "--model", "sim/small")["sim/small"]
    assert found["state"] == "baseline"
    assert "the project changed what it is asked" in found["verdict"]


def test_rows_are_frozen_from_recent_calls_and_without_any_nothing_is_asked(project: Path, port: int) -> None:
    with simulated(port):
        nothing = probed(project, "--model", "sim/small")["sim/small"]
        assert nothing["state"] == "not asked"
        assert "no request of its Calls was kept" in nothing["verdict"]
        _live_calls(project, 8)
        made = probed(project, "--model", "sim/small")["sim/small"]
        assert made["state"] == "baseline", made
        _live_calls(project, 3)
        snapshot = load(project)
        planned = Probes(snapshot).plan("sim/small", Wish())[0]
        unload(snapshot)
    assert planned.frozen is not None
    assert planned.frozen.dataset == "probe-help@1"
    assert planned.calls == 8


def _live_calls(root: Path, count: int) -> None:
    code = (
        "from pathlib import Path; from drivetrain.embedded import calls\n"
        f"for n in range({count}):\n"
        '    calls.call(Path(\'.\'), \'help\', b\'{"messages":[{"role":"user","content":"question %d"}]}\' % n)\n'
        "calls.close()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=100)


def test_the_limit_holds_and_a_provider_that_is_down_is_not_a_changed_one(project: Path, port: int) -> None:
    with_dataset(project)
    with simulated(port):
        probed(project, "--dataset", "golden", "--model", "sim/small")
        short = probed(project, "--model", "sim/small", "--limit-usd", "0.0002")["sim/small"]
        assert short["state"] == "not asked"
        assert "limit" in short["verdict"]
        assert short["cost_nano_usd"] <= 200_000
        before = len(list(LedgerReader(project / ".drivetrain/data").calls()))
        dry = run(project, "--dry-run")
        assert dry.exit_code == 0
        assert "in all at most" in dry.output
        assert len(list(LedgerReader(project / ".drivetrain/data").calls())) == before
    down = probed(project, "--model", "sim/small")["sim/small"]
    assert (down["state"], down["code"]) == ("not asked", 1)
    assert "not enough answers" in down["verdict"]


def test_wrong_arguments_are_told_and_two_probes_do_not_run_at_once(project: Path) -> None:
    with_dataset(project)
    with Baselines(project / ".drivetrain/data").alone():
        busy = run(project, "--dry-run")
        assert busy.exit_code == 1
        assert "Another probe of this project runs" in busy.output
    assert "sim/small" in run(project, "--model", "sim/smal").output
    assert run(project, "--dataset", "goldn").exit_code == 1
    assert run(project, "--every", "5s").exit_code == 1
    assert run(project, "--every", "often").exit_code == 1


def test_a_loop_ends_at_a_signal(project: Path, port: int) -> None:
    with_dataset(project)
    with simulated(port):
        command = [sys.executable, "-c", "from drivetrain.cli.main import main; main()", "probe", "--project",
                   str(project), "--dataset", "golden", "--model", "sim/small", "--every", "6h", "--json"]  # fmt: skip
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
        try:
            assert child.stdout is not None
            assert '"baseline"' in child.stdout.readline()
            child.send_signal(signal.SIGTERM)
            assert child.wait(60) == 0  # the next look is six hours away
        finally:
            child.kill()
            child.communicate()
