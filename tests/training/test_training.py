"""One training through its door: a version with its Report, by the scorer that serves it; or nothing at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from training_samples import COLUMNS, SPLIT, Place, fraud, orders, table
from typer.testing import CliRunner, Result

from drivetrain.adapters.files import FileVault
from drivetrain.cli import dataset, reports
from drivetrain.cli.check import check_command
from drivetrain.cli.train import train_command
from drivetrain.core.calls import Answers, AttemptV1, Attribution, ClosedV1, OpenedV1, OutcomeV1, Stored
from drivetrain.core.codec import MSGPACK
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Column, Row, Scored, Signature
from drivetrain.core.recipes import (
    Examples,
    Recipe,
    TabularClassification,
    TabularRegression,
    TextClassification,
    Trained,
)
from drivetrain.inference.scorers import open_scorer
from drivetrain.ledger.journal import FrameJournal
from drivetrain.ports.inference import Scorer
from drivetrain.registry import store
from drivetrain.registry.reports import Reports
from drivetrain.training.training import Training, code_hash, environment_hash
from support.tries import PATIENCE_S, Spoiled, in_one_try

pytestmark = pytest.mark.slow

QUICK = TabularClassification(columns=COLUMNS, models=("linear",), folds=3)
TREES = TabularClassification(columns=COLUMNS, models=("lightgbm",), folds=3)
TEXTS = {
    "refund": ("I want my money back for order {}", "please refund {}", "return of {} and the money"),
    "delivery": ("where is parcel {}", "order {} has not arrived", "the courier lost package {}"),
    "account": ("I cannot log in as {}", "reset the password of {}", "change the e-mail of account {}"),
}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def texts(count: int) -> list[dict[str, Any]]:
    labels = list(TEXTS)
    return [
        {"text": TEXTS[labels[number % 3]][number // 3 % 3].format(number), "intent": labels[number % 3]}
        for number in range(count)
    ]


# What is made.


def test_a_training_registers_a_version_that_serves_and_moves_no_alias(place: Place) -> None:
    reference = place.dataset("orders", orders(400), split=SPLIT)
    made = place.training().train(fraud(reference, QUICK, seed=7, owner="team@acme.example", licence="internal"))
    version = place.registry.version("fraud", 1)
    assert version == made.version
    assert (version.dataset, version.seed, version.recipe) == ("orders@1", 7, "TabularClassification")
    assert (version.owner, version.licence, version.report) == ("team@acme.example", "internal", made.report_id)
    assert version.dataset_hash == place.datasets.show(reference).content_hash
    assert place.registry.aliases("fraud") == {}
    pinned = place.registry.resolve("models:/fraud/1")
    scored = open_scorer(place.registry.open(pinned), pinned).score([[5.0, "de", False], [500.0, "br", True]])
    assert [one.label for one in scored] == ["no", "yes"]
    assert made.report.subject == "model:fraud@1"
    assert [one.id for one in place.reports.list(subject="model:fraud@1")] == [made.report_id]
    upstream = place.lineage.upstream(f"report:train@{made.report_id}")
    assert upstream == {"model:fraud@1": 1, "dataset:orders@1": 1, **_files(upstream)}
    assert "dataset:orders@1" in place.lineage.upstream("model:fraud@1")


def _files(upstream: dict[str, int]) -> dict[str, int]:
    return {name: steps for name, steps in upstream.items() if name.startswith("file:")}


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (TabularClassification(columns=COLUMNS, folds=2), {}),
        (TabularRegression(columns=COLUMNS, models=("linear",), folds=2), {"label": "minutes"}),
        (TextClassification(folds=2), {"text": "text", "label": "intent"}),
    ],
)
def test_the_same_seed_gives_the_same_digest(place: Place, recipe: Any, options: dict[str, Any]) -> None:
    reference = place.dataset("rows", texts(120) if "text" in options else orders(150))
    digests = [place.training().train(fraud(reference, recipe, seed=3, **options)).version.digest for _ in range(2)]
    assert digests[0] == digests[1]
    assert place.registry.numbers("fraud") == [1, 2]
    hashes = {(one.code_hash, one.environment_hash) for one in place.registry.versions("fraud")}
    assert code_hash(fraud(reference, recipe, seed=4, **options)) != code_hash(
        fraud(reference, recipe, seed=3, **options)
    )
    assert hashes == {(code_hash(fraud(reference, recipe, seed=3, **options)), environment_hash())}


def test_the_metrics_are_those_of_what_is_served(place: Place) -> None:
    reference = place.dataset("orders", orders(500), split=SPLIT)
    made = place.training().train(fraud(reference, TREES))
    pinned = place.registry.resolve("models:/fraud/1")
    scorer = open_scorer(place.registry.open(pinned), pinned)
    rows = [row for row in place.datasets.rows(reference) if row["split"] == "test"]
    scored = scorer.score([[row[name] for name in COLUMNS] for row in rows])
    right = [one.label == row["fraud"] for one, row in zip(scored, rows, strict=True)]
    assert made.version.metrics["accuracy"] == pytest.approx(sum(right) / len(right), abs=1e-12)
    for one in made.report.body["thresholds"]:
        if one["threshold"] is not None:
            answered = [hit for hit, said in zip(right, scored, strict=True) if said.confidence >= one["threshold"]]
            assert one["test_answered"] == len(answered)
            assert made.version.thresholds[f"{one['risk']:g}"] == one["threshold"]
    temperature = json.loads((place.registry.artifact_folder(pinned) / "calibration.json").read_bytes())
    assert temperature["temperature"] == pytest.approx(made.report.body["recipe_facts"]["temperature"])


def test_a_new_version_is_compared_with_the_champion_row_by_row(place: Place) -> None:
    reference = place.dataset("orders", orders(800), split=SPLIT)
    training = place.training()
    first = training.train(fraud(reference, TabularClassification(columns=("country",), models=("linear",))))
    assert "champion" not in first.report.body
    place.registry.move_alias("fraud", "champion", 1, "the first")
    second = training.train(fraud(reference, TREES))
    why = "it takes `country`"
    beside = second.report.body["champion"]
    assert (beside["model"], beside["rows"]) == ("model:fraud@1", second.report.body["rows"]["test"])
    assert beside["theirs"] == pytest.approx(first.version.metrics["accuracy"])
    assert beside["difference"] == pytest.approx(
        (beside["only_ours_right"] - beside["only_theirs_right"]) / beside["rows"]
    )
    assert beside["low"] > 0
    assert "better than model:fraud@1" in second.report.verdict
    third = training.train(fraud(reference, TabularClassification(columns=("amount",), models=("linear",))))
    assert third.report.body["champion"]["why"].startswith(why)
    assert place.registry.aliases("fraud") == {"champion": 1}


# What is refused, and leaves nothing.


class Bent:
    """A scorer that says something else than the model that was trained."""

    def __init__(self, inner: Scorer) -> None:
        self.inner = inner
        self.pinned = inner.pinned

    def score(self, rows: Sequence[Row]) -> list[Scored]:
        scored = self.inner.score(rows)
        first = scored[0]
        scores = {label: chance + (1e-4 if at else -1e-4) for at, (label, chance) in enumerate(first.scores.items())}
        return [Scored(first.label, first.confidence, scores), *scored[1:]]


def test_an_export_that_says_something_else_is_not_registered(place: Place) -> None:
    reference = place.dataset("orders", orders(200))
    training = place.training(open_scorer=lambda folder, pinned: Bent(open_scorer(folder, pinned)))
    with pytest.raises(DrivetrainError, match="differs from the trained one on 1 of"):
        training.train(fraud(reference, QUICK))
    assert place.state() == set()


@pytest.mark.parametrize("options", [{"risks": (0.0,)}, {"seed": -1}])
def test_what_cannot_be_is_refused_before_any_work(place: Place, options: dict[str, Any]) -> None:
    reference, told = place.dataset("orders", orders(50)), []
    with pytest.raises(DrivetrainError):
        place.training().train(fraud(reference, QUICK, **options), progress=lambda what, _share: told.append(what))
    assert not told


@pytest.mark.parametrize("stage", ["rows", "linear C=1", "refit", "test rows", "register"])
def test_ctrl_c_at_any_stage_leaves_nothing(place: Place, stage: str) -> None:
    reference = place.dataset("orders", orders(200))

    def interrupt(what: str, _share: float) -> None:
        if what == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.training().train(fraud(reference, QUICK), progress=interrupt)
    assert place.state() == set()
    assert place.registry.names() == []


def _train_and_wait(root: Path, ready: Any) -> None:
    place = Place(root)

    def wait(what: str, _share: float) -> None:
        if what == "test rows":
            ready.set()
            time.sleep(60)

    place.training().train(fraud("orders@1", QUICK), progress=wait)


def test_a_kill_leaves_nothing_that_counts_and_the_next_training_clears_the_rest(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.dataset("orders", orders(200))
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_train_and_wait, args=(tmp_path, ready))
    process.start()
    assert ready.wait(4 * PATIENCE_S)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert place.registry.names() == []
    assert place.reports.list() == []
    made = place.training().train(fraud("orders@1", QUICK))
    assert made.version.number == 1
    assert not [one for one in place.state() if one.startswith("tmp")]


@pytest.mark.parametrize("moment", ["begun", "published"])
def test_a_report_whose_version_never_came_is_swept_and_one_whose_version_came_is_noted(
    place: Place, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = place.dataset("orders", orders(200))
    with monkeypatch.context() as killed:
        if moment == "begun":  # the Report is there; a kill runs no `except`
            killed.setattr(store, "_sync_tree", _killed)
            killed.setattr(Reports, "drop", lambda *_: None)
        else:  # the version is there and noted
            killed.setattr(Training, "_note", _killed)
        with pytest.raises(KeyboardInterrupt):
            place.training().train(fraud(reference, QUICK))
    (left,) = place.reports.list()
    assert left.report.subject == "model:fraud@1"
    assert place.registry.numbers("fraud") == ([] if moment == "begun" else [1])
    made = place.training().train(fraud(reference, QUICK, seed=1))
    assert made.version.number == (1 if moment == "begun" else 2)
    kept = {one.report.subject: one.id for one in place.reports.list()}
    assert kept == {one.artifact: one.report for one in place.registry.versions("fraud")}
    assert (left.id in kept.values()) == (moment == "published")
    for subject, id_ in kept.items():
        assert subject in place.lineage.upstream(f"report:train@{id_}")
    assert not list((place.data / "reports").glob("*.begun"))


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_registration_that_fails_takes_its_report_with_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = place.dataset("orders", orders(200))

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_sync_tree", full)
    with pytest.raises(DrivetrainError, match="No space left"):
        place.training().train(fraud(reference, QUICK))
    assert place.state() == set()


# The project's own recipes.


def majority(train: Examples, seed: int, progress: Any) -> Trained:
    """A LightGBM of one column, made by hand."""
    import lightgbm
    import numpy as np

    progress("counting", 0.5)
    labels = sorted(set(train.labels))
    data = lightgbm.Dataset(
        np.array([[value or 0.0] for value in train.columns["amount"]]),
        label=[labels.index(one) for one in train.labels], params={"verbosity": -1},
    )  # fmt: skip
    given = {"objective": "binary", "verbosity": -1, "num_threads": 1, "seed": seed, "deterministic": True}
    booster = lightgbm.train(given, data, num_boost_round=20)
    return Trained(
        format="lightgbm", files={"model.txt": booster.model_to_string().encode()},
        signature=Signature(
            task="classification", inputs=(Column(name="amount", dtype="float", nullable=True),), target="fraud",
            labels=tuple(labels),
        ),
        facts={"trees": 20, "mean": np.float64(0.5)},
    )  # fmt: skip


def own(function: Any, **options: Any) -> Recipe:
    return Recipe("mine", function, task=options.get("task", "classification"))


def test_an_own_recipe_goes_through_the_same_checks(place: Place) -> None:
    reference = place.dataset("orders", orders(400), split=SPLIT)
    made = place.training().train(fraud(reference, own(majority)))
    assert made.version.recipe == "mine"
    assert made.report.body["recipe_facts"] == {"trees": 20, "mean": 0.5}
    assert made.version.metrics["accuracy"] > 0.6
    assert made.report.body["thresholds_chosen_on"].startswith("the test rows")
    assert made.version.code_hash != place.training().train(fraud(reference, QUICK)).version.code_hash


def _with(**changes: Any) -> Any:
    import msgspec

    return lambda train, seed, progress: msgspec.structs.replace(majority(train, seed, progress), **changes)


def _raise(train: Examples, seed: int, progress: Any) -> Trained:
    raise ZeroDivisionError("no rows of " + str(seed))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (_raise, "failed: ZeroDivisionError: no rows of 0"),
        (lambda train, seed, progress: None, "gave back a NoneType"),
        (lambda train, seed, progress: exit(3), "failed: SystemExit"),
        (_with(format="pickle"), "of the format 'pickle'"),
        (_with(files={}), "without files"),
        (_with(files={"../x": b""}), "../x"),
        (_with(files={"model.txt": b"no model"}), "no sound LightGBM model"),
        (_with(predictions=[[0.5, 0.5]]), "gave 1 predictions for"),
        (_with(signature=Signature(task="regression", inputs=(), target="fraud")), "is declared as a classification"),
        (
            _with(signature=Signature(task="classification", inputs=(Column(name="size", dtype="float"),),
                                      target="fraud", labels=("no", "yes"))), "takes `size`",
        ),
        (
            _with(signature=Signature(task="classification", inputs=(Column(name="amount", dtype="float"),),
                                      target="other", labels=("no", "yes"))), "predicts `other`",
        ),
    ],
)  # fmt: skip
def test_an_own_recipe_that_is_wrong_is_told_and_registers_nothing(place: Place, function: Any, says: str) -> None:
    reference = place.dataset("orders", orders(120))
    with pytest.raises(DrivetrainError) as refused:
        place.training().train(fraud(reference, own(function)))
    assert says in str(refused.value)
    assert place.state() == set()


def test_an_own_recipe_that_hangs_is_given_up_and_one_that_tells_is_not(place: Place) -> None:
    reference = place.dataset("orders", orders(200), split=SPLIT)
    release = threading.Event()

    def hang(train: Examples, seed: int, progress: Any) -> Trained:
        release.wait(30)
        return majority(train, seed, progress)

    def slow(train: Examples, seed: int, progress: Any) -> Trained:
        for step in range(10):
            time.sleep(0.1)
            progress("on it", step / 10)
        return majority(train, seed, progress)

    with pytest.raises(DrivetrainError, match=r"neither ended nor called `progress` for 0\.6 s"):
        place.training(patience_s=0.6).train(fraud(reference, own(hang)))
    release.set()
    assert place.registry.names() == []

    def trained() -> int:
        """In one of a few whole tries: where the machine stands still, nobody tells anything for a while."""
        try:
            return place.training(patience_s=0.6).train(fraud(reference, own(slow))).version.number
        except DrivetrainError as given_up:
            if "neither ended nor called `progress`" in str(given_up):
                raise Spoiled(str(given_up)) from given_up
            raise

    assert in_one_try(trained) == 1


# By one command.

PROJECT = {
    "drivetrain.toml": '[project]\nname = "shop"\n',
    "training/models.py": (
        "import drivetrain as dt\n\n"
        'intent = dt.TrainedModel("intent", dataset="texts", recipe=dt.TextClassification(folds=3), label="intent",\n'
        '                         text="text", seed=7)\n'
    ),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, content in PROJECT.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, *arguments: str) -> Result:
    found: Any = {"train": train_command, "check": check_command, "dataset": dataset.app, "report": reports.app}[name]
    app = found
    if not isinstance(found, typer.Typer):
        app = typer.Typer(pretty_exceptions_enable=False)
        app.command()(found)
    return CliRunner().invoke(app, list(arguments))


def done(*arguments: str) -> str:
    ran = run(*arguments)
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def test_drivetrain_train_of_a_declared_model(project: Path) -> None:
    (project / "texts.csv").write_text(table(texts(150)))
    done("dataset", "create", "texts", "--from-file", "texts.csv", "--split", "train=0.7,test=0.3")
    lines = done("train", "intent").splitlines()
    assert lines[0] == "intent@1: linear-text, from texts@1, seed 7"
    assert lines[-1].endswith('drivetrain models alias intent champion 1 --reason "..."')
    told = json.loads(done("train", "intent", "--seed", "8", "--json"))
    assert (told["version"]["number"], told["version"]["seed"]) == (2, 8)
    assert told["version"]["metrics"]["accuracy"] > 0.9
    listed = json.loads(done("report", "list", "--json"))["reports"]
    assert {one["id"] for one in listed} >= {told["report_id"]}
    for name in (told["report_id"][:6], "intent@2", "intent"):
        assert json.loads(done("report", "show", name, "--json"))["id"] == told["report_id"]


ROUTED = """\
import drivetrain as dt


