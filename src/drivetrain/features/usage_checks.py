"""Names of features in a workflow's templates and functions that its FeatureService does not give.

Called by `checks`. Nothing is run: templates are parsed, and functions are read where their source is in the Snapshot.
A name that is computed, or that a template asks for with `is defined`, is nobody's mistake here.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any

from drivetrain.core.declarations import Rule, Variant, Workflow
from drivetrain.core.errors import Problem, did_you_mean
from drivetrain.project.prompts import included, members_of
from drivetrain.project.snapshot import Snapshot

FEATURES = "features"
"""What templates call them."""
RULE_PLACE, CHECK_PLACE = 1, 2
"""Which argument of a rule's and of a check's function they are; its name is the user's."""


def unknown_names(snapshot: Snapshot, workflow: Workflow[Any, Any], given: Collection[str]) -> Iterator[Problem]:
    """A Problem for each name that is not among those `given`."""
    owner = f"which the FeatureService of workflow `{workflow.name}` does not give."
    for path in _templates(snapshot.templates, workflow):
        for name, line in members_of(snapshot.templates[path], FEATURES):
            if name not in given:
                what = f"The template uses `{FEATURES}.{name}`, {owner}"
                yield Problem(what=what, file=path, line=line, value=name, do=did_you_mean(name, given))
    trees: dict[str, ast.Module | None] = {}
    for function, place in _functions(workflow):
        path = function.__code__.co_filename.removeprefix(f"{snapshot.root}/")
        if path in snapshot.files and path not in trees:
            trees[path] = _parsed(snapshot.files[path])
        tree = trees.get(path)
        for name, line in _subscripts(tree, function.__code__, place) if tree is not None else ():
            if name not in given:
                what = f"A function of workflow `{workflow.name}` reads the feature `{name}`, {owner}"
                yield Problem(what=what, file=path, line=line, value=name, do=did_you_mean(name, given))


def _templates(templates: Mapping[str, str], workflow: Workflow[Any, Any]) -> list[str]:
    """Paths of the templates that a workflow's variants name, and of those that they include."""
    named = [
        name
        for step in workflow.route
        if isinstance(step, Variant)
        for name in (step.prompt, step.system)
        if isinstance(name, str) and name in templates
    ]
    found = dict.fromkeys(named)
    while named:
        inner = [name for name in included(templates[named.pop()]) if name in templates and name not in found]
        found |= dict.fromkeys(inner)
        named += inner
    return list(found)


def _functions(workflow: Workflow[Any, Any]) -> Iterator[tuple[FunctionType, int]]:
    """The plain functions of a workflow that take features, and which argument these are."""
    declared: list[tuple[Callable[..., Any] | Any, int]] = []
    for step in workflow.route:
        if isinstance(step, Rule):
            declared += [(step.when, RULE_PLACE), (step.then, RULE_PLACE)]
        elif isinstance(step, Variant):
            accept = step.accept if isinstance(step.accept, Sequence) else [step.accept]
            declared += [(one, CHECK_PLACE) for one in accept]
    declared += [(one, CHECK_PLACE) for one in workflow.validators]
    for function, place in declared:
        if isinstance(function, FunctionType) and function.__code__.co_argcount > place:
            yield function, place


def _parsed(source: bytes) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        return None  # noted where modules are loaded


def _subscripts(tree: ast.Module, code: CodeType, place: int) -> list[tuple[str, int]]:
    """(name, line) of every `features["name"]` in a function, by whatever name the argument goes."""
    argument = code.co_varnames[place]
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.Lambda) or _first_line(node) != code.co_firstlineno:
            continue
        arguments = [one.arg for one in (*node.args.posonlyargs, *node.args.args)]
        if arguments != list(code.co_varnames[: code.co_argcount]) or _rebound(node, argument):
            continue
        found += [
            (one.slice.value, one.lineno)
            for one in ast.walk(node)
            if isinstance(one, ast.Subscript) and isinstance(one.value, ast.Name) and one.value.id == argument
            and isinstance(one.ctx, ast.Load)
            and isinstance(one.slice, ast.Constant) and isinstance(one.slice.value, str)
        ]  # fmt: skip
    return found


def _first_line(node: ast.FunctionDef | ast.Lambda) -> int:
    """The line that Python remembers of a function: its first decorator's."""
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return min(node.lineno, *(one.lineno for one in decorators)) if decorators else node.lineno


def _rebound(node: ast.FunctionDef | ast.Lambda, argument: str) -> bool:
    """Whether the name comes to mean something else within, or is asked for what it holds."""
    for one in ast.walk(node):
        if isinstance(one, ast.Name) and one.id == argument and not isinstance(one.ctx, ast.Load):
            return True
        if isinstance(one, ast.arg) and one.arg == argument and one not in (*node.args.posonlyargs, *node.args.args):
            return True
        if isinstance(one, ast.Compare) and any(
            isinstance(operator, ast.In | ast.NotIn) and isinstance(side, ast.Name) and side.id == argument
            for operator, side in zip(one.ops, one.comparators, strict=True)
        ):
            return True
    return False
