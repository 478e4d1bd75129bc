"""The demo's texts and what each one truly asks for: our own, or those of a folder like BANKING77's.

Owns reading and choosing them, and that no text that is sent is among those that a model is trained on. `demo` asks;
`demo_folder` writes them into the project.
"""

from __future__ import annotations

import csv
import io
import json
import random
import tomllib
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path

import msgspec

from drivetrain.core.errors import DrivetrainError

OWN_CALLS_DEFAULT = 1_000
SEED = 1
TEXTS_FILE, TRAINING_FILE, INTENTS_FILE = "test.csv", "train.csv", "categories.json"
FORM = (
    f"--data wants a folder with {TEXTS_FILE} (columns text,category) and {INTENTS_FILE} (a JSON list of the "
    f"categories), and {TRAINING_FILE} with the same columns to train on, such as BANKING77: "
    "https://github.com/PolyAI-LDN/task-specific-datasets/tree/master/banking_data"
)
FILE_BYTES_MAX = 64 * 1024 * 1024
"""Larger files are refused: the texts are held in memory, here and in the simulator."""
BANKING77_INTENTS = "6bb5f41657051aed"
"""Hash of BANKING77's 77 intents, sorted, one a line."""


class Example(msgspec.Struct, frozen=True):
    """A text, and the intent that is true for it."""

    text: str
    intent: str
    group: str = ""
    """What it shares with others that are put together from the same request; empty: it stands for itself."""


class Texts(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo sends."""

    name: str
    attribution: str
    """Whose texts these are, and under which licence."""
    intents: tuple[str, ...]
    examples: tuple[Example, ...]
    """One per message that is sent; a text may stand there more than once."""
    training: tuple[Example, ...] = ()
    """What a model may be trained on; none of these is sent."""
    training_source: str = ""
    """Where these come from, or why there are none."""
    dropped: int = 0
    """Rows of train.csv that were left out because the same text is sent."""


def own_texts(calls: int | None) -> Texts:
    """`calls` messages (by default 1,000) put together from our own phrases; always the same ones."""
    phrases = tomllib.loads((files(__package__) / "demo_messages.toml").read_text(encoding="utf-8"))
    found = {
        f"{opening}{request[0].upper() + request[1:] if not opening else request}{closing}": (intent, request)
        for intent, requests in phrases["intents"].items()
        for request in requests
        for opening in phrases["openings"]
        for closing in phrases["closings"]
    }
    examples = [Example(text, intent, request) for text, (intent, request) in found.items()]
    sentences = tomllib.loads((files(__package__) / "demo_training.toml").read_text(encoding="utf-8"))
    return Texts(
        name="built-in",
        attribution="the demo's own, put together from phrases",
        intents=tuple(phrases["intents"]),
        examples=_chosen(examples, OWN_CALLS_DEFAULT if calls is None else calls),
        training=tuple(Example(text, intent) for intent, texts in sentences["intents"].items() for text in texts),
        training_source="sentences of the demo's own, none of which is sent",
    )


def texts_of(folder: Path, calls: int | None) -> Texts:
    """`calls` messages (by default all) of test.csv in `folder`. Raises: DrivetrainError that says what is missing."""
    try:
        intents = json.loads(_content(folder, INTENTS_FILE))
    except ValueError as error:
        raise DrivetrainError(f"{folder / INTENTS_FILE} is no JSON: {error}.", do=FORM) from None
    if not isinstance(intents, list) or not intents or not all(isinstance(one, str) and one for one in intents):
        raise DrivetrainError(f"{folder / INTENTS_FILE} is no list of names.", do=FORM)
    examples = _examples(folder, TEXTS_FILE, intents)
    given = _examples(folder, TRAINING_FILE, intents) if (folder / TRAINING_FILE).is_file() else []
    sent = {_plain(one.text) for one in examples}
    training = tuple(one for one in given if _plain(one.text) not in sent)
    known = _hash(intents) == BANKING77_INTENTS
    return Texts(
        name="BANKING77" if known else folder.resolve().name,
        attribution="BANKING77, PolyAI, CC-BY-4.0" if known else f"{folder / TEXTS_FILE}",
        intents=tuple(intents),
        examples=_chosen(examples, len(examples) if calls is None else calls),
        training=training,
        training_source=str(folder / TRAINING_FILE) if given else f"{folder} has no {TRAINING_FILE} to train on",
        dropped=len(given) - len(training),
    )


def _examples(folder: Path, name: str, intents: list[str]) -> list[Example]:
    """Every row that has a text. Raises: DrivetrainError."""
    reader = csv.DictReader(io.StringIO(_content(folder, name), newline=""))
    missing = {"text", "category"} - set(reader.fieldnames or ())
    if missing:
        named = " and ".join(f"`{column}`" for column in sorted(missing))
        raise DrivetrainError(f"{folder / name} has no column {named}.", do=FORM)
    examples = [Example((row["text"] or "").strip(), (row["category"] or "").strip()) for row in reader]
    examples = [one for one in examples if one.text]
    strangers = sorted({one.intent for one in examples} - set(intents))
    if strangers:
        what = f"{folder / name} has the category `{strangers[0]}`, which {INTENTS_FILE} does not name."
        raise DrivetrainError(what, do=FORM)
    if not examples:
        raise DrivetrainError(f"{folder / name} has no text.", do=FORM)
    return examples


def _plain(text: str) -> str:
    """By which two texts are the same."""
    return " ".join(text.lower().split())


def _chosen(examples: list[Example], count: int) -> tuple[Example, ...]:
    """`count` of them in a mixed order that is always the same; all of them again and again where there are fewer."""
    mixed = random.Random(SEED).sample(examples, len(examples))  # noqa: S311 - nothing secret depends on it
    return tuple(mixed[place % len(mixed)] for place in range(count))


def _content(folder: Path, name: str) -> str:
    path = folder / name
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise DrivetrainError(f"{path} is larger than {FILE_BYTES_MAX} bytes.", do=FORM)
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DrivetrainError(f"{path} cannot be read: {error.strerror}.", do=FORM) from None
    except UnicodeDecodeError:
        raise DrivetrainError(f"{path} is not UTF-8.", do=FORM) from None


def _hash(intents: list[str]) -> str:
    return blake2b("\n".join(sorted(intents)).encode(), digest_size=8).hexdigest()
