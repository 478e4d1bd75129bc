"""`drivetrain check` renders each prompt once on made-up values: what fails on every Call is told before the first."""

from __future__ import annotations

import pytest
from small_project import SMALL, TRIAGE, Make

from drivetrain.cli.check import CheckAnswer, check_project

TICKET = """\
from __future__ import annotations

import datetime
import enum
from typing import Any, Literal

import drivetrain as dt


class Kind(enum.Enum):
    A = "a"


class Line(dt.Record):
    amount: float
    tags: list[str]


class Ticket(dt.Record):
    text: str
    kind: Kind
    urgency: Literal["low", "high"]
    at: datetime.datetime
    lines: list[Line]
    facts: dict[str, int]
    note: str | None = None
"""


def checked(make: Make, template: str, code: str = TRIAGE) -> CheckAnswer:
    return check_project(make({**SMALL, "workflows/triage.py": code, "workflows/triage.j2": template}), None)


def full(fields: str = "") -> str:
    """The small project with a larger input type."""
    return TICKET + fields + TRIAGE.partition("class Ticket(dt.Record):\n    text: str\n")[2]


@pytest.mark.parametrize(
    ("template", "line", "words"),
    [
        ("Sort\n\n\n{{ text | truncate(24) }}", 4, ["more arguments than it takes", "truncate(length=24)"]),
        ("{{ text | replace('a') }}", 1, ["lacks an argument"]),
        ("{{ text.uper() }}", 1, ["no method named uper"]),
        ("{% if text is urgent %}now{% endif %}", 1, ["test urgent is unknown"]),
    ],
)
def test_what_fails_on_every_input_is_a_mistake(make: Make, template: str, line: int, words: list[str]) -> None:
    (problem,) = checked(make, template).problems
    assert (problem.file, problem.line) == ("workflows/triage.j2", line)
    for word in words:
        assert word in str(problem)


def test_what_an_included_template_does_wrong_is_told_of_that_one(make: Make) -> None:
    root = make(
        {**SMALL, "workflows/triage.j2": "a\n{% include 'part.j2' %}\n{{ text }}", "part.j2": "\n{{ 1 | truncate(2) }}"}
    )
    (problem,) = check_project(root, None).problems
    assert (problem.file, problem.line) == ("part.j2", 2)


@pytest.mark.parametrize(
    "template",
    [
        "{{ text | int }}",  # fails on most texts, and not on all
        "{{ text | truncate(length=24) }}",
        "{% for line in lines %}{{ line.amount | round(1) }} {{ line.tags | join(', ') }}{% endfor %}",
        "{{ kind.upper() }} {{ urgency }} {{ at[:10] }} {{ note.upper() }}",
        "{% for name, value in facts.items() %}{{ name }}: {{ value + 1 }}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ text }}{% endfor %}{% endfor %}",  # more than is tried
    ],
)
def test_what_can_be_rendered_is_no_mistake(make: Make, template: str) -> None:
    assert checked(make, template, full()).ok


@pytest.mark.parametrize("field", ["    anything: Any = None\n", "    parent: Ticket | None = None\n"])
def test_an_input_that_cannot_be_made_up_is_not_tried(make: Make, field: str) -> None:
    assert checked(make, "{{ text | truncate(24) }}", full(field)).ok
