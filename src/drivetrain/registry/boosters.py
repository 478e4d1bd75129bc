"""What LightGBM's and XGBoost's own formats tell of a model, read without either library.

Only what a signature needs; that every tree is one is proven by the scorer, each time before the library sees a file.
XGBoost's binary twin of JSON becomes JSON here, so that its library never reads counts that nobody checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.codec import MalformedJson, parse_json
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Column
from drivetrain.registry.artifacts import open_plain
from drivetrain.registry.signatures import COLUMNS_MAX, LABELS_MAX
from drivetrain.registry.ubjson import decode_ubjson, json_of

BOOSTER_BYTES_MAX = 256 * 1024 * 1024
"""Thousands of deep trees; ten times as much in memory while JSON is read."""
_CLASSIFICATIONS = ("binary", "cross_entropy", "multiclass", "multiclassova", "binary:", "multi:")
_CODES = re.compile(r"-?\d{1,9}(:-?\d{1,9})*")
_PANDAS = "\npandas_categorical:"


class Booster(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a boosted model."""

    columns: tuple[Column, ...]
    classes: int
    """0: no classification."""
    content: bytes
    """As it will be kept: LightGBM's text, or XGBoost's JSON."""


def read_lightgbm(path: Path) -> Booster:
    """A file of `booster.save_model`. Raises: DrivetrainError with what is wrong."""
    content = _content(path, "LightGBM")
    try:
        return _lightgbm(content)
    except KeyError as error:
        raise _refused(path, "LightGBM", f"`{error.args[0]}` is missing") from None
    except (ValueError, IndexError, TypeError) as error:
        raise _refused(path, "LightGBM", str(error)) from None


def read_xgboost(path: Path) -> Booster:
    """A file of `booster.save_model`, as JSON or UBJSON. Raises: DrivetrainError with what is wrong."""
    content = _content(path, "XGBoost")
    try:
        if is_ubjson(content[:2]):
            document = decode_ubjson(content)
            content = json_of(document)
        else:
            document = parse_json(content)
        return _xgboost(document, content)
    except KeyError as error:
        raise _refused(path, "XGBoost", f"`{error.args[0]}` is missing") from None
    except (MalformedJson, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise _refused(path, "XGBoost", str(error)) from None


def is_ubjson(start: bytes) -> bool:
    """Whether a file that begins so is UBJSON: both begin with a brace."""
    return start[:1] == b"{" and start[1:2] in (b"L", b"l", b"I", b"i", b"U")


def _lightgbm(content: bytes) -> Booster:
    if not content.startswith(b"tree\n"):
        raise ValueError("it does not begin as LightGBM's text models do")
    text = content.decode("utf-8")
    end = text.find("\nTree=")
    head = dict(line.partition("=")[::2] for line in text[: max(end, 0)].splitlines())
    if head.get("version") not in ("v3", "v4"):
        raise ValueError(f"its version {head.get('version', '')[:20]!r} is not known")
    names, infos = head["feature_names"].split(" "), head["feature_infos"].split(" ")
    if not 0 < len(names) <= COLUMNS_MAX or len(infos) != len(names):
        raise ValueError(f"it names {len(names):,} columns, and describes {len(infos):,}")
    classes = int(head["num_class"])
    objective = head.get("objective", "").split(" ")[0]
    split_by_code = [name for name, info in zip(names, infos, strict=True) if _CODES.fullmatch(info)]
    values = _pandas_values(text)
    if values and len(values) != len(split_by_code):
        raise ValueError(
            f"{len(values)} columns were categories of pandas, and {len(split_by_code)} are split by: which is which "
            "it does not keep; train it on their codes"
        )
    known = dict(zip(split_by_code, values, strict=False))
    columns = tuple(
        Column(name=name, dtype="category", nullable=True, values=known[name])
        if name in known
        else Column(name=name, dtype="float", nullable=True)
        for name in names
    )
    return Booster(columns=columns, classes=_class_count(objective, classes), content=content)


def _pandas_values(text: str) -> list[tuple[str, ...]]:
    """Of each column that was a category in pandas: its values in the order of their codes."""
    start = text.rfind(_PANDAS)
    line = text[start + len(_PANDAS) :].partition("\n")[0] if start >= 0 else "null"
    listed = msgspec.json.decode(line, type=list[list[str | float | bool]] | None)
    for values in listed or ():
        if not all(isinstance(one, str) for one in values):
            raise ValueError("a category of pandas has values that are no texts; train it on texts or on their codes")
    return [tuple(map(str, values)) for values in listed or ()]


def _xgboost(document: Any, content: bytes) -> Booster:
    learner = document["learner"]
    parameters: Mapping[str, Any] = learner["learner_model_param"]
    features, classes = int(parameters["num_feature"]), int(parameters.get("num_class", "0"))
    if not 0 < features <= COLUMNS_MAX or not 0 <= classes <= LABELS_MAX:
        raise ValueError(f"it says to have {features:,} columns and {classes:,} classes")
    names = list(learner.get("feature_names") or [f"f{place}" for place in range(features)])
    if len(names) != features or not all(isinstance(one, str) for one in names):
        raise ValueError(f"it names {len(names):,} columns, and counts {features:,}")
    if "c" in (learner.get("feature_types") or ()):
        raise ValueError("it splits by categories, whose names it does not keep; train it on one column for each")
    columns = tuple(Column(name=name, dtype="float", nullable=True) for name in names)
    return Booster(
        columns=columns, classes=_class_count(str(learner["objective"]["name"]), classes), content=content
    )  # fmt: skip


def _class_count(objective: str, classes: int) -> int:
    if not objective.startswith(_CLASSIFICATIONS):
        return 0
    return max(classes, 2)


def _content(path: Path, library: str) -> bytes:
    with open_plain(path) as file:
        size = file.seek(0, 2)
        if size > BOOSTER_BYTES_MAX:
            raise _refused(path, library, f"it has {size:,} bytes, and at most {BOOSTER_BYTES_MAX:,} are read")
        file.seek(0)
        return file.read(size)


def _refused(path: Path, library: str, why: str) -> DrivetrainError:
    return DrivetrainError(
        f"{path.name[:200]!r} is no {library} model that can be taken: {why}.",
        do=f"Save it anew with `save_model` of {library}'s booster. Nothing of this file was loaded or kept.",
    )
