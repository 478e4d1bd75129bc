"""A Feast repository -> what it declares, without Feast: its Python runs in a child process beside a stand-in.

Owns which files are read, the bounds on the child, and the types of what comes back. What is made of it is for
`feast_translate.py`. Called by `feast_import.py`.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError

FILES_MAX = 2_000
"""As many as a project may have; a folder with more is not a repository of definitions."""
FILE_BYTES_MAX = 4 * 1024 * 1024
WALKED_MAX = 100_000
"""Files and folders that are looked at; a repository with more has data in it that a `.feastignore` should name."""
DEPTH_MAX = 16
FILE_SECONDS = 10.0
"""Of one file: definitions take milliseconds; what takes longer asks a network that is not there, or never ends."""
RUN_SECONDS = 60.0
"""Of all of them."""
REPLY_BYTES_MAX = 32 * 1024 * 1024
MEMORY_BYTES_MAX = 1024 * 1024 * 1024
SETTINGS_BYTES_MAX = 1024 * 1024
SETTINGS = ("feature_store.yaml", "feature_store.yml")

_SHIM = Path(__file__).with_name("feast_shim.py")
_NEVER = frozenset({".git", ".venv", "venv", "__pycache__", ".ipynb_checkpoints", ".pytest_cache", "node_modules"})
_YAML_LINE = re.compile(r"^( *)([A-Za-z_][\w-]*):(?:\s+(.*?))?\s*$")


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was not carried over as it stood."""

    file: str = ""
    """Relative to the Feast repository."""
    line: int = 0
    what: str
    do: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        return f"{place}{self.what}" + (f"\n    do: {self.do}" if self.do else "")


class TypeName(msgspec.Struct, frozen=True):
    """A type of Feast's: `Int64`, `INT64`, `Array(String)`."""

    name: str


class Duration(msgspec.Struct, frozen=True):
    """A timedelta."""

    us: int


class Unknown(msgspec.Struct, frozen=True):
    """A value that cannot be told: of a library that was not there, or of a type that JSON has no word for."""

    text: str


class FunctionAt(msgspec.Struct, frozen=True):
    """A function, by the place of its definition, decorators included."""

    file: str
    line: int


class Projected(msgspec.Struct, frozen=True):
    """Some features of a view; no names stand for all."""

    view: Declared
    names: tuple[str, ...] | None
    alias: str | None
    keys: bool
    """Whether its join keys were given other names."""


class Declared:
    """One object that the definitions made."""

    def __init__(self, kind: str, file: str, line: int, variable: str) -> None:
        self.kind = kind
        """The class in Feast: `FeatureView`."""
        self.file = file
        self.line = line
        self.variable = variable
        """What a module calls it; empty: none does."""
        self.arguments: dict[str, Any] = {}
        """With `Declared`, `Projected`, `TypeName`, `Duration`, `FunctionAt`, `Unknown`, lists, dicts and scalars."""

    @property
    def name(self) -> str:
        given = self.arguments.get("name")
        return given if isinstance(given, str) else ""

    def text(self, argument: str) -> str:
        """A text, or an empty one."""
        given = self.arguments.get(argument)
        return given if isinstance(given, str) else ""

    def listed(self, argument: str) -> list[Any]:
        """A list; one thing is a list of it, a dict its values."""
        given = self.arguments.get(argument)
        if given is None:
            return []
        if isinstance(given, dict):
            return list(given.values())
        return given if isinstance(given, list) else [given]


class FeastRepository(msgspec.Struct, frozen=True, kw_only=True):
    """What a repository declares."""

    root: Path
    settings: Mapping[str, str]
    """Of feature_store.yaml, dotted: `offline_store.type`."""
    declared: tuple[Declared, ...]
    """In the order in which they were made."""
    notes: tuple[Note, ...]
    """What could not be read."""

    def source(self, file: str) -> str:
        """The text of one of its Python files; empty where it cannot be read."""
        path = (self.root / file).resolve()
        if not path.is_relative_to(self.root):
            return ""
        with suppress(OSError, UnicodeDecodeError):
            return path.read_text(encoding="utf-8")
        return ""


