"""A model's quality turned into what it says. Called by `desk`, once per request; pure apart from its cache.

An answer depends on (seed, model, text in question), never on the order of requests: the same text gets the same
answer from the same model.
"""

import json
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from drivetrain.simulator.content import Content, prose
from drivetrain.simulator.dice import normal, normal_share, unit
from drivetrain.simulator.door import Asked
from drivetrain.simulator.examples import KnownTexts
from drivetrain.simulator.schemas import Schema, invented, properties_of
from drivetrain.simulator.settings import EchoQuality, LabelQuality, ModelSettings, TableQuality

TEXT_TOKENS_DEFAULT = 40
"""The length of generated text where the TOML says none."""
CACHED_ANSWERS_MAX = 16_384
CACHED_BYTES_MAX = 4_096
"""Longer messages and answers are computed each time: this many entries of this size bound the cache at about 130
MB."""

JSON_FIELD_DEFAULT = "answer"
LABEL_FIELD_DEFAULT = "label"
CONFIDENCE_FIELD = "confidence"


class Answers(Protocol):
    """What a model says to what was asked."""

    def content(self, asked: Asked, tokens: int | None) -> Content:
        """The answer; `tokens` is the length wanted where the quality leaves it open."""


def answers_for(model: ModelSettings, seed: int, text_bytes: int | None) -> Answers:
    """The answers that `model`'s settings describe; `text_bytes` fixes the size of generated text."""
    if model.answer is not None:
        return FixedAnswers(model.answer)
    quality = model.quality
    if isinstance(quality, LabelQuality):
        return CachedAnswers(LabelAnswers(quality, model.name, seed).say)
    if isinstance(quality, TableQuality):
        return CachedAnswers(TableAnswers(quality).say)
    if isinstance(quality, EchoQuality):
        return CachedAnswers(_echo)
    return TextAnswers(text_bytes)


class FixedAnswers:
    """The same text, whatever was asked."""

    def __init__(self, text: str) -> None:
        self._content = Content(text)

    def content(self, asked: Asked, tokens: int | None) -> Content:
        return self._content


class TextAnswers:
    """Prose of the length wanted; JSON that fits the schema when JSON is asked for."""

    def __init__(self, text_bytes: int | None) -> None:
        self._bytes = text_bytes
        self._by_bytes: dict[int, Content] = {}
        self._json = CachedAnswers(_schema_only)

    def content(self, asked: Asked, tokens: int | None) -> Content:
        if asked.json:
            return self._json.content(asked, tokens)
        size = self._bytes
        if size is None:
            size = 4 * (TEXT_TOKENS_DEFAULT if tokens is None else tokens)
        content = self._by_bytes.get(size)
        if content is None:
            content = Content(prose(size))
            if size <= CACHED_BYTES_MAX:
                self._by_bytes[size] = content
        return content


class CachedAnswers:
    """Remembers what was said to the last messages of moderate length."""

    def __init__(self, say: Callable[[Asked], str]) -> None:
        self._say = say
        self._cache: dict[tuple[str, bytes, bool], Content] = {}

    def content(self, asked: Asked, tokens: int | None) -> Content:
        key = (asked.text, asked.schema, asked.json)
        content = self._cache.get(key)
        if content is None:
            content = Content(self._say(asked))
            if len(asked.text) + len(asked.schema) + len(content.text) <= CACHED_BYTES_MAX:
                if len(self._cache) >= CACHED_ANSWERS_MAX:
                    self._cache.clear()
                self._cache[key] = content
        return content


