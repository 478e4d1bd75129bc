"""What a simulated model says: labels, tables, echoes, and JSON that fits."""

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from simulator_wire import OPENAI, chat, send

from drivetrain.simulator import SimulatorProcess
from drivetrain.simulator.examples import KnownTexts
from drivetrain.simulator.schemas import invented

LABELS = ["card_arrival", "lost_card", "top_up", "refund"]
TEXTS = [f"Question number {number}: what about my {LABELS[number % 4]}?" for number in range(400)]
TRUTH = {text: LABELS[number % 4] for number, text in enumerate(TEXTS)}


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatorProcess]:
    folder = tmp_path_factory.mktemp("quality")
    rows = "".join(f'"{text}",{label}\n' for text, label in TRUTH.items())
    (folder / "examples.csv").write_text(f"text,category\n{rows}", encoding="utf-8")
    (folder / "table.csv").write_text(
        "q,a,right\nWhat is 2+2?,4,1\nWhat is 3+3?,6,0\nWhat is 4+4?,8,1\n", encoding="utf-8"
    )
    labels = f'kind = "labels"\nlabels = {json.dumps(LABELS)}\nexamples_file = "examples.csv"\n'
    (folder / "simulator.toml").write_text(
        f"""
        seed = 11
        [models.plain.quality]
        {labels}
        accuracy = 0.8
        per_label_accuracy = {{refund = 1.0}}
        [models.sure.quality]
        {labels}
        accuracy = 0.7
        confidence = true
        answer_field = "intent"
        shared_difficulty = 1.0
        [models.better.quality]
        {labels}
        accuracy = 0.9
        shared_difficulty = 1.0
        [models.parrot.quality]
        kind = "echo"
        [models.fixed]
        answer = "always this"
        [models.table.quality]
        kind = "table"
        file = "table.csv"
        prompt_column = "q"
        answer_column = "a"
        unmatched = "no idea"
        [models.recorded.quality]
        kind = "table"
        file = "table.csv"
        prompt_column = "q"
        truth_column = "a"
        correct_column = "right"
        """,
        encoding="utf-8",
    )
    with SimulatorProcess(folder / "simulator.toml") as running:
        yield running


def said(simulator: SimulatorProcess, model: str, text: str, **more: Any) -> str:
    content: str = send(simulator, OPENAI, chat(model, text, **more)).json["choices"][0]["message"]["content"]
    return content


def test_labels_are_right_as_often_as_configured_and_the_same_when_asked_again(simulator: SimulatorProcess) -> None:
    answers = {text: said(simulator, "plain", text) for text in TEXTS}
    refunds = [text for text in TEXTS if TRUTH[text] == "refund"]
    others = [text for text in TEXTS if TRUTH[text] != "refund"]
    assert all(answers[text] == "refund" for text in refunds)
    share = sum(answers[text] == TRUTH[text] for text in others) / len(others)
    assert 0.72 < share < 0.88
    assert set(answers.values()) <= set(LABELS)
    again = random.Random(1).sample(TEXTS, 30)
    assert [said(simulator, "plain", f"Classify this.\n\nText: {text}\nLabel:") for text in again] == [
        answers[text] for text in again
    ]


def test_confidence_is_higher_when_right_and_overlaps(simulator: SimulatorProcess) -> None:
    answers = {text: json.loads(said(simulator, "sure", text)) for text in TEXTS}
    right = [each["confidence"] for text, each in answers.items() if each["intent"] == TRUTH[text]]
    wrong = [each["confidence"] for text, each in answers.items() if each["intent"] != TRUTH[text]]
    assert sum(right) / len(right) > sum(wrong) / len(wrong) + 0.2
    assert min(right) < max(wrong)
    assert all(0.0 <= each <= 1.0 for each in right + wrong)


def test_with_shared_difficulty_the_better_model_is_wrong_only_where_the_worse_is(simulator: SimulatorProcess) -> None:
    worse = {text for text in TEXTS if json.loads(said(simulator, "sure", text))["intent"] != TRUTH[text]}
    better = {text for text in TEXTS if said(simulator, "better", text) != TRUTH[text]}
    assert better < worse
    assert 0.04 < len(better) / len(TEXTS) < 0.16


def test_the_label_goes_into_the_field_of_the_schema(simulator: SimulatorProcess) -> None:
    schema = {
        "type": "object",
        "properties": {"reason": {"type": "number"}, "category": {"enum": LABELS}, "confidence": {"type": "number"}},
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "label", "schema": schema}}
    content = json.loads(said(simulator, "plain", TEXTS[3], response_format=wanted))
    assert content["category"] == "refund"
    assert 0.5 <= content["confidence"] <= 1.0


def test_tables_echoes_and_fixed_answers(simulator: SimulatorProcess) -> None:
    assert said(simulator, "table", "Please answer:\nWhat is 2+2?") == "4"
    assert said(simulator, "table", "something else") == "no idea"
    assert said(simulator, "recorded", "What is 4+4?") == "8"
    assert said(simulator, "recorded", "What is 3+3?") in ("4", "8")
    assert said(simulator, "parrot", "Grüße, “you”\n") == "Grüße, “you”\n"
    assert said(simulator, "fixed", "anything") == "always this"


@pytest.mark.parametrize(
    "message",
    ["where is my card", "  where is my card\n", "Text: where is my card", '"where is my card"',
     '{"id":1,"text":"where is my card"}',
     "The customer says where is my card and waits.", "Label this.\nText: 'where is my card'\nAnswer:"],
)  # fmt: skip
def test_the_text_in_question_is_found_in_prompts_of_many_forms(message: str) -> None:
    assert KnownTexts(["where is", "where is my card", "my card"]).find(message) == "where is my card"


def test_a_text_that_is_not_there_is_not_found() -> None:
    assert KnownTexts(["where is my card"]).find("where is my cat") is None
    assert KnownTexts([]).find("") is None


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"const": 3}}}, {"a": 3}),
        ({"anyOf": [{"type": "integer", "minimum": 7}, {"type": "null"}]}, 7),
        ({"type": ["string", "null"], "minLength": 6}, "textxx"),
        (
            {"allOf": [{"properties": {"a": {"type": "boolean"}}}, {"properties": {"b": {"enum": ["x"]}}}]},
            {"a": True, "b": "x"},
        ),
        ({"type": "number", "exclusiveMaximum": 0}, -0.5),
        ({"type": "integer", "minimum": 5, "multipleOf": 4}, 8),
        ({"type": "string", "format": "date"}, "2025-01-02"),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, [1, 1]),
    ],
)
def test_invented_values_fit_their_schema(schema: dict[str, object], value: object) -> None:
    assert invented(schema) == value


def test_a_schema_that_contains_itself_ends() -> None:
    schema = {
        "type": "object",
        "properties": {
            "next": {"$ref": "#"},
            "all": {"type": "array", "items": {"$ref": "#"}},
            "name": {"type": "string"},
        },
        "required": ["name"],
    }
    small = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["next"],
    }
    assert json.dumps(invented(small))
    value = invented(schema)
    assert isinstance(value, dict)
    assert value["name"] == "text"