class _Object(msgspec.Struct):
    kind: str
    file: str
    line: int
    variable: str
    arguments: dict[str, Any]


class _Problem(msgspec.Struct):
    file: str
    line: int
    kind: str
    text: str


class _Reply(msgspec.Struct):
    running: str = ""
    declared: list[_Object] | None = None
    problems: list[_Problem] = []


def read_repository(
    repository: Path,
    *,
    environment: Mapping[str, str] | None = None,
    file_seconds: float = FILE_SECONDS,
    run_seconds: float = RUN_SECONDS,
) -> FeastRepository:
    """What the repository declares. Its Python is run, in a process that can reach nothing else.

    environment: the variables that definitions see; by default none. Raises: DrivetrainError where there is nothing to
    read, or the process does not come back.
    """
    root = repository.resolve()
    settings = next((root / name for name in SETTINGS if (root / name).is_file()), None)
    if settings is None:
        raise DrivetrainError(
            f"{repository} is no Feast repository: it has no {SETTINGS[0]}.",
            do="Name the folder in which `feast apply` is run.",
        )
    notes: list[Note] = []
    files = _files(root, notes)
    if not files:
        raise DrivetrainError(f"{repository} has no Python files.", do="Name the folder in which `feast apply` is run.")
    reply = _run(root, files, environment or {}, file_seconds, run_seconds)
    notes += [_problem_note(one) for one in reply.problems]
    return FeastRepository(
        root=root, settings=_settings(settings, notes), declared=_linked(reply.declared or []), notes=tuple(notes)
    )


def _files(root: Path, notes: list[Note]) -> list[str]:
    """Python files as Feast finds them, sorted; a link that leads out is noted."""
    ignored = _ignored(root)
    found: list[str] = []
    waiting, walked = [(root, 0)], 0
    while waiting:
        folder, depth = waiting.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda one: one.name)
        except OSError as error:
            where = folder.relative_to(root).as_posix()
            notes.append(Note(file=where, what=f"The folder cannot be read: {error.strerror}.", do="Make it readable."))
            continue
        for entry in entries:
            walked += 1
            if walked > WALKED_MAX:
                raise DrivetrainError(
                    f"The repository has more than {WALKED_MAX} files.",
                    do="Name data and environments in .feastignore.",
                )
            path = Path(entry.path)
            relative = path.relative_to(root).as_posix()
            if entry.name in _NEVER or relative in ignored:
                continue
            wanted = entry.name.endswith(".py") or entry.is_dir()
            if entry.is_symlink() and wanted and not path.resolve().is_relative_to(root):
                notes.append(
                    Note(file=relative, what="The link leads out of the repository; it is not read.", do="Copy it in.")
                )
            elif entry.is_dir(follow_symlinks=False):
                if depth < DEPTH_MAX:
                    waiting.append((path, depth + 1))
            elif entry.name.endswith(".py") and entry.name != "__init__.py" and entry.is_file():
                if entry.stat().st_size > FILE_BYTES_MAX:
                    notes.append(Note(file=relative, what=f"The file has more than {FILE_BYTES_MAX} bytes; not read."))
                else:
                    found.append(relative)
    if len(found) > FILES_MAX:
        raise DrivetrainError(
            f"The repository has {len(found)} Python files; {FILES_MAX} are the most.",
            do="Name what holds no definitions in .feastignore.",
        )
    return sorted(found)


def _ignored(root: Path) -> frozenset[str]:
    """What .feastignore names, relative."""
    path = root / ".feastignore"
    lines = _limited(path).splitlines() if path.is_file() else []
    ignored: set[str] = set()
    for line in lines:
        pattern = line.partition("#")[0].strip().strip("/")
        if pattern and ".." not in pattern.split("/"):
            with suppress(ValueError, NotImplementedError):
                ignored |= {one.relative_to(root).as_posix() for one in root.glob(pattern)}
    return frozenset(ignored)