class LabelAnswers:
    """A classifier: right on a text or not by a seeded hash of (seed, model, text)."""

    def __init__(self, quality: LabelQuality, model: str, seed: int) -> None:
        self._quality = quality
        self._model = model
        self._seed = seed
        self._texts = KnownTexts(quality.truth)

    def say(self, asked: Asked) -> str:
        quality = self._quality
        text = self._texts.find(asked.text)
        if text is None:
            label = quality.unmatched or self._picked(quality.labels, "unmatched", asked.text)
            return self._worded(asked, label, right=False, text=asked.text)
        truth = quality.truth[text]
        if self._is_right(text, quality.accuracy_by_label.get(truth, quality.accuracy)):
            return self._worded(asked, truth, right=True, text=text)
        others = tuple(label for label in quality.labels if label != truth) or (truth,)
        return self._worded(asked, self._picked(others, "wrong", text), right=False, text=text)

    def _is_right(self, text: str, accuracy: float) -> bool:
        """Right with chance `accuracy`; `shared_difficulty` correlates the models' errors and leaves each one's
        accuracy as it is.

        A Gaussian copula: the text's difficulty is a weighted sum of a part that all models see and a part of this
        model's own.
        """
        shared = self._quality.shared_difficulty
        own = unit(self._seed, self._model, text, "right")
        if shared == 0.0:
            return own < accuracy
        common = unit(self._seed, text, "difficulty")
        return normal_share(shared**0.5 * normal(common) + (1.0 - shared) ** 0.5 * normal(own)) < accuracy

    def _picked(self, labels: tuple[str, ...], purpose: str, text: str) -> str:
        return labels[int(unit(self._seed, self._model, text, purpose) * len(labels))]

    def _confidence(self, text: str, *, right: bool) -> float:
        """Right answers lie mostly above 0.85, wrong ones evenly between 0.30 and 0.95: they overlap, as real ones
        do."""
        drawn = unit(self._seed, self._model, text, "confidence")
        return round(0.5 + 0.5 * drawn**0.25 if right else 0.3 + 0.65 * drawn, 3)

    def _worded(self, asked: Asked, label: str, *, right: bool, text: str) -> str:
        quality = self._quality
        if not (asked.json or quality.confidence or quality.answer_field):
            return label
        schema = schema_of(asked)
        field = quality.answer_field or _field_for(schema, LABEL_FIELD_DEFAULT)
        values: dict[str, object] = {field: label}
        if quality.confidence or CONFIDENCE_FIELD in properties_of(schema):
            values[CONFIDENCE_FIELD] = self._confidence(text, right=right)
        return _filled(schema, values)


class TableAnswers:
    """Recorded answers, found by the prompt."""

    def __init__(self, quality: TableQuality) -> None:
        self._quality = quality
        self._prompts = KnownTexts(quality.answers)

    def say(self, asked: Asked) -> str:
        prompt = self._prompts.find(asked.text)
        answer = self._quality.unmatched if prompt is None else self._quality.answers[prompt]
        if not (asked.json or self._quality.answer_field):
            return answer
        if _is_json_object(answer):
            return answer
        schema = schema_of(asked)
        return _filled(schema, {self._quality.answer_field or _field_for(schema, JSON_FIELD_DEFAULT): answer})


def schema_of(asked: Asked) -> Schema:
    """The JSON schema that came with the request; empty when none did."""
    schema = msgspec.json.decode(asked.schema) if asked.schema else {}
    return schema if isinstance(schema, Mapping) else {}


def _echo(asked: Asked) -> str:
    if not asked.json or _is_json_object(asked.text):
        return asked.text
    schema = schema_of(asked)
    return _filled(schema, {_field_for(schema, JSON_FIELD_DEFAULT): asked.text})


def _schema_only(asked: Asked) -> str:
    schema = schema_of(asked)
    return _compact(invented(schema)) if schema else _compact({JSON_FIELD_DEFAULT: prose(4 * TEXT_TOKENS_DEFAULT)})


def _field_for(schema: Schema, default: str) -> str:
    """The schema's first text property, which is where an answer would go."""
    for name, each in properties_of(schema).items():
        if each.get("type") == "string" or "enum" in each or "$ref" in each:
            return name
    return default


def _filled(schema: Schema, values: dict[str, object]) -> str:
    """An object that fits the schema, with `values` in their fields; a field that the schema forbids is left out."""
    base = invented(schema) if schema else {}
    if not isinstance(base, dict):
        return _compact(next(iter(values.values())))
    closed = schema.get("additionalProperties") is False
    return _compact(base | {name: value for name, value in values.items() if not closed or name in base})


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _is_json_object(text: str) -> bool:
    if not text.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
