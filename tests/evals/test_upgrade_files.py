"""`drivetrain upgrade --recorded`: outcomes in files in, a verdict, drift and pages out; and real ones, if present."""

from __future__ import annotations

import csv
import itertools
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from drivetrain.cli.main import application
from drivetrain.core.errors import DrivetrainError
from drivetrain.evals.upgrading.from_files import upgrade_from_files, upgrade_of_recorded
from drivetrain.evals.upgrading.html import rendered
from drivetrain.evals.upgrading.page import Quote, markdown, page_of
from drivetrain.evals.upgrading.recorded import Columns, read_recorded
from drivetrain.evals.upgrading.result import Upgrade
from drivetrain.evals.upgrading.verdict import Asked
from drivetrain.statistics.paired import mcnemar

pytestmark = pytest.mark.slow

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
PRIME, LEETCODE = DATA / "llmdrift" / "PRIME_FULL_EVAL.csv", DATA / "llmdrift" / "LEETCODE_EASY_EVAL.csv"
ZEROEVAL = DATA / "zeroeval" / "gsm8k_outcomes.csv"
here = pytest.mark.skipif(not PRIME.is_file() or not ZEROEVAL.is_file(), reason=f"the real outcomes are not in {DATA}")
GPT_3_5, GPT_4 = ("gpt-3.5-turbo-0301", "gpt-3.5-turbo-0613"), ("gpt-4-0314", "gpt-4-0613")


def drift_columns(models: tuple[str, str], **more: str) -> Columns:
    before, after = (f"openaichat/{one}" for one in models)
    return Columns(
        model="model", before=before, after=after, answer="answer", cost="cost", latency="latency",
        tokens="answer_token", **more,
    )  # fmt: skip


def prime(models: tuple[str, str]) -> Upgrade:
    return upgrade_from_files([PRIME], drift_columns(models, expected="ref_answer"), Asked())


def wide(tmp_path: Path, rows: list[dict[str, Any]], name: str = "rows.csv") -> Path:
    path = tmp_path / name
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def scored(tmp_path: Path, pairs: list[tuple[float, float]], **more: Any) -> Path:
    return wide(tmp_path, [
        {"id": number, "before_right": old, "after_right": new,
         **{key: value(number) if callable(value) else value for key, value in more.items()}}
        for number, (old, new) in enumerate(pairs)
    ])  # fmt: skip


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(application(["upgrade"]), ["upgrade", *arguments])
    assert result.exit_code == code, result.output
    return result.output


# Real outcomes.


@here
def test_gpt_4_of_june_stays_for_its_answers_and_their_collapse() -> None:
    found = prime(GPT_4)
    assert found.verdict.word == "stay"
    assert (found.verdict.everything.before, found.verdict.everything.after) == (0.84, 0.511)
    assert found.drift.length is not None
    assert found.drift.length.word == "collapse"
    named = " ".join(found.drift.named)
    assert "collapse in length" in named
    assert "the format changes" in named
    bare = next(one for one in found.drift.shapes if one.shape == "bare")
    assert bare.before < 0.01
    assert bare.after > 0.99


@here
def test_gpt_3_5_of_june_is_an_upgrade() -> None:
    found = prime(GPT_3_5)
    assert found.verdict.word == "upgrade"
    assert (found.verdict.everything.before, found.verdict.everything.after) == (0.5, 0.761)


@here
def test_the_verdict_is_shown_for_every_plausible_reading() -> None:
    readings = {one.reading: one for one in prime(GPT_4).readings}
    assert set(readings) == {"last_yes_no", "first_yes_no", "bracketed_yes_no", "yes_no"}
    assert [one.reading for one in readings.values() if one.chosen] == ["last_yes_no"]
    assert readings["bracketed_yes_no"].unread[1] == pytest.approx(0.053)
    # Whoever takes the whole text only cannot read what thinks aloud, and comes to the opposite.
    assert readings["yes_no"].unread[0] > 0.99
    assert (readings["yes_no"].verdict, readings["last_yes_no"].verdict) == ("upgrade", "stay")


