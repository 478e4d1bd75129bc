"""The functions of a Feast repository: their source, and what they need to stand in a module of ours.

Nothing is run here, and what is carried runs nothing when it is imported: functions, written-out constants and imports
of the standard library. Called by `feast_translate.py`.
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import sys
import textwrap
from collections.abc import Iterator, Mapping

import msgspec

HELPERS_MAX = 50
"""Functions that one function calls, all told; one with more is a library, not a feature."""
_ACTING = ("antigravity", "idlelib", "this", "turtledemo")
"""Modules of the standard library that do something when they are imported."""
_CLOCKS = ("random", "secrets", "time", "uuid")
_NOW = re.compile(r"\.(now|utcnow|today)\(")


class Carried(msgspec.Struct, frozen=True, kw_only=True):
    """A function that stands by itself."""

    name: str
    text: str
    """Its source without decorators, under its new name."""
    imports: Mapping[str, str]
    """Name -> the statement that gives it."""
    before: Mapping[str, str]
    """Name -> the constant or function that it needs, in the order of the file."""
    clock: bool
    """Whether it seems to read a clock or dice, so that offline and online would differ."""
    strings: frozenset[str]
    """Texts in it, among them the names of the columns that it reads."""


class Refused(msgspec.Struct, frozen=True):
    """Why a function cannot be carried over."""

    why: str


def function_source(source: str, line: int) -> str:
    """The source of the function at a line, decorators included; empty where none is there."""
    found = _function_at(_tree(source), line)
    if found is None:
        return ""
    first = min([found.lineno, *(one.lineno for one in found.decorator_list)])
    return textwrap.dedent("\n".join(source.splitlines()[first - 1 : found.end_lineno]))


def carry(source: str, line: int, name: str) -> Carried | Refused:
    """The function at a line of a file, called `name`, with everything that it needs of that file."""
    tree = _tree(source)
    function = _function_at(tree, line)
    if not isinstance(function, ast.FunctionDef):
        return Refused("it is no plain function")
    imports: dict[str, str] = {}
    before: dict[str, str] = {}
    waiting, done = [function], {function.name}
    while waiting:
        one = waiting.pop()
        if not all(_is_plain(default) for default in _defaults(one)):
            return Refused(f"a default of `{one.name}` is computed when it is defined")
        for needed in sorted(_needed(source, one)):
            if hasattr(builtins, needed) or needed in done:
                if needed == function.name:
                    return Refused("it calls itself")
                continue
            done.add(needed)
            if len(done) > HELPERS_MAX:
                return Refused(f"it needs more than {HELPERS_MAX} other names")
            found = _defined(tree, needed)
            if isinstance(found, ast.FunctionDef) and not found.decorator_list:
                before[needed] = _text(source, found)
                waiting.append(found)
            elif isinstance(found, ast.Assign | ast.AnnAssign) and _is_plain(found.value):
                before[needed] = ast.get_source_segment(source, found) or ""
            elif isinstance(found, str):
                imports[needed] = found
            else:
                return Refused(f"it needs `{needed}`, which is neither plain Python nor of the standard library")
    for annotation in sorted(_annotations(function)):
        statement = _defined(tree, annotation)
        if isinstance(statement, str):
            imports[annotation] = statement
    text = _text(source, function)
    renamed, count = re.subn(rf"\Adef\s+{re.escape(function.name)}\s*\(", f"def {name}(", text, count=1)
    if not count:
        return Refused("it is written as no plain function is")
    return Carried(
        name=name,
        text=renamed,
        imports=imports,
        before={one: before[one] for one in sorted(before, key=lambda one: _line_of(tree, one))},
        clock=bool(_NOW.search(text)) or any(one.split()[1].partition(".")[0] in _CLOCKS for one in imports.values()),
        strings=frozenset(
            one.value for one in ast.walk(function) if isinstance(one, ast.Constant) and isinstance(one.value, str)
        ),
    )


def _tree(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module(body=[], type_ignores=[])


def _function_at(tree: ast.Module, line: int) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    for one in ast.walk(tree):
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = [one.lineno, *(decorator.lineno for decorator in one.decorator_list)]
            if line in (min(lines), one.lineno):
                return one
    return None


def _text(source: str, node: ast.stmt) -> str:
    """Its lines, without decorators."""
    return textwrap.dedent("\n".join(source.splitlines()[node.lineno - 1 : node.end_lineno]))


def _needed(source: str, function: ast.FunctionDef) -> set[str]:
    """Names that the function takes from its module, those in its annotations aside."""
    table = symtable.symtable(_text(source, function), "function", "exec")
    found: set[str] = set()
    waiting = list(table.get_children())
    while waiting:
        scope = waiting.pop()
        waiting += scope.get_children()
        found |= {one.get_name() for one in scope.get_symbols() if one.is_global() and one.is_referenced()}
    return found


def _defaults(function: ast.FunctionDef) -> Iterator[ast.expr]:
    yield from function.args.defaults
    yield from (one for one in function.args.kw_defaults if one is not None)


def _annotations(function: ast.FunctionDef) -> set[str]:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    noted = [one.annotation for one in arguments if one.annotation] + [function.returns] * bool(function.returns)
    return {one.id for note in noted if note is not None for one in ast.walk(note) if isinstance(one, ast.Name)}


def _defined(tree: ast.Module, name: str) -> ast.stmt | str | None:
    """What a module calls so: its statement, or for a name of the standard library the import that gives it."""
    for statement in reversed(tree.body):
        if isinstance(statement, ast.FunctionDef) and statement.name == name:
            return statement
        if isinstance(statement, ast.Assign) and [getattr(one, "id", "") for one in statement.targets] == [name]:
            return statement
        if isinstance(statement, ast.AnnAssign) and getattr(statement.target, "id", "") == name:
            return statement
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                if (alias.asname or alias.name.partition(".")[0]) == name:
                    return _import(statement, alias)
    return None


def _import(statement: ast.Import | ast.ImportFrom, alias: ast.alias) -> str | None:
    module = alias.name if isinstance(statement, ast.Import) else statement.module or ""
    top = module.partition(".")[0]
    if getattr(statement, "level", 0) or top not in sys.stdlib_module_names or top in _ACTING:
        return None
    named = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
    return f"import {named}" if isinstance(statement, ast.Import) else f"from {module} import {named}"


def _is_plain(value: ast.expr | None) -> bool:
    """Whether a constant is written out, so that it can be copied."""
    try:
        if value is not None:
            ast.literal_eval(value)
        return value is not None
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return False


def _line_of(tree: ast.Module, name: str) -> int:
    found = _defined(tree, name)
    return found.lineno if isinstance(found, ast.stmt) else 0