class Message(dt.Record):
    text: str


class Intent(dt.Record):
    intent: str


route = dt.Workflow(
    "route", input=Message, output=Intent, owner="a@b.example", team="support", use_case="x",
    route=[dt.Variant("own", model="models:/intent@champion"), dt.Rule("rest", when=lambda m: True,
           then=Intent(intent="other"))],
)
"""


def test_a_model_is_trained_that_the_project_names_already(project: Path) -> None:
    (project / "workflows").mkdir()
    (project / "workflows/route.py").write_text(ROUTED)
    (project / "drivetrain.toml").write_text(
        '[project]\nname = "shop"\n[gateway]\ndirect_models = ["models:/intent@champion"]\ndirect_team = "support"\n'
    )
    (project / "texts.csv").write_text(table(texts(90)))
    done("dataset", "create", "texts", "--from-file", "texts.csv", "--split", "train=0.7,test=0.3")
    refused = run("check")
    assert refused.exit_code == 1, "nothing could be served"
    assert "that the registry does not hold" in refused.output
    assert "drivetrain train" in refused.output
    assert done("train", "intent").startswith("intent@1: ")
    (project / "workflows/route.py").write_text(ROUTED.replace("intent@champion", "Intent@"))
    malformed = run("train", "intent")
    assert malformed.exit_code == 1
    assert "no reference to a trained model" in malformed.stderr


def test_drivetrain_train_by_options_alone(project: Path) -> None:
    (project / "orders.csv").write_text(table(orders(200)))
    done("dataset", "create", "orders", "--from-file", "orders.csv")
    said = done("train", "fraud", "--dataset", "orders@1", "--recipe", "tabular", "--label", "fraud",
                "--columns", "amount,country,fresh", "--segment", "country", "--risk", "0.1")  # fmt: skip
    assert said.startswith("fraud@1: ")
    assert "held out" in said
    refused = run("train", "fraud", "--dataset", "orders@1", "--label", "fraud")
    assert refused.exit_code == 1
    assert "Say --recipe too." in refused.stderr
    unknown = run("train", "intnt")
    assert unknown.exit_code == 1
    assert "Did you mean `intent`" in unknown.stderr


def test_a_model_that_is_not_declared_is_told_what_to_do_once(project: Path) -> None:
    ran = run("train", "fraud")
    assert ran.exit_code == 1
    assert "the project declares `intent`." in ran.stderr
    assert (
        'Declare `dt.TrainedModel("fraud", ...)` in `training/`, or say --dataset, --recipe and --label.' in ran.stderr
    )
    (project / "training" / "models.py").unlink()
    bare = run("train", "fraud").stderr
    assert bare.count("declare") == 1, bare
    assert "Looked in" not in bare


def test_an_unknown_dataset_is_told_before_any_progress(project: Path) -> None:
    ran = run("train", "intent")
    assert ran.exit_code == 1
    assert "%" not in ran.stderr, ran.stderr


def test_check_counts_what_it_found(project: Path) -> None:
    assert run("check").stdout.startswith("ok: 0 workflows, 1 trained model, snapshot ")
    assert json.loads(run("check", "--json").stdout)["trained_models"] == ["intent"]


def test_every_mistake_of_a_declaration_is_told_by_check(project: Path) -> None:
    (project / "training" / "models.py").write_text(
        "import drivetrain as dt\n\n"
        'one = dt.TrainedModel("One", dataset="a b", recipe=dt.TextClassification(folds=1), label="", segmens="x")\n'
        'two = dt.TrainedModel("two", dataset="d", recipe=dt.TabularClassification(models=("linar",)), label="y",\n'
        "    risks=[2], seed=-1)\n"
        'three = dt.TrainedModel("two", dataset="d", recipe="text", label="y")\n\n'
        '@dt.recipe("own", task="ranking")\n'
        "def own(train, seed):\n    return None\n\n"
        'four = dt.TrainedModel("four", dataset="d", recipe=own, label="y")\n'
    )
    said = run("check").output
    for mistake in (
        "has a wrong name", "names no Dataset", "has no label", "without a text", "wrong `folds`",
        "has no argument `segmens`", "Did you mean `segments`", "Did you mean `linear`", "wrong `risks`",
        "wrong `seed`",
        "is declared twice; the other is at training/models.py:4", "has no recipe", "an unknown task",
        "takes 2 arguments",
    ):  # fmt: skip
        assert mistake in said, mistake


T0_NS = 1_767_225_600_000_000_000


def _calls(vault: FileVault, count: int) -> list[Stored]:
    """Calls of a typed workflow that kept their payloads, and what turned out to be true of all but every fifth."""
    found: list[Stored] = []
    for number, row in enumerate(texts(count)):
        one, opened_ns = f"call_{T0_NS // 1_000_000 + number:012x}0123456789{number:08x}", T0_NS + number * 1_000_000
        request = json.dumps({"text": row["text"]}).encode()
        answers = MSGPACK.encode(Answers((b'{"intent": "refund"}',), None))
        found.append(
            OpenedV1(
                one, opened_ns, "0123456789abcdef", "triage", "typed", False,
                Attribution(team="support", user=f"user-{number % 40}"), retained=2,
                payload=vault.seal(f"user-{number % 40}", one, "request", request),
            )
        )  # fmt: skip
        found.append(
            ClosedV1(
                one, opened_ns + 5_000_000, "answered", 200, "small", 1_500,
                (AttemptV1("small", "sim/small", "answer", "accepted", cost_nano_usd=1_500),), retained=2,
                payload=vault.seal(f"user-{number % 40}", one, "answers", answers),
            )
        )  # fmt: skip
        if number % 5:
            found.append(OutcomeV1(one, "intent", "agent", row["intent"], T0_NS, T0_NS + number))
    return found


def test_calls_with_outcomes_become_a_model(project: Path) -> None:
    vault = FileVault(project / ".drivetrain" / "keys")
    journal = FrameJournal(project / ".drivetrain" / "data")
    written: list[bool] = []
    for record in _calls(vault, 200):
        journal.append(record, written.append)
    journal.flush()
    journal.close()
    vault.close()
    assert all(written)
    done("dataset", "create", "golden", "--from-calls", "workflow = 'triage'", "--with-outcomes", "intent")
    told = json.loads(done("train", "triage", "--dataset", "golden", "--recipe", "text", "--text", "input.text",
                           "--label", "outcome_intent", "--group-by", "user", "--json"))  # fmt: skip
    signature = told["version"]["signature"]
    assert (signature["target"], [one["name"] for one in signature["inputs"]]) == ("intent", ["text"])
    assert told["version"]["metrics"]["accuracy"] > 0.9
    notices = told["report"]["body"]["notices"]
    assert "40 rows without a label were left out" in notices
    assert any("`input.text` is personal" in one for one in notices)
    assert "order 7" not in json.dumps(told["report"]), "a Report quotes nobody"
    refused = run("train", "other", "--dataset", "golden", "--recipe", "tabular", "--label", "outcome_intent")
    assert "`input.FIELD`" in refused.stderr