@here
@pytest.mark.parametrize(("models", "shares"), [(GPT_3_5, (0.24, 0.46)), (GPT_4, (0.0, 0.6))])
def test_right_but_wrapped_in_markdown_is_a_failure_of_format(
    models: tuple[str, str], shares: tuple[float, float]
) -> None:
    columns = drift_columns(models, correct="Code_Submit~Accepted", cleaned="Clean_Code_Submit~Accepted")
    found = upgrade_from_files([LEETCODE], columns, Asked())
    assert tuple(many / found.pairs for many in found.drift.wrapped) == shares
    if models == GPT_4:
        assert found.verdict.word == "stay"
        introduced = {one.cause: one.count for one in found.failures.introduced}
        assert introduced["format"] > introduced["wrong"]


@here
def test_pairs_of_models_that_differ_are_told_rightly_in_any_order() -> None:
    """The sure ones and the unsure ones of 28 pairs, in a few orders; benchmarks/upgrade.py has a thousand of each."""
    with ZEROEVAL.open(newline="", encoding="utf-8") as file:
        models = list(dict.fromkeys(row["model"] for row in csv.DictReader(file)))
    seed = random.randrange(10_000)
    print(f"seed {seed}")
    for before, after in itertools.islice(itertools.combinations(models, 2), 0, 28, 4):
        columns = Columns(id="question_id", model="model", before=before, after=after, correct="correct")
        recorded = read_recorded([ZEROEVAL], columns)
        gain = sum((one.after.score or 0) - (one.before.score or 0) for one in recorded.pairs)
        for order in range(3):
            word = upgrade_of_recorded(recorded, columns, Asked(), seed=seed + order).verdict.word
            assert word != ("stay" if gain > 0 else "upgrade"), (before, after, seed + order)


# What follows from outcomes.


def test_a_margin_and_a_lower_price_make_an_upgrade_of_what_is_no_worse(tmp_path: Path) -> None:
    pairs = [(1.0, 1.0)] * 390 + [(1.0, 0.0)] * 5 + [(0.0, 1.0)] * 5
    dear = scored(tmp_path, pairs, before_cost="0.01", after_cost=lambda number: 0.002 + number % 3 / 1e4)
    columns = Columns(correct="right", cost="cost")
    assert upgrade_from_files([dear], columns, Asked()).verdict.word == "not enough evidence"
    found = upgrade_from_files([dear], columns, Asked(margin=0.05))
    assert found.verdict.word == "upgrade"
    assert "cheaper" in found.verdict.why
    alike = scored(tmp_path, pairs, before_cost="0.01", after_cost="0.0099")
    stays = upgrade_from_files([alike], columns, Asked(margin=0.05))
    assert stays.verdict.word == "stay"
    assert "nothing is gained" in stays.verdict.why


def test_slices_that_gain_are_routed_and_the_others_are_not(tmp_path: Path) -> None:
    pairs = [(0.0, 1.0) if number % 2 and number % 5 else (1.0, 0.0) if not number % 2 else (1.0, 1.0)
             for number in range(400)]  # fmt: skip
    path = scored(tmp_path, pairs, kind=lambda number: "odd" if number % 2 else "even")
    found = upgrade_from_files([path], Columns(correct="right", slice="kind"), Asked())
    assert (found.verdict.word, found.verdict.route) == ("route only these", ("odd",))
    assert {one.name: one.verdict for one in found.verdict.slices} == {"odd": "better", "even": "worse"}


def test_slices_without_a_difference_are_rarely_called_one(tmp_path: Path) -> None:
    """Holm's rule: of five slices that are alike, one is called different in few of many files."""
    seed = random.randrange(10_000)
    print(f"seed {seed}")
    dice, wrong = random.Random(seed), 0
    for _ in range(4):
        pairs = [(float(dice.random() < 0.7), float(dice.random() < 0.7)) for _ in range(200)]
        path = scored(tmp_path, pairs, kind=lambda number: number % 5)
        found = upgrade_from_files([path], Columns(correct="right", slice="kind"), Asked())
        wrong += any(one.verdict != "not enough evidence" for one in found.verdict.slices)
    assert wrong <= 1


def test_all_ties_and_one_example_are_no_evidence(tmp_path: Path) -> None:
    ties = upgrade_from_files([scored(tmp_path, [(1, 1)] * 60)], Columns(correct="right"), Asked())
    assert ties.verdict.word == "not enough evidence"
    assert "never told apart" in ties.verdict.why
    one = upgrade_from_files([scored(tmp_path, [(0, 1)])], Columns(correct="right"), Asked())
    assert one.verdict.word == "not enough evidence"
    assert "One pair says nothing of others." in one.warnings


