"""Everything that is wrong with a project's evals, and which workflow each is of.

Owns what can be told without reading a row; its scorers are `scorer_checks`. What gates say, and what is inside a JSON
schema, is for the room `evals/`. Called where a project is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drivetrain.core.datasets import REFERENCE
from drivetrain.core.declarations import Workflow
from drivetrain.core.errors import did_you_mean
from drivetrain.core.evals import REPEATS_MAX, Eval, Scorer
from drivetrain.core.money import nano_usd
from drivetrain.project.names import NAME, NAME_HELP
from drivetrain.project.problems import Problems, shown
from drivetrain.project.scorer_checks import check_scorers, fields_of
from drivetrain.project.spots import Spots

CONCURRENCY_MAX = 1_000
GATES_MAX = 50
"""Of one eval."""


def check_evals(found: list[Eval], workflows: Sequence[Workflow[Any, Any]], spots: Spots, problems: Problems) -> None:
    """Notes every mistake in the declared evals, and names the workflow of those that leave it open."""
    named = {str(one.name): one for one in workflows}
    seen: dict[str, Eval] = {}
    for declared in found:
        check = _EvalCheck(declared, spots, problems)
        check.run(named)
        if isinstance(declared.name, str) and seen.setdefault(declared.name, declared) is not declared:
            before = spots.of(seen[declared.name])
            check.note(f"is declared twice; the other is at {before.file}:{before.line}.", do="Give it another name.")


def fit_evals(found: Sequence[Eval]) -> dict[str, Eval]:
    """By name, those of which gates and scorers can be read, whatever else is wrong with them; the first of a name."""
    named: dict[str, Eval] = {}
    for one in found:
        listed = isinstance(one.suites, Mapping) and all(isinstance(gate, str) for gate in one.gates)
        if listed and all(
            isinstance(scorer.name, str) if isinstance(scorer, Scorer) else callable(scorer) for scorer in one.scorers
        ):
            named.setdefault(str(one.name), one)
    return named


class _EvalCheck:
    """One Eval being checked."""

    def __init__(self, declared: Eval, spots: Spots, problems: Problems) -> None:
        self.declared = declared
        self.spots = spots
        self.problems = problems

    def note(self, what: str, *arguments: str, value: str = "", do: str = "") -> None:
        place = self.spots.of(self.declared, *arguments)
        named = f"`{arguments[-1]}`" if arguments else ""
        self.problems.add(
            f"Eval `{self.declared.name}`: {named}{'' if what.startswith(':') or not named else ' '}{what}",
            file=place.file, line=place.line, value=value, do=do,
        )  # fmt: skip

    def run(self, workflows: Mapping[str, Workflow[Any, Any]]) -> None:
        declared = self.declared
        for name in declared.unknown:
            self.note("is no argument of an Eval.", name, do=did_you_mean(name, Eval.__slots__))
        if not isinstance(declared.name, str) or NAME.fullmatch(declared.name) is None:
            self.note("is not a name.", "name", value=repr(declared.name)[:80], do=NAME_HELP)
        self._dataset("dataset", declared.dataset)
        self._suites()
        self._whole("repeats", declared.repeats, REPEATS_MAX)
        self._whole("concurrency", declared.concurrency, CONCURRENCY_MAX)
        self._money()
        self._texts()
        if not isinstance(declared.owner, str):
            self.note("is no text.", "owner", value=shown(declared.owner))
        self._name_workflow(list(workflows))
        asked = workflows.get(declared.workflow) if isinstance(declared.workflow, str) else None
        self._columns(asked)
        check_scorers(declared.scorers, asked, workflows, self.note)

    def _dataset(self, argument: str, name: object) -> None:
        if not isinstance(name, str) or REFERENCE.fullmatch(name) is None:
            self.note("names no Dataset.", argument, value=repr(name)[:80], do="Write NAME or NAME@NUMBER.")

    def _suites(self) -> None:
        suites = self.declared.suites
        if not isinstance(suites, Mapping):
            self.note(
                "is no object of names and Datasets.", "suites", value=shown(suites),
                do='Write for example `{"must-pass": "must-pass"}`.',
            )  # fmt: skip
            return
        for name, dataset in suites.items():
            if not isinstance(name, str) or NAME.fullmatch(name) is None:
                self.note("holds what is not a name.", "suites", value=repr(name)[:80], do=NAME_HELP)
            self._dataset("suites", dataset)

    def _whole(self, argument: str, value: object, most: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            self.note(f"must be a whole number from 1 to {most}.", argument, value=repr(value)[:80])

    def _money(self) -> None:
        usd = self.declared.usd
        if usd is None:
            return
        try:
            if isinstance(usd, bool) or not isinstance(usd, str | int) or nano_usd(usd) <= 0:
                raise ValueError
        except ValueError:
            self.note(
                "is no amount of USD above 0.", "usd", value=repr(usd)[:80], do='Write for example `usd="2.50"`.'
            )  # fmt: skip

    def _texts(self) -> None:
        """Gates and slices: texts, each once."""
        for argument, found, most in (("gates", self.declared.gates, GATES_MAX), ("slices", self.declared.slices, 0)):
            for one in found:
                if not isinstance(one, str) or not one.strip():
                    self.note("holds what is no text.", argument, value=repr(one)[:80])
                elif found.count(one) > 1:
                    self.note("holds one twice.", argument, value=one)
            if most and len(found) > most:
                self.note(f"holds {len(found)}; at most {most} are taken.", argument)

    def _columns(self, asked: Workflow[Any, Any] | None) -> None:
        """Which field is read from, or compared with, which column."""
        declared = self.declared
        taken = fields_of(asked.input) if asked is not None else None
        self._mapping("inputs", declared.inputs, taken, "input")
        if isinstance(declared.expected, Mapping):
            self._mapping("expected", declared.expected, fields_of(asked.output) if asked else None, "output")
        elif not isinstance(declared.expected, str):
            self.note(
                "is no column, and no object of the output's fields and columns.", "expected",
                value=shown(declared.expected),
            )  # fmt: skip

    def _mapping(self, argument: str, found: object, fields: Sequence[str] | None, whose: str) -> None:
        if not isinstance(found, Mapping):
            self.note(f"is no object of the {whose}'s fields and columns.", argument, value=shown(found))
            return
        for field, column in found.items():
            if fields is not None and field not in fields:
                self.note(
                    f"names a field that the {whose} of `{self.declared.workflow}` does not have.", argument,
                    value=str(field), do=did_you_mean(str(field), fields),
                )  # fmt: skip
            if not isinstance(column, str) or not column:
                self.note("names a column that is no text.", argument, value=repr(column)[:80])

    def _name_workflow(self, workflows: list[str]) -> None:
        declared = self.declared
        if isinstance(declared.workflow, Workflow):
            declared.workflow = declared.workflow.name
        if declared.workflow in ("", None):
            begun = [
                one
                for one in workflows
                if str(declared.name).startswith((f"{one}-", f"{one}_")) or one == declared.name
            ]
            fits = workflows if len(workflows) == 1 else sorted(begun, key=len)[-1:]
            if not fits:
                self.note(
                    "is missing, and the eval's name begins with no workflow's.", "workflow",
                    do=f"Name one of: {', '.join(workflows[:8])}.",
                )  # fmt: skip
                return
            declared.workflow = fits[0]
        elif declared.workflow not in workflows:
            self.note(
                "names no workflow.", "workflow", value=repr(declared.workflow)[:80],
                do=did_you_mean(str(declared.workflow), workflows),
            )  # fmt: skip
