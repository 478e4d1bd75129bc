"""Mistakes in one workflow: each with the workflow's name in front and the line of its argument behind.

Called by `checks`, `resilience_checks` and `route_checks`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection
from typing import Any, TypeGuard

import msgspec

from drivetrain.core.declarations import Record, Rule, Variant, Workflow
from drivetrain.core.errors import did_you_mean
from drivetrain.project.names import NAME, NAME_HELP
from drivetrain.project.problems import Problems, shown
from drivetrain.project.spots import Spots

TIMEOUT_MOST_MS = 3_600_000
"""A call that takes longer than an hour is a job."""


class WorkflowNotes:
    """Keeps the mistakes of one workflow and of the steps in its route."""

    def __init__(self, workflow: Workflow[Any, Any], spots: Spots, problems: Problems) -> None:
        self.workflow = workflow
        self.spots = spots
        self.problems = problems

    def note(self, what: str, *arguments: str, value: str = "", do: str = "", of: Rule | Variant | None = None) -> None:
        """Keeps a mistake in the workflow, or in one of its steps, at the line of an argument."""
        place = self.spots.of(of or self.workflow, *arguments)
        step = "" if of is None else f"{'Rule' if isinstance(of, Rule) else 'Variant'} `{of.name}` of "
        label = f"{step}{'Workflow' if of is None else 'workflow'} `{self.workflow.name}`"
        self.problems.add(f"{label} {what}", file=place.file, line=place.line, value=value, do=do)

    def unknown(self, declaration: Any, step: Rule | Variant | None) -> None:
        """Notes arguments that a declaration does not have."""
        known = [
            name for name in inspect.signature(type(declaration).__init__).parameters if name not in _NOT_ARGUMENTS
        ]
        for name in declaration.unknown:
            self.note(f"has no argument `{name}`.", name, do=did_you_mean(name, known), of=step)

    def name(self, name: object, step: Rule | Variant | None) -> None:
        """Notes a name that is none."""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            self.note("has a wrong name.", value=written(name), do=NAME_HELP, of=step)

    def whole(self, argument: str, value: object, most: int, step: Rule | Variant | None) -> None:
        """Notes an argument that is no whole number from 1 to `most`."""
        if not is_whole(value, 1, most):
            self.note(
                f"has a wrong `{argument}`; it is a whole number from 1 to {most}.",
                argument,
                value=written(value),
                of=step,
            )

    def choice(self, argument: str, value: object, choices: Collection[str]) -> bool:
        """Whether an argument is one of `choices`; else notes it."""
        if value in choices:
            return True
        listed = ", ".join(f'"{one}"' for one in choices)
        self.note(
            f"has a wrong `{argument}`; it is one of {listed}.",
            argument,
            value=written(value),
            do=did_you_mean(str(value), choices),
        )
        return False


_NOT_ARGUMENTS = ("self", "place", "unknown")


def is_record(declared: object) -> bool:
    """Whether something is a class of Records."""
    return isinstance(declared, type) and issubclass(declared, Record)


def refused_by_type(value: Any, output: type[Record]) -> str:
    """Why a type refuses an instance of itself, which nothing checks where it is made; empty where it does not."""
    try:
        msgspec.convert(msgspec.to_builtins(value), output)
    except (msgspec.ValidationError, TypeError) as error:
        return str(error)
    return ""


def is_whole(value: object, least: int, most: int) -> bool:
    """Whether something is a whole number in a range."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether something is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def written(value: object) -> str:
    """A value as written, where it is a plain one; else its kind."""
    return shown(value) if isinstance(value, str | int | float) else kind(value)


def kind(value: object) -> str:
    """What something is, without its content."""
    return "None" if value is None else f"a {type(value).__name__}"