def test_pairs_of_one_person_are_one_bet(tmp_path: Path) -> None:
    path = scored(tmp_path, [(0, 1)] * 60, who=lambda number: number // 30)
    assert upgrade_from_files([path], Columns(correct="right"), Asked()).verdict.word == "upgrade"
    together = upgrade_from_files([path], Columns(correct="right", group="who"), Asked())
    assert together.verdict.word == "not enough evidence"


def test_an_answer_in_fences_is_wrong_for_its_form_alone(tmp_path: Path) -> None:
    rows = [
        {"id": number, "right": '{"a": 1}', "before_said": '{"a": 1}', "after_said": '```json\n{"a": 1}\n```'}
        for number in range(80)
    ]
    columns = Columns(answer="said", expected="right")
    found = upgrade_from_files([wide(tmp_path, rows)], columns, Asked())
    assert (found.verdict.word, found.drift.wrapped) == ("stay", (0, 80))
    assert [(one.cause, one.count) for one in found.failures.introduced] == [("format", 80)]
    words = {one.reading: one.verdict for one in found.readings}
    assert words["unfenced_json"] == "not enough evidence"


def test_json_lines_are_read_as_csv_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(
        json.dumps({"q": number, "m": model, "ok": model == "b" or number % 2 == 0}) + "\n"
        for number in range(60) for model in "ab"
    ))  # fmt: skip
    columns = Columns(id="q", model="m", before="a", after="b", correct="ok")
    found = upgrade_from_files([path], columns, Asked())
    assert (found.pairs, found.verdict.word) == (60, "upgrade")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (Columns(correct="wright"), "There is no column `before_wright`"),
        (Columns(id="nr", correct="right"), "There is no column `nr`"),
        (Columns(), "Nothing tells whether an answer is right"),
        (Columns(model="id", before="0", after="99", correct="before_right"), "No row has `99` in column `id`"),
        (Columns(model="id", before="0", after="0", correct="before_right"), "compared with itself"),
        (Columns(model="id", before="0", after="1", correct="before_right"), "No question has both answers"),
        (Columns(id="after_right", correct="right"), "has two answers"),
        (Columns(correct="right", cost="note"), "There is no column `before_note`"),
        (Columns(correct="note", before="", after=""), "is neither right nor wrong"),
    ],
)
def test_files_that_do_not_fit_say_why(tmp_path: Path, columns: Columns, said: str) -> None:
    path = scored(tmp_path, [(1, 0), (1, 0)], note="perhaps")
    with pytest.raises(DrivetrainError) as refused:
        upgrade_from_files([path], columns, Asked())
    assert said in str(refused.value)


def test_ids_that_are_slices_are_refused(tmp_path: Path) -> None:
    path = scored(tmp_path, [(1, 0)] * 200)
    with pytest.raises(DrivetrainError, match="are ids, and no slices"):
        upgrade_from_files([path], Columns(correct="right", slice="id"), Asked())


# Pages.


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_html_page_loads_nothing_and_escapes_everything(tmp_path: Path) -> None:
    evil = '<script src="https://evil.example/x.js"></script><img src=x onerror=1>&"\''
    rows = [
        {
            "id": f"{evil}{number}",
            "right": "a",
            "before_said": "a",
            "after_said": f"{evil} b",
            "kind": f"{evil}{number % 2}",
        }
        for number in range(80)
    ]
    found = upgrade_from_files([wide(tmp_path, rows)], Columns(answer="said", expected="right", slice="kind"), Asked())
    quotes = {name: Quote(evil, evil, evil) for group in found.failures.introduced for name in group.examples}
    page = page_of(found, quotes)
    text = rendered(found, page)
    parser = _Tags()
    parser.feed(text)
    assert {tag for tag, _ in parser.tags}.isdisjoint({"script", "img", "link", "iframe", "object", "base", "form"})
    assert not [name for _, names in parser.tags for name in names if name in ("src", "href") or name.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert "&lt;script src=" in text
    assert "<script" not in markdown(page).replace("\\<script", "").replace("    <script", "")


def test_the_command_writes_pages_and_needs_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = scored(tmp_path, [(0, 1)] * 80, before_cost="0.01", after_cost="0.02")
    said = run("--recorded", str(path), "--correct", "right", "--cost", "cost", "--html", "page.html", "--markdown",
               "page.md", "--hours", "3", "--rate", "100")  # fmt: skip
    assert "Verdict: upgrade" in said
    assert re.search(r"engineering +\$300\.00", said)
    assert "report:" not in said
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "page.md").read_text().startswith("# Upgrade of recorded answers")
    assert "no way to read" in run("--recorded", str(path), "--correct", "right", "--reading", "tea", code=1)
    assert "Neither a workflow nor a file" in run(code=1)


