"""What a user declares of evals: a Dataset, the workflow that it is run through, how it is scored, what must hold.

Data only. The room `evals/` holds the behaviour. A declaration keeps what was written, so that `drivetrain check`
reports every mistake at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Never

import msgspec

from drivetrain.core.declarations import Place, caller_place

SCORER_KINDS = (
    "exact", "normalised", "f1", "within", "matches", "json_schema", "json_fields", "similarity", "function", "judge",
)  # fmt: skip
REPEATS_MAX = 20
CONCURRENCY_DEFAULT = 8
SCORER_TIMEOUT_MS = 5_000
EXPECTED = "expected"
"""The Dataset's column that holds what is right, unless an eval names another."""


class Score(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one scorer says of one answer."""

    value: float
    """From 0, wrong, to 1, right."""
    cause: str = ""
    """Why it is below 1, as failures are grouped: `format`, `refusal`, `length`, `language`, `label`, `wrong`,
    `scorer` (the scorer failed) or a word of the user's own."""
    unread: bool = False
    """Whether the answer could not be read at all, so that it counts as wrong for its form."""
    note: str = ""
    """One short sentence. It may quote the answer: it is kept as texts of the Call are, or not at all."""


class Scorer(msgspec.Struct, frozen=True, kw_only=True):
    """One way to score answers; made by the functions of `drivetrain.scorers`."""

    name: str
    """What gates and Reports call its mean: `accuracy` of the first one unless the eval says otherwise."""
    kind: str
    """One of `SCORER_KINDS`."""
    field: str = ""
    """The output's field that is scored; empty: the whole answer, or the only field that both sides have."""
    options: dict[str, Any] = {}
    """By the kind: plain JSON values."""
    function: Callable[..., Any] | None = None
    """Of `function`: (output, expected, row) -> bool, a number from 0 to 1, or a Score."""
    workflow: str = ""
    """Of `judge`: the Workflow that judges."""
    timeout_ms: int = SCORER_TIMEOUT_MS
    """A function that takes longer has failed at this answer."""


class Eval:
    """A Dataset that is run through a workflow, scored, and held against gates that were written before."""

    __slots__ = (
        "concurrency",
        "dataset",
        "expected",
        "gates",
        "inputs",
        "name",
        "owner",
        "place",
        "repeats",
        "scorers",
        "slices",
        "suites",
        "unknown",
        "usd",
        "workflow",
    )

    def __init__(
        self,
        name: str,
        *,
        dataset: str,
        scorers: Sequence[Scorer | Callable[..., Any]] = (),
        gates: Sequence[str] = (),
        workflow: str = "",
        inputs: Mapping[str, str] | None = None,
        expected: str | Mapping[str, str] = "",
        slices: Sequence[str] = (),
        suites: Mapping[str, str] | None = None,
        repeats: int = 1,
        usd: str | int | None = None,
        concurrency: int = CONCURRENCY_DEFAULT,
        owner: str = "",
        place: Place | None = None,
        **unknown: Never,
    ) -> None:
        self.name = name
        self.dataset = dataset
        """`NAME` for the newest number when it is run, or `NAME@NUMBER`."""
        self.scorers = (scorers,) if isinstance(scorers, Scorer) or callable(scorers) else tuple(scorers)
        """The first one's mean is what `accuracy` means in a gate. Empty: `exact` on what the row expects."""
        self.gates = (gates,) if isinstance(gates, str) else tuple(gates)
        """Such as `accuracy >= 0.9`, `no slice worse than -2 pp`, `cost per call <= $0.004`."""
        self.workflow = workflow
        """Empty: the project's only workflow, or the one whose name this eval's name begins with."""
        self.inputs: Mapping[str, str] = inputs or {}
        """The input's field -> the Dataset's column; fields that are not named take the column of their name."""
        self.expected = expected
        """The column that holds what is right, or the output's fields -> columns; empty: `expected`, or the columns
        that are named as the output's fields are."""
        self.slices = (slices,) if isinstance(slices, str) else tuple(slices)
        """Columns whose values part the rows into slices."""
        self.suites: Mapping[str, str] = suites or {}
        """Name -> Dataset of edge cases that are run too and told apart: `{"must-pass": "must-pass"}`."""
        self.repeats = repeats
        """How often each row is asked, where answers differ from time to time."""
        self.usd = usd
        """What a run may cost at most; None: what the project's budgets allow."""
        self.concurrency = concurrency
        self.owner = owner
        self.place = place or caller_place()
        self.unknown: Mapping[str, Any] = unknown

    def __repr__(self) -> str:
        return f"Eval({self.name!r})"
