"""How names, e-mail addresses and references to models are written in a project."""

from __future__ import annotations

import re

from drivetrain.core.errors import did_you_mean
from drivetrain.core.models import REFERENCE, is_trained
from drivetrain.project.problems import shown
from drivetrain.project.tables import Table

NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
NAME_HELP = "A name starts with a small letter and has at most 64 of a-z, 0-9, `_` and `-`."
MODEL = re.compile(r"[a-z][a-z0-9_-]{0,63}/\S+")
E_MAIL = re.compile(r"[^@\s]+@[^@\s]+")


def named(table: Table, name: str) -> bool:
    """Whether `[SECTION.NAME]` has a name; where it has none that is noted."""
    if NAME.fullmatch(name):
        return True
    table.note(None, "is not a name.", value=shown(name), do=NAME_HELP)
    return False


def model_mistake(model: str, providers: frozenset[str] | None) -> tuple[str, str] | None:
    """What is wrong with a reference to a model, and what to do; None where nothing is.

    Of a trained one only how it is written; whether the registry holds it is checked where it is used.
    """
    if is_trained(model):
        if REFERENCE.fullmatch(model) is not None:
            return None
        return "is no reference to a trained model.", 'Write "models:/NAME@ALIAS" or "models:/NAME/NUMBER".'
    if "/" not in model:
        example = f'"openai/{model or "gpt-5-mini-2025-08-07"}"'
        return "names no provider.", f"Write `provider/model`, for example {example}."
    if not MODEL.fullmatch(model):
        return "is not `provider/model`.", 'Write for example "openai/gpt-5-mini-2025-08-07".'
    provider = model.partition("/")[0]
    if providers is not None and provider not in providers:
        return f"names the provider `{provider}`, which is not declared.", did_you_mean(provider, providers)
    return None
