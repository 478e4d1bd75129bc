"""What scorers say of answers, as an eval asks them: values, causes, readings, and scorers that fail."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

import drivetrain as dt
from drivetrain import scorers
from drivetrain.core.evals import Scorer
from drivetrain.core.scorers import READING_NAMES, scorers_of
from drivetrain.evals import causes
from drivetrain.evals.eval_key import eval_key
from drivetrain.evals.json_schema import fits, mistakes
from drivetrain.evals.reading import READINGS, inside_fences, reading
from drivetrain.evals.scoring import Answer, compiled
from drivetrain.project.snapshot import GatewaySettings, LedgerSettings, Snapshot

pytestmark = pytest.mark.slow


def said(text: str = "", value: Any = None, **more: str) -> Answer:
    return Answer(text=text, value=value, **more)


def score(scorer: Scorer, answer: Answer, expected: Any = None, row: dict[str, Any] | None = None) -> dt.Score:
    with compiled(scorer) as one:
        return one(answer, expected, row or {})


# Each kind, at its edges.


@pytest.mark.parametrize(
    ("scorer", "answer", "expected", "value"),
    [
        (scorers.exact(), said(" refund\n"), "refund", 1),
        (scorers.exact(), said("Refund"), "refund", 0),
        (scorers.exact(), said("3"), 3, 1),
        (scorers.exact(), said("true"), True, 1),
        (scorers.exact(), said(value={"ok": True}), {"ok": 1}, 0),
        (scorers.exact("intent"), said(value={"intent": "refund", "total": 3}), {"intent": "refund"}, 1),
        (scorers.exact("intent"), said(value={"intent": "refund"}), "refund", 1),
        (scorers.exact("intent"), said(value={"intent": None}), {"intent": None}, 1),
        (scorers.exact("who.name"), said(value={"who": {"name": "a"}}), {"who.name": "a"}, 1),
        (scorers.exact("intent"), said('{"intent": "refund"}'), "refund", 1),
        (scorers.exact(), said(value={"intent": "refund", "total": 3}), {"intent": "refund", "total": 3.0}, 1),
        (scorers.exact(), said(value={"intent": "refund", "total": 3}), {"intent": "refund", "total": 4}, 0),
        (scorers.exact(), said(value={"intent": "refund"}), "refund", 1),
        (scorers.exact(), said("refund"), {"answer": "refund"}, 1),
        (scorers.exact(reading="last_yes_no"), said("It is 7, so No."), "No", 1),
        (scorers.exact(reading="first_yes_no"), said("No, never"), False, 1),
        (scorers.exact(reading="first_yes_no"), said("No, never"), True, 0),
        (scorers.normalised(), said("\uff32EFUND  now"), "refund now", 1),
        (scorers.normalised(case=False), said("Refund"), "refund", 0),
        (scorers.normalised(spaces=False), said("re  fund"), "re fund", 0),
        (scorers.normalised(), said("refund!"), "refund", 0),
        (scorers.normalised(punctuation=True), said("refund!"), "refund", 1),
        (scorers.f1(), said("the cat sat"), "the cat", 0.8),
        (scorers.f1(separator=","), said("a, B"), "b,c", 0.5),
        (scorers.f1("tags"), said(value={"tags": ["a", "b"]}), {"tags": ["b", "a"]}, 1),
        (scorers.f1("tags"), said(value={"tags": []}), {"tags": []}, 1),
        (scorers.f1("tags"), said(value={"tags": []}), {"tags": ["a"]}, 0),
        (scorers.within(absolute=0.01), said("$1,234.50"), 1234.49, 1),
        (scorers.within(absolute=0.01), said("1234.6"), 1234.5, 0),
        (scorers.within(relative=0.1), said("110"), 100, 1),
        (scorers.within(relative=0.1), said("-110"), -100, 1),
        (scorers.within(relative=0.1), said("111"), 100, 0),
        (scorers.within("total", absolute=1), said(value={"total": 4.5}), {"total": 5}, 1),
        (scorers.matches(r"order \d+"), said("it is order 66."), None, 1),
        (scorers.matches(r"order \d+", whole=True), said("it is order 66."), None, 0),
        (scorers.matches(r"order (\d+)"), said("it is order 66."), "66", 1),
        (scorers.matches(r"order (\d+)"), said("it is order 66."), 67, 0),
        (scorers.json_schema({"type": "object", "required": ["a"]}), said('{"a": 1}'), None, 1),
        (scorers.json_schema({"type": "object", "required": ["a"]}), said('{"b": 1}'), None, 0),
        (scorers.json_schema({"enum": ["x"]}, "kind"), said(value={"kind": "x"}), None, 1),
        (scorers.json_fields(["a", "b"]), said('{"a": 1, "b": 3}'), {"a": 1, "b": 2}, 0.5),
        (scorers.json_fields(["a", "b"]), said('{"a": 1}'), {"a": 1}, 1),
        (
            scorers.json_fields({"n": scorers.within(absolute=1), "who.name": scorers.normalised()}),
            said(value={"n": 3, "who": {"name": "ANN "}}),
            {"n": 4, "who": {"name": "ann"}},
            1,
        ),
        (scorers.similarity(), said("the same"), "the same", 1),
        (scorers.similarity(at_least=0.5), said("the sane"), "the same", 1),
        (scorers.similarity(at_least=0.99), said("the sane"), "the same", 0),
    ],
)  # fmt: skip
def test_what_a_scorer_gives(scorer: Scorer, answer: Answer, expected: Any, value: float) -> None:
    assert score(scorer, answer, expected).value == pytest.approx(value)


def test_similarity_falls_as_texts_part() -> None:
    values = [score(scorers.similarity(), said(text), "please cancel my order").value for text in (
        "please cancel my order", "please cancel the order", "cancel it", "12345")]  # fmt: skip
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.05 < values[2]


def test_an_eval_without_scorers_is_exact_and_functions_are_scorers() -> None:
    assert [one.kind for one in scorers_of(dt.Eval("a", dataset="d"))] == ["exact"]

    def polite(output: str) -> bool:
        return "please" in output

    found = scorers_of(dt.Eval("a", dataset="d", scorers=[polite, scorers.exact("intent")]))
    assert [(one.name, one.kind) for one in found] == [("polite", "function"), ("exact-intent", "exact")]
    assert score(found[0], said("yes please")).value == 1


# Why an answer is not right.


@pytest.mark.parametrize(
    ("answer", "expected", "cause", "unread"),
    [
        (said("refund", error=""), "cancel", causes.LABEL, False),
        (said("```\ncancel\n```"), "cancel", causes.FORMAT, False),
        (said("**cancel**"), "cancel", causes.FORMAT, False),
        (said("Answer: cancel."), "cancel", causes.FORMAT, False),
        (said("I\u2019m sorry, but I can\u2019t help with that."), "cancel", causes.REFUSAL, False),
        (said("canc", finish_reason="length"), "cancel", causes.LENGTH, False),
        (said("", finish_reason="content_filter"), "cancel", causes.REFUSAL, True),
        (said(""), "cancel", causes.FORMAT, True),
        (said("x" * 300), "a fairly short sentence of seven words", causes.LENGTH, False),
        (said("41"), 42, causes.WRONG, False),
        (said("", error="upstream_timeout"), "cancel", causes.FAILED, False),
        (said('{"inten', error="no_answer"), "cancel", causes.FORMAT, True),
        (
            said("Ihre Bestellung wird morgen mit der Post zu Ihnen geliefert und ist nicht mehr zu stornieren."),
            "Your order will be delivered tomorrow and it is not possible to cancel it with us any more.",
            causes.LANGUAGE,
            False,
        ),
        (
            said("\u0417\u0430\u043a\u0430\u0437 \u0431\u0443\u0434\u0435\u0442 \u0437\u0430\u0432\u0442\u0440\u0430"),
            "The order comes tomorrow",
            causes.LANGUAGE,
            False,
        ),
    ],
)  # fmt: skip
def test_the_cause_of_a_failure(answer: Answer, expected: Any, cause: str, unread: bool) -> None:
    found = score(scorers.exact(), answer, expected)
    assert (found.value, found.cause, found.unread) == (0, cause, unread)


def test_code_that_is_right_inside_fences_is_a_format_failure_and_says_so() -> None:
    right, wrong = '{"a": 1}', '{"a": 2}'
    fenced = score(scorers.exact("a"), said(f"Here you are:\n```json\n{right}\n```"), 1)
    assert (fenced.value, fenced.cause, fenced.unread) == (0, causes.FORMAT, True)
    assert fenced.note == "it is right without Markdown fences"
    other = score(scorers.exact("a"), said(f"```json\n{wrong}\n```"), 1)
    assert "right" not in other.note
    assert score(scorers.exact("a", reading="unfenced_json"), said(f"```json\n{right}\n```"), 1).value == 1


@pytest.mark.parametrize("language", causes.REFUSALS)
def test_every_phrase_of_a_refusal_is_seen_at_the_start_and_not_in_the_middle(language: str) -> None:
    for phrase in causes.REFUSALS[language]:
        assert causes.is_refusal(f"{phrase.capitalize()} ... and so on."), phrase
        assert not causes.is_refusal("Your order is on its way. " * 12 + phrase), phrase


@pytest.mark.parametrize(
    "text",
    [
        "I can help with that: the refund is on its way.",
        "Ich kann Ihnen dabei gerne helfen.",
        "You cannot cancel after 30 days.",
        "Not all refunds are possible, but yours is.",
        "Je peux vous aider.",
    ],
)
def test_an_answer_is_no_refusal(text: str) -> None:
    assert not causes.is_refusal(text)


LANGUAGES = {
    "en": "The order was sent to you on Monday and it is on the way to your house.",
    "de": "Die Bestellung ist am Montag zu Ihnen gesendet worden und sie ist auf dem Weg.",
    "fr": "La commande est partie lundi et elle est en route dans le camion pour vous.",
    "es": "El pedido se ha enviado el lunes y no es posible cancelar los productos que est\u00e1n en camino.",
    "it": "Il pacco \u00e8 stato spedito e non \u00e8 possibile annullare la consegna con il corriere di oggi.",
    "pt": "O pedido foi enviado e n\u00e3o \u00e9 mais poss\u00edvel cancelar os produtos com a empresa.",
    "nl": "De bestelling is op maandag verzonden en het is niet meer te annuleren met een bericht.",
    "cyrillic": "\u0417\u0430\u043a\u0430\u0437 \u043e\u0442\u043f\u0440\u0430\u0432\u043b\u0435\u043d",
    "kana": "\u3054\u6ce8\u6587\u306f\u6708\u66dc\u65e5\u306b\u767a\u9001\u3055\u308c\u307e\u3057\u305f",
    "han": "\u60a8\u7684\u8ba2\u5355\u5df2\u7ecf\u5728\u661f\u671f\u4e00\u53d1\u51fa",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_is_told_and_is_none_of_the_others(language: str) -> None:
    assert causes.language_of(LANGUAGES[language]) == language
    for other, text in LANGUAGES.items():
        assert causes.is_other_language(text, LANGUAGES[language]) == (other != language)


def test_too_little_text_tells_no_language() -> None:
    assert causes.language_of("refund") == causes.language_of("12345 67890 12345") == ""


# Readings.

ANSWERS: dict[str, dict[str, Any]] = {
    "Yes": {"yes_no": "yes", "word": "Yes", "first_yes_no": "yes", "bracketed_yes_no": None, "last_number": None},
    "No, 7 is not. So: [Yes]": {"yes_no": None, "first_yes_no": "no", "last_yes_no": "yes", "bracketed_yes_no": "yes"},
    "It is 1,234.5 of 2": {"number": None, "first_number": 1234.5, "last_number": 2.0, "word": None},
    "-3e2": {"number": -300.0, "json": -300.0, "as_is": "-3e2"},
    "a\n\nb\n": {"first_line": "a", "last_line": "b", "as_is": "a\n\nb"},
    "```py\nx = 1\n```": {"unfenced": "x = 1", "json": None},
    'so ```json\n{"a": [1]}\n``` done': {"json": None, "unfenced_json": {"a": [1]}, "first_json": {"a": [1]}},
    'well, {"a": 1} or {"a": 2}': {"json": None, "first_json": {"a": 1}, "unfenced_json": None},
    "": dict.fromkeys(READING_NAMES),
    "NaN": {"json": None, "number": None},
    "1e999": {"number": None, "last_number": None},
}


@pytest.mark.parametrize("text", ANSWERS)
def test_a_reading_gives_what_its_name_says_or_nothing(text: str) -> None:
    for name, wanted in ANSWERS[text].items():
        found = reading(name).read(text)
        assert (found.ok, found.value) == (wanted is not None, wanted), name


def test_another_reading_of_the_same_answers_and_the_share_that_cannot_be_read() -> None:
    texts = ["Yes", "I think yes.", "[No]", "perhaps"]
    strict, lenient = scorers.exact(reading="yes_no"), scorers.exact(reading="first_yes_no")
    wanted = ["yes", "yes", "no", "no"]
    for scorer, right, unread in ((strict, 2, 2), (lenient, 3, 1)):
        found = [score(scorer, said(text), one) for text, one in zip(texts, wanted, strict=True)]
        assert (sum(one.value for one in found), sum(one.unread for one in found)) == (right, unread)


def test_an_unknown_reading_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(dt.DrivetrainError, match="last_number"):
        compiled(scorers.exact(reading="last_nmber"))


def test_no_reading_raises_or_takes_long_for_any_text() -> None:
    seed = 20261121
    print("seed", seed)
    dice = random.Random(seed)
    alphabet = ["`", "```", "{", "[", "]", "}", '"', "\n", " yes", " no", "1,", "2.", "-", ":", "a", "\u2028", "\ud83d"]
    texts = ["".join(dice.choices(alphabet, k=dice.randint(0, 60))) for _ in range(300)]
    texts += ["[" * 200_000, "```" * 100_000, "1," * 200_000, "yes " * 200_000, "x" * 2_000_000]
    started = time.process_time()
    for text in texts:
        inside_fences(text)
        for one in READINGS.values():
            found = one.read(text)
            assert found.ok or found.value is None
    assert time.process_time() - started < 10  # of this process alone: nothing here waits


def test_a_row_that_expects_nothing_is_the_scorer_s_failure_and_not_the_answer_s() -> None:
    assert score(scorers.exact(), said("a"), None).cause == causes.SCORER
    assert score(scorers.within(absolute=1), said("1"), "many").cause == causes.SCORER
    assert score(scorers.exact("intent"), said(value={"intent": "a"}), {"total": 3}).cause == causes.SCORER


def test_an_answer_of_the_wrong_form_is_unread() -> None:
    for scorer, answer, expected in (
        (scorers.within(absolute=1), said("about five"), 5),
        (scorers.exact("intent"), said(value={"total": 1}), {"intent": "a"}),
        (scorers.json_fields(["a"]), said("[1]"), {"a": 1}),
        (scorers.f1("tags"), said(value={"tags": 3}), {"tags": ["a"]}),
    ):
        found = score(scorer, answer, expected)
        assert (found.value, found.cause, found.unread) == (0, causes.FORMAT, True), scorer.kind


# JSON schemas.


@pytest.mark.parametrize(
    ("schema", "fitting", "others"),
    [
        ({"type": "integer"}, [1, 2.0, -3], [1.5, True, "1", None, float("inf")]),
        ({"type": ["string", "null"]}, ["", None], [1]),
        ({"const": {"a": [1]}}, [{"a": [1.0]}], [{"a": [True]}, {"a": [1], "b": 2}]),
        ({"minimum": 1, "exclusiveMaximum": 3, "multipleOf": 0.5}, [1, 2.5, "x"], [0.5, 3, 1.2]),
        ({"minLength": 2, "pattern": "^a"}, ["ab", 3], ["a", "ba"]),
        ({"items": {"type": "string"}, "maxItems": 2}, [["a"], [], 3], [[1], ["a"] * 3]),
        ({"uniqueItems": True}, [["a", "b"], [], 3], [["a", "a"], [1, 1.0]]),
        (
            {"properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False},
            [{"a": "x"}],
            [{}, {"a": 1}, {"a": "x", "b": 1}],
        ),
        ({"anyOf": [{"type": "string"}, {"minimum": 3}]}, ["a", 3], [2]),
        ({"oneOf": [{"minimum": 1}, {"minimum": 3}]}, [2], [3, 0]),
        ({"allOf": [{"minimum": 1}, {"maximum": 2}], "not": {"const": 1.5}}, [1, 2], [1.5, 3]),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}, "type": "object"}}},
         [{"next": {"next": {}}}], [{"next": 1}]),
    ],
)  # fmt: skip
def test_what_fits_a_schema(schema: dict[str, Any], fitting: list[Any], others: list[Any]) -> None:
    assert list(mistakes(schema)) == []
    assert all(fits(one, schema) for one in fitting)
    assert not any(fits(one, schema) for one in others)


def test_a_schema_that_refers_to_itself_fits_nothing_and_ends() -> None:
    assert not fits(1, {"$ref": "#"})


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"typ": "string"}, "Did you mean `type`"),
        ({"type": "text"}, "`type`"),
        ({"properties": {"a": {"pattern": "("}}}, "at `/properties/a`"),
        ({"items": 3}, "a schema is an object"),
        ({"$ref": "#/$defs/none"}, "`$ref`"),
        ({"minLength": -1}, "`minLength`"),
        ([], "a schema is an object"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_schema_is_told(schema: Any, word: str) -> None:
    assert any(word in one for one in mistakes(schema))


# Keys.


def declares(*workflows: dt.Workflow[Any, Any]) -> Snapshot:
    """A Snapshot with these workflows alone."""
    return Snapshot(
        hash="0" * 64, name="shop", environment="dev", root=Path(), files={}, templates={},
        workflows={one.name: one for one in workflows}, direct=frozenset(), providers={}, models={}, keys={}, teams=(),
        gateway=GatewaySettings(), ledger=LedgerSettings(),
    )  # fmt: skip


def test_the_key_of_an_eval_changes_with_all_that_is_proved_and_with_nothing_else() -> None:
    def right(output: str) -> bool:
        return output == "a"

    def other(output: str) -> bool:
        return output == "b"

    def make(**changed: Any) -> str:
        said = {"dataset": "golden", "scorers": [scorers.exact("intent"), right], "gates": ["accuracy >= 0.9"]}
        return eval_key(dt.Eval("triage-golden", workflow="triage", **{**said, **changed}), declares())

    base = make()
    assert len(base) == 16
    assert base == make(owner="a@b.example", concurrency=3, usd="4", name_is="x")
    changes: list[dict[str, Any]] = [
        {"dataset": "golden@2"}, {"gates": ["accuracy >= 0.91"]}, {"repeats": 2}, {"slices": ["country"]},
        {"suites": {"must-pass": "must"}}, {"inputs": {"text": "body"}}, {"expected": "label"},
        {"scorers": [scorers.exact("intent"), other]}, {"scorers": [scorers.normalised("intent"), right]},
        {"scorers": [right, scorers.exact("intent")]},
    ]  # fmt: skip
    keys = [make(**one) for one in changes]
    assert len({base, *keys}) == len(changes) + 1
    declared = dt.Eval("a", dataset="d", scorers=[scorers.judge("critic")])
    judges = [dt.Workflow("critic", route=[dt.Rule("all", when=bool, then=word)]) for word in ("good", "bad")]
    assert eval_key(declared, declares(judges[0])) != eval_key(declared, declares(judges[1]))
