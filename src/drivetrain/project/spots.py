"""The line of each argument of each declaration, in Python files and in drivetrain.toml, for mistakes to point at."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from drivetrain.core.declarations import Place
from drivetrain.project.files import SETTINGS_FILE, syntax_tree
from drivetrain.project.modules import Package
from drivetrain.project.tables import Table


class Spots:
    """Finds the place of a declaration, or of one of its arguments, relative to the project."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files
        self._tables: dict[int, tuple[Any, Table]] = {}
        self._calls: dict[str, dict[int, list[ast.Call]]] = {}
        self.package: Package | None = None

    def remember(self, declaration: object, table: Table) -> None:
        """Keeps which table a declaration was read from."""
        self._tables[id(declaration)] = (declaration, table)

    def of(self, declaration: Any, *arguments: str) -> Place:
        """Where an argument of a declaration stands, for example `of(workflow, "budget", "usd_per_call")`."""
        remembered = self._tables.get(id(declaration))
        if remembered is not None:
            return Place(SETTINGS_FILE, remembered[1].line(*arguments))
        place: Place = declaration.place
        file = self.package.relative(place.file) if self.package is not None else None
        if file is None:
            return place
        for call in self._calls_of(file).get(place.line, ()) if arguments else ():
            line = _argument_line(call, arguments)
            if line:
                return Place(file, line)
        return Place(file, place.line)

    def _calls_of(self, file: str) -> dict[int, list[ast.Call]]:
        if file not in self._calls:
            calls: dict[int, list[ast.Call]] = {}
            for node in ast.walk(syntax_tree(self._files[file])):
                if isinstance(node, ast.Call):
                    calls.setdefault(node.lineno, []).append(node)
            self._calls[file] = calls
        return self._calls[file]


def _argument_line(call: ast.Call, arguments: tuple[str, ...]) -> int:
    """The line of a keyword argument, or of one within the call that it is given; 0 where there is none."""
    line = 0
    node: ast.expr = call
    for argument in arguments:
        found: ast.expr | None = None
        if isinstance(node, ast.Call):
            found = next((one.value for one in node.keywords if one.arg == argument), None)
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            found = next(
                (value for key, value in pairs if isinstance(key, ast.Constant) and key.value == argument), None
            )
        if found is None:
            return line
        node, line = found, found.lineno
    return line
