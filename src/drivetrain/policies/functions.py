"""What a policy's function is, as text: the source of it and of all that it uses of the project, for its version.

A policy changes with the constants and the helpers that it names, not only with its own lines. Libraries are not part
of it: their versions are the environment's. Called by `compile`.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import msgspec

PARTS_MAX = 500
"""Functions, classes and constants that a policy's function reaches; more is not one policy any more."""
_PLAIN = (str, bytes, int, float, bool, type(None))


def source_of(function: Callable[..., Any], files: Mapping[str, bytes]) -> bytes:
    """The source of a function and of the project's functions, classes and plain constants that it reaches.

    files: the Snapshot's, so that a file edited since makes no difference. Where there is no source, as in an
    interpreter, its bytecode stands for it.
    """
    found: dict[str, str] = {}
    waiting: list[tuple[str, Any]] = [(_name(function), function)]
    package = str(getattr(function, "__module__", "") or "").partition(".")[0]
    while waiting and len(found) < PARTS_MAX:
        name, part = waiting.pop()
        if name in found:
            continue
        found[name] = _text(part, files)
        waiting += [(key, value) for key, value in _reached(part) if _counts(value, package)]
    return "\0".join(f"{name}\0{found[name]}" for name in sorted(found)).encode("utf-8", "surrogateescape")


def _counts(value: Any, package: str) -> bool:
    if isinstance(value, FunctionType | type):
        return str(value.__module__ or "").partition(".")[0] == package
    return isinstance(value, MethodType | partial) or _is_plain(value)


def _is_plain(value: Any, depth: int = 4) -> bool:
    if isinstance(value, _PLAIN):
        return True
    if depth and isinstance(value, list | tuple | set | frozenset):
        return all(_is_plain(one, depth - 1) for one in value)
    return bool(depth and isinstance(value, dict)) and all(
        _is_plain(key) and _is_plain(one, depth - 1) for key, one in value.items()
    )


def _reached(part: Any) -> Iterator[tuple[str, Any]]:
    """What a function names outside of itself: globals, closures, defaults; of an object its class and its values."""
    here = _name(part)
    if isinstance(part, type):
        for member in vars(part).values():
            if isinstance(member, FunctionType):
                yield from _reached(member)
    elif isinstance(part, MethodType):
        yield _name(part.__func__), part.__func__
        yield f"{here}<self>", part.__self__
    elif isinstance(part, partial):
        yield _name(part.func), part.func
        yield f"{here}=", [*part.args, *sorted(part.keywords.items())]
    elif isinstance(part, FunctionType):
        yield from _named_by(part, here)
    elif not _is_plain(part):
        yield _name(type(part)), type(part)
        for name, value in sorted(getattr(part, "__dict__", {}).items()):
            yield f"{here}.{name}", value


def _named_by(function: FunctionType, here: str) -> Iterator[tuple[str, Any]]:
    module = _module(function)
    for name in sorted(set(_names(function.__code__))):
        if name in function.__globals__:
            value = function.__globals__[name]
            yield (_name(value) if isinstance(value, FunctionType | type) else f"{module}.{name}"), value
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"{here}<{name}>", cell.cell_contents
        except ValueError:
            continue  # not bound yet
    for number, value in enumerate((*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())):
        yield f"{here}={number}", value


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _name(part: Any) -> str:
    return f"{_module(part)}:{getattr(part, '__qualname__', type(part).__qualname__)}"


def _module(part: Any) -> str:
    """Without the package's name in front, which is the Snapshot's own and another in every process."""
    return str(getattr(part, "__module__", "") or "").partition(".")[2]


def _text(part: Any, files: Mapping[str, bytes]) -> str:
    if not isinstance(part, FunctionType | type):
        ordered = sorted(part, key=repr) if isinstance(part, set | frozenset) else part
        return repr(ordered) if _is_plain(part) else type(part).__qualname__
    stored = _stored(part, files)
    if stored:
        return stored
    try:
        return inspect.getsource(part)
    except (OSError, TypeError, SyntaxError):
        pass
    if isinstance(part, FunctionType):
        return _code(part.__code__)
    return "\n".join(
        f"{name}={_code(one.__code__)}" for name, one in vars(part).items() if isinstance(one, FunctionType)
    )


class Located(msgspec.Struct, frozen=True):
    """Where a function or a class of the project is written."""

    file: str
    """Its path in the project."""
    text: str
    """All of the file."""
    node: ast.AST


def located(part: FunctionType | type, files: Mapping[str, bytes]) -> Located | None:
    """Its place in the Snapshot's files; None where it is not of the project."""
    path = str(part.__module__ or "").partition(".")[2].replace(".", "/")
    file = next((one for one in (f"{path}.py", f"{path}/__init__.py") if one in files), None)
    if file is None:
        return None
    try:
        text = files[file].decode()
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return None
    wanted = part.__name__
    for node in ast.walk(tree):
        if isinstance(part, type):
            fits = isinstance(node, ast.ClassDef) and node.name == wanted
        else:
            start = part.__code__.co_firstlineno
            fits = _first_line(node) == start and getattr(node, "name", "<lambda>") == wanted
        if fits:
            return Located(file, text, node)
    return None


def _stored(part: FunctionType | type, files: Mapping[str, bytes]) -> str:
    """Its lines in the Snapshot's files; empty where it is not of the project."""
    found = located(part, files)
    return (ast.get_source_segment(found.text, found.node) or "") if found is not None else ""


def _first_line(node: ast.AST) -> int:
    """As bytecode counts it: of the first decorator."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return 0
    decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
    return min([node.lineno, *(one.lineno for one in decorators)])


def _code(code: CodeType) -> str:
    inner = [_code(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {inner}"
