"""Everything that is wrong with a project's evals, and which workflow each is of.

Owns what can be told without reading a row. How gates are read is for the room `evals/`. Called where a project is
loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drivetrain.core.datasets import REFERENCE
from drivetrain.core.declarations import Workflow
from drivetrain.core.errors import did_you_mean
from drivetrain.core.evals import REPEATS_MAX, Eval
from drivetrain.project.problems import Problems
from drivetrain.project.settings import NAME, NAME_HELP
from drivetrain.project.spots import Spots

CONCURRENCY_MAX = 1_000


def check_evals(found: list[Eval], workflows: Sequence[Workflow[Any, Any]], spots: Spots, problems: Problems) -> None:
    """Notes every mistake in the declared evals, and names the workflow of those that leave it open."""
    names = [str(one.name) for one in workflows]
    seen: dict[str, Eval] = {}
    for declared in found:
        check = _EvalCheck(declared, spots, problems)
        check.run(names)
        if isinstance(declared.name, str) and seen.setdefault(declared.name, declared) is not declared:
            before = spots.of(seen[declared.name])
            check.note(f"is declared twice; the other is at {before.file}:{before.line}.", do="Give it another name.")


class _EvalCheck:
    """One Eval being checked."""

    def __init__(self, declared: Eval, spots: Spots, problems: Problems) -> None:
        self.declared = declared
        self.spots = spots
        self.problems = problems

    def note(self, what: str, *arguments: str, value: str = "", do: str = "") -> None:
        place = self.spots.of(self.declared, *arguments)
        self.problems.add(
            f"Eval `{self.declared.name}`: {'`' + arguments[-1] + '` ' if arguments else ''}{what}",
            file=place.file, line=place.line, value=value, do=do,
        )  # fmt: skip

    def run(self, workflows: list[str]) -> None:
        declared = self.declared
        for name in declared.unknown:
            self.note("is no argument of an Eval.", name, do=did_you_mean(name, Eval.__slots__))
        if not isinstance(declared.name, str) or NAME.fullmatch(declared.name) is None:
            self.note("is not a name.", "name", value=repr(declared.name)[:80], do=NAME_HELP)
        for name in (declared.dataset, *declared.suites.values()):
            if not isinstance(name, str) or REFERENCE.fullmatch(name) is None:
                self.note("names no Dataset.", "dataset", value=repr(name)[:80], do="Write NAME or NAME@NUMBER.")
        if not isinstance(declared.repeats, int) or not 1 <= declared.repeats <= REPEATS_MAX:
            self.note(f"must be a whole number from 1 to {REPEATS_MAX}.", "repeats", value=repr(declared.repeats)[:80])
        if not isinstance(declared.concurrency, int) or not 1 <= declared.concurrency <= CONCURRENCY_MAX:
            self.note(
                f"must be a whole number from 1 to {CONCURRENCY_MAX}.", "concurrency",
                value=repr(declared.concurrency)[:80],
            )  # fmt: skip
        self._name_workflow(workflows)

    def _name_workflow(self, workflows: list[str]) -> None:
        declared = self.declared
        if not declared.workflow:
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