# One look.


def test_one_look_at_right_and_wrong_is_mcnemars_test(tmp_path: Path) -> None:
    seed = random.randrange(10_000)
    print(f"seed {seed}")
    dice = random.Random(seed)
    for _ in range(20):
        pairs = [(float(dice.random() < 0.6), float(dice.random() < 0.7)) for _ in range(dice.randrange(40, 200))]
        found = upgrade_from_files([scored(tmp_path, pairs)], Columns(correct="right"), Asked(fixed=True))
        wins, losses = sum(old < new for old, new in pairs), sum(old > new for old, new in pairs)
        assert found.verdict.whole.p_value == mcnemar(wins, losses).two_sided
        assert found.verdict.whole.pairs == len(pairs)  # never settled early
        assert (found.verdict.word == "not enough evidence") == (mcnemar(wins, losses).two_sided > 0.05)


def test_one_look_shows_what_looks_at_every_fifty_cannot_and_the_page_says_which_it_was(tmp_path: Path) -> None:
    file = scored(tmp_path, [(0.0, 1.0)] * 28 + [(1.0, 0.0)] * 12 + [(1.0, 1.0)] * 160)
    looked = upgrade_from_files([file], Columns(correct="right"), Asked())
    once = upgrade_from_files([file], Columns(correct="right"), Asked(fixed=True))
    assert (looked.verdict.word, once.verdict.word) == ("not enough evidence", "upgrade")
    written = tmp_path / "once.md"
    said = run("--recorded", str(file), "--correct", "right", "--fixed", "--markdown", str(written))
    assert "Verdict: upgrade" in said
    assert "Looked at once" in said
    assert "Looked at after every 50 pairs" in run("--recorded", str(file), "--correct", "right")


def test_slices_in_one_look_are_judged_by_holms_rule(tmp_path: Path) -> None:
    pairs = [(0.0, 1.0)] * 24 + [(1.0, 0.0)] * 9 + [(1.0, 1.0)] * 327
    file = scored(tmp_path, pairs, land=lambda number: f"land {number // 36}")
    found = upgrade_from_files([file], Columns(correct="right", slice="land"), Asked(fixed=True))
    slices = {one.name: one for one in found.verdict.slices}
    assert {one.comparison.mode for one in slices.values()} == {"fixed"}
    # p = 0.0135 alone, of ten slices: no evidence.
    assert slices["land 0"].comparison.p_value == mcnemar(24, 9).two_sided < 0.05
    assert slices["land 0"].verdict == "not enough evidence"


def test_examples_show_the_question_where_a_column_tells_it(tmp_path: Path) -> None:
    rows = [
        {"id": number, "ask": f"how much is {number} + 1?", "right": number + 1, "before_text": number,
         "after_text": number + 1} for number in range(40)
    ]  # fmt: skip
    file, page = wide(tmp_path, rows), tmp_path / "page.md"
    options = ("--recorded", str(file), "--answer", "text", "--expected", "right", "--markdown", str(page))
    run(*options)
    assert "how much is" not in page.read_text()
    run(*options, "--question", "ask")
    assert "how much is" in page.read_text()
    assert "no column `asks`" in run(*options, "--question", "asks", code=1)


def test_the_help_tells_what_belongs_to_files_apart() -> None:
    told = CliRunner().invoke(application(["upgrade"]), ["upgrade", "--help"]).output
    asked, files = told.split("Outcomes in files:")
    assert re.findall(r"^  (--[a-z-]+)", files, re.MULTILINE)[:2] == ["--recorded", "--id"]
    assert "--candidate" in asked.split("How it is judged:")[0]
    assert "--candidate" not in files
    assert "Files:" not in told, "the heading says so"