def _run(
    root: Path, files: list[str], environment: Mapping[str, str], file_seconds: float, run_seconds: float
) -> _Reply:
    request = msgspec.json.encode(
        {
            "root": str(root), "files": files, "environment": dict(environment), "file_seconds": file_seconds,
            "memory_bytes": MEMORY_BYTES_MAX, "cpu_seconds": int(run_seconds) + 1,
        }
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_SHIM)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with suppress(BrokenPipeError):
            process.stdin.write(request)
            process.stdin.close()
        content, why = _received(process.stdout.fileno(), time.monotonic() + run_seconds)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    running = ""
    for line in content.splitlines():
        try:
            reply = msgspec.json.decode(line, type=_Reply)
        except (msgspec.MsgspecError, UnicodeError):
            continue
        if reply.declared is not None:
            return reply
        running = reply.running
    why = why or "It ended the process that runs the definitions"
    raise DrivetrainError(
        f"{running or 'The repository'} cannot be read. {why}.",
        do="Remove what is not a definition from it, or name the file in .feastignore.",
    )


def _received(channel: int, deadline: float) -> tuple[bytes, str]:
    """Everything that the child said, and why no more was read; empty where it had ended."""
    content = bytearray()
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([channel], [], [], left)[0]:
            return bytes(content), "It did not end in time"
        chunk = os.read(channel, 1 << 16)
        if not chunk:
            return bytes(content), ""
        content += chunk
        if len(content) > REPLY_BYTES_MAX:
            return bytes(content), f"It declares more than {REPLY_BYTES_MAX} bytes"


def _problem_note(problem: _Problem) -> Note:
    do = {
        "TooLong": "Remove what waits or loops, or name the file in .feastignore.",
        "KeyError": "Where it is an environment variable, give it with `--env NAME=VALUE`.",
        "PermissionError": "Definitions are read without network, processes and files from elsewhere.",
    }.get(problem.kind, "Correct the file; what stands in it is not carried over.")
    text = "it takes too long" if problem.kind == "TooLong" else f"{problem.kind}: {problem.text}".rstrip(": ")
    return Note(file=problem.file, line=problem.line, what=f"The file cannot be run: {text}.", do=do)


def _linked(objects: list[_Object]) -> tuple[Declared, ...]:
    made = [Declared(one.kind, one.file, one.line, one.variable) for one in objects]
    for declared, one in zip(made, objects, strict=True):
        declared.arguments.update({name: _value(raw, made) for name, raw in one.arguments.items()})
    return tuple(made)


def _value(raw: Any, made: list[Declared]) -> Any:
    if isinstance(raw, list):
        return [_value(one, made) for one in raw]
    if not isinstance(raw, dict):
        return raw
    kind = raw.get("$")
    try:
        if kind == "declared":
            return made[raw["number"]]
        if kind == "projection":
            names = None if raw["names"] is None else tuple(map(str, raw["names"]))
            return Projected(made[raw["number"]], names, raw["alias"], raw["keys"] is not None)
        if kind == "map":
            return {_key(_value(key, made)): _value(one, made) for key, one in raw["items"]}
        if kind == "type":
            return TypeName(raw["name"])
        if kind == "duration":
            return Duration(int(raw["us"]))
        if kind == "function":
            return FunctionAt(raw["file"], int(raw["line"]))
    except (KeyError, IndexError, TypeError, ValueError):
        return Unknown("a value")
    return Unknown(str(raw.get("name") or raw.get("text") or "a value"))


def _key(value: Any) -> str:
    return value.name if isinstance(value, TypeName | Declared) else str(value)


def _settings(path: Path, notes: list[Note]) -> dict[str, str]:
    """The plain keys of feature_store.yaml, two levels deep: enough to know what stood where."""
    found: dict[str, str] = {}
    above = ""
    for line in _limited(path).splitlines():
        match = _YAML_LINE.match(line.split(" #")[0])
        if match is None:
            continue
        indent, key, value = match[1], match[2], (match[3] or "").strip().strip("\"'")
        if not indent:
            above = "" if value else f"{key}."
            found[key] = value
        elif above:
            found.setdefault(f"{above}{key}", value)
    if "project" not in found:
        notes.append(Note(file=path.name, what="The file names no `project`."))
    return found


def _limited(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(SETTINGS_BYTES_MAX).decode("utf-8", "replace")
    except OSError as error:
        raise DrivetrainError(f"{path} cannot be read: {error.strerror}.") from None
