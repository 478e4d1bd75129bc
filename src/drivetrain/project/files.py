"""The files that make a project: which ones belong to it, within which limits, and the hash over them.

Owns what is part of a Snapshot. Never read: secrets, recorded data, hidden files, and anything that the
project's code does not import.
"""

from __future__ import annotations

import ast
import hashlib
import stat
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from drivetrain.core.errors import DrivetrainError
from drivetrain.project.problems import Problems
from drivetrain.project.snapshot import Versions

SETTINGS_FILE = "drivetrain.toml"
FILES_MAX = 2_000
"""A project is code and prompts, not data; a folder with more was put there by mistake."""
FILE_BYTES_MAX = 4 * 1024 * 1024
TOTAL_BYTES_MAX = 64 * 1024 * 1024
"""All of it is held in memory by every worker and stored once per Snapshot."""
FOLDER_DEPTH_MAX = 16

WHOLE_FOLDERS = ("workflows", "features", "policies", "prompts", "training")
CODE_FOLDERS = ("evals",)
"""Of these only Python files belong to the Snapshot."""
TEMPLATE_SUFFIXES = (".j2", ".jinja", ".jinja2")
_NEVER_FOLDERS = frozenset({"__pycache__", "secrets", "data", "node_modules"})
_NEVER_SUFFIXES = (".pyc", ".pyo", ".key", ".pem", ".p12", ".pfx", ".env")


def find_root(start: Path) -> Path:
    """The nearest folder at or above `start` that holds a drivetrain.toml.

    Raises: DrivetrainError with every folder looked in.
    """
    start = start.resolve()
    folders = [start, *start.parents] if start.is_dir() else list(start.parents)
    for folder in folders:
        if (folder / SETTINGS_FILE).is_file():
            return folder
    raise DrivetrainError(
        f"No {SETTINGS_FILE} found in or above {start}.",
        looked=[str(folder) for folder in folders],
        do="Run `drivetrain init my-ai` to make a project, or name its folder with `--project`.",
    )


def collect(root: Path, problems: Problems) -> dict[str, bytes]:
    """Path relative to `root` -> content, of every file that belongs to the project, sorted by path."""
    reader = _Reader(root, problems)
    reader.add(SETTINGS_FILE)
    for folder in WHOLE_FOLDERS:
        reader.add_folder(folder)
    for folder in CODE_FOLDERS:
        reader.add_folder(folder, suffixes=(".py",))
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if path.suffix in TEMPLATE_SUFFIXES and not path.name.startswith("."):
            reader.add(path.name)
    _add_helpers(reader)
    return dict(sorted(reader.files.items()))


def hash_of(files: Mapping[str, bytes], environment: str, versions: Versions, pinned: bytes = b"") -> str:
    """64 hex digits over paths, contents, environment and versions; the same on every machine.

    pinned: what its references to trained models stand for.
    """
    digest = hashlib.blake2b(digest_size=32)
    parts = [b"drivetrain-snapshot-1", environment.encode(), versions.drivetrain.encode(), versions.msgspec.encode()]
    for path, content in sorted(files.items()):
        parts += [path.encode("utf-8", "surrogateescape"), content]
    if pinned:
        parts += [b"models", pinned]
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def top_level_names(files: Mapping[str, bytes]) -> frozenset[str]:
    """The names by which the project's own code imports itself: `workflows`, `features`, helpers."""
    code = [path for path in files if path.endswith(".py")]
    return frozenset(path.split("/")[0].removesuffix(".py") for path in code)


def syntax_tree(source: bytes) -> ast.Module:
    """The syntax of a Python file, without warnings; an empty one where it has none, which its import reports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return ast.Module(body=[], type_ignores=[])


class _Reader:
    def __init__(self, root: Path, problems: Problems) -> None:
        self.root = root
        self.files: dict[str, bytes] = {}
        self._problems = problems
        self._bytes = 0
        self._full = False

    def add_folder(self, folder: str, *, suffixes: tuple[str, ...] = ("",)) -> None:
        for path in _walk(self.root / folder, FOLDER_DEPTH_MAX, frozenset()):
            if path.name.endswith(suffixes):
                self.add(path.relative_to(self.root).as_posix())

    def add(self, name: str) -> None:
        path = self.root / name
        if name in self.files or self._full:
            return
        try:
            facts = path.stat()
            if not stat.S_ISREG(facts.st_mode):
                return
            if facts.st_size > FILE_BYTES_MAX:
                self._problems.add(
                    f"The file is larger than {FILE_BYTES_MAX} bytes, the most a file of a project may have.",
                    file=name,
                    value=f"{facts.st_size} bytes",
                    do="Move data to `data/`, which is not part of a Snapshot.",
                )
                return
            content = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            self._problems.add(f"The file cannot be read: {error.strerror}.", file=name, do="Make it readable.")
            return
        self._bytes += len(content)
        if len(self.files) >= FILES_MAX or self._bytes > TOTAL_BYTES_MAX:
            self._full = True
            self._problems.add(
                f"The project has more than {FILES_MAX} files, or {TOTAL_BYTES_MAX} bytes of code and prompts.",
                file=name,
                do="Move data to `data/`, which is not part of a Snapshot.",
            )
            return
        self.files[name] = content


def _walk(folder: Path, depth: int, above: frozenset[str]) -> Iterator[Path]:
    """Files below a folder, sorted; links are followed, but no folder twice on one path."""
    real = str(folder.resolve())
    if depth == 0 or real in above or not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in _NEVER_FOLDERS or path.name.endswith(_NEVER_SUFFIXES):
            continue
        if path.is_dir():
            yield from _walk(path, depth - 1, above | {real})
        else:
            yield path


def _add_helpers(reader: _Reader) -> None:
    """Adds the top-level modules and packages beside drivetrain.toml that the project's code imports."""
    read: set[str] = set()
    while True:
        unread = [name for name in reader.files if name.endswith(".py") and name not in read]
        if not unread:
            return
        for name in unread:
            read.add(name)
            for top in _imported_names(reader.files[name]):
                if top in sys.stdlib_module_names or top == "drivetrain" or top in _NEVER_FOLDERS:
                    continue
                reader.add(f"{top}.py")
                reader.add_folder(top, suffixes=(".py",))


def _imported_names(source: bytes) -> set[str]:
    """Top-level names that a module imports absolutely."""
    names: set[str] = set()
    for node in ast.walk(syntax_tree(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names
