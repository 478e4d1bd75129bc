"""Mistakes in a policy's function that can be seen without running it: fields that no case has, unknown actions.

Python finds them at the first Call, and then every Decision is `otherwise`. Only what is certain is told: attributes
of the case itself, of its input and of its answer, and actions that are written out. Called by `checks`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any

import msgspec

from drivetrain.core.declarations import Conversation, Workflow
from drivetrain.core.errors import Problem, did_you_mean
from drivetrain.core.policies import Case, Policy, act
from drivetrain.policies.functions import located


def check_function(
    label: str, policy: Policy, workflow: Workflow[Any, Any], files: Mapping[str, bytes]
) -> Iterator[Problem]:
    """Every mistake, where the function stands in one of the project's files."""
    function = policy.decide
    found = located(function, files) if isinstance(function, FunctionType) else None
    if found is None or not isinstance(function, FunctionType):
        return
    reading = _Reading(label, found.file, found.node)
    yield from reading.fields(workflow)
    if policy.actions:
        yield from reading.actions(policy.actions, function)


class _Reading:
    """One function's source, being read."""

    def __init__(self, label: str, file: str, node: ast.AST) -> None:
        self.label = label
        self.file = file
        self.node = node

    def fields(self, workflow: Workflow[Any, Any]) -> Iterator[Problem]:
        """Attributes that do not exist. A name that is bound anew may be something else, so nothing is said then."""
        name = self._case()
        if not name or self._is_bound_anew(name):
            return
        of_root: dict[str, tuple[str, Any]] = {
            "input": ("the workflow's input", Conversation if workflow.input is None else workflow.input),
            "answer": ("its output", str if workflow.output is None else workflow.output),
        }
        for one in ast.walk(self.node):
            if not isinstance(one, ast.Attribute):
                continue
            if isinstance(one.value, ast.Name) and one.value.id == name and not hasattr(Case, one.attr):
                yield self._problem(
                    one, f"reads `{one.attr}`, which no case has.", did_you_mean(one.attr, Case.__struct_fields__)
                )
            inner = one.value
            if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == name:
                whose, declared = of_root.get(inner.attr, ("", None))
                if isinstance(declared, type) and not hasattr(declared, one.attr):
                    known = declared.__struct_fields__ if issubclass(declared, msgspec.Struct) else ()
                    do = did_you_mean(one.attr, known) if known else "Declare `output`, a Record; a text has no fields."
                    yield self._problem(one, f"reads `{inner.attr}.{one.attr}`, which {whose} does not have.", do)

    def actions(self, known: tuple[str, ...], function: FunctionType) -> Iterator[Problem]:
        """Actions that are written out, in `dt.act(...)` or given back as a text, and that the policy does not know."""
        for one in ast.walk(self.node):
            said: ast.expr | None = None
            if isinstance(one, ast.Call) and one.args and _means(one.func, function) is act:
                said = one.args[0]
            elif isinstance(one, ast.Return) and not self._has_inner_functions():
                said = one.value
            if isinstance(said, ast.Constant) and isinstance(said.value, str) and said.value not in known:
                what = f"takes the action `{said.value}`, which is not among `actions`."
                yield self._problem(said, what, did_you_mean(said.value, known))

    def _case(self) -> str:
        """What the function calls its case."""
        if not isinstance(self.node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return ""
        first = [*self.node.args.posonlyargs, *self.node.args.args][:1]
        return first[0].arg if first else ""

    def _is_bound_anew(self, name: str) -> bool:
        stored = any(
            isinstance(one, ast.Name) and one.id == name and not isinstance(one.ctx, ast.Load)
            for one in ast.walk(self.node)
        )
        return stored or sum(isinstance(one, ast.arg) and one.arg == name for one in ast.walk(self.node)) > 1

    def _has_inner_functions(self) -> bool:
        kinds = ast.FunctionDef | ast.AsyncFunctionDef
        return any(isinstance(one, kinds) and one is not self.node for one in ast.walk(self.node))

    def _problem(self, at: ast.expr, what: str, do: str) -> Problem:
        return Problem(what=f"{self.label} {what}", file=self.file, line=at.lineno, do=do)


def _means(called: ast.expr, function: FunctionType) -> Callable[..., Any] | None:
    """What `act` or `dt.act` stands for where the function was written."""
    if isinstance(called, ast.Name):
        return function.__globals__.get(called.id)
    if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
        return getattr(function.__globals__.get(called.value.id), called.attr, None)
    return None
