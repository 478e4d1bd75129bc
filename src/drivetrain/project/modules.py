"""Imports a project's Python from the bytes of its Snapshot, under a package name of its own.

Old and new code of one project stand side by side in one process: each Snapshot's modules live in
`drivetrain_snapshot_HASH`, and only code imported from there sees `workflows`, `features` and helper
modules as its own. `sys.path` and the user's module names in `sys.modules` are never touched.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import linecache
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

PACKAGE_PREFIX = "drivetrain_snapshot_"


class Package:
    """One project's modules, importable while open."""

    def __init__(self, name: str, code_root: Path, files: Mapping[str, bytes], tops: frozenset[str]) -> None:
        self.name = name
        self.code_root = code_root
        """Folder that file names in tracebacks start with."""
        self.files = files
        self.tops = tops
        """Names that the project's code imports absolutely as its own."""
        self.builtins = {**vars(builtins), "__import__": self._import}

    def module(self, path: str) -> ModuleType:
        """The module of a file such as `workflows/triage.py`, imported. Raises: what the user's code raises."""
        dotted = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        return importlib.import_module(f"{self.name}.{dotted}")

    def relative(self, file_name: str) -> str | None:
        """The project's path of a file name as tracebacks have it; None for code from elsewhere."""
        prefix = f"{self.code_root}/"
        path = file_name.removeprefix(prefix)
        return path if file_name.startswith(prefix) and path in self.files else None

    def keep_lines(self) -> None:
        """Gives tracebacks the lines as they were loaded, although the file may change under a running worker."""
        for name, module in list(sys.modules.items()):
            loader = module.__spec__.loader if name.startswith(f"{self.name}.") and module.__spec__ else None
            if isinstance(loader, _Loader) and loader.file_name:
                text = loader.get_source(name)
                linecache.cache[loader.file_name] = (len(text), None, text.splitlines(keepends=True), loader.file_name)

    def close(self) -> None:
        """Forgets the modules; functions that are still running keep working."""
        with _LOCK:
            _OPEN.pop(self.name, None)
        for name in [one for one in sys.modules if one == self.name or one.startswith(f"{self.name}.")]:
            sys.modules.pop(name, None)

    def spec(self, full_name: str) -> ModuleSpec | None:
        """How to import one dotted name below this package."""
        dotted = full_name[len(self.name) + 1 :]
        path = dotted.replace(".", "/")
        for candidate, is_package in ((f"{path}/__init__.py", True), (f"{path}.py", False)):
            if candidate in self.files:
                file_name = str(self.code_root / candidate)
                loader = _Loader(self, file_name, self.files[candidate], is_package)
                folders: list[str] | None = (
                    [] if is_package else None
                )  # no folder: the Snapshot's bytes are all there is
                return importlib.util.spec_from_file_location(
                    full_name, file_name, loader=loader, submodule_search_locations=folders
                )
        if not dotted or any(one.startswith(f"{path}/") for one in self.files):
            return ModuleSpec(full_name, _Loader(self, "", b"", True), is_package=True)
        return None

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """`__import__` for the project's code: its own names lead to its own Snapshot."""
        top = name.partition(".")[0]
        if level or top not in self.tops:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        module = builtins.__import__(f"{self.name}.{name}", globals, locals, fromlist or (), 0)
        return module if fromlist else sys.modules[f"{self.name}.{top}"]


def open_package(digest: str, code_root: Path, files: Mapping[str, bytes], tops: frozenset[str]) -> Package:
    """A package for one loaded Snapshot, named after its hash; a second load of the same hash gets its own."""
    with _LOCK:
        if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())
        name, count = PACKAGE_PREFIX + digest[:16], 1
        while name in _OPEN:
            count += 1
            name = f"{PACKAGE_PREFIX}{digest[:16]}_{count}"
        package = Package(name, code_root, files, tops)
        _OPEN[name] = package
    return package


def close_package(name: str) -> None:
    """Forgets the modules of one loaded Snapshot, if it is open."""
    package = _OPEN.get(name)
    if package is not None:
        package.close()


_OPEN: dict[str, Package] = {}
_LOCK = threading.Lock()


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        package = _OPEN.get(fullname.partition(".")[0])
        return None if package is None else package.spec(fullname)


class _Loader(InspectLoader):
    def __init__(self, package: Package, file_name: str, source: bytes, is_package: bool) -> None:
        self._package = package
        self.file_name = file_name
        self._source = source
        self._is_package = is_package

    def is_package(self, fullname: str) -> bool:
        return self._is_package

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self._source)

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._source, self.file_name or f"<{fullname}>", "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        code = self.get_code(module.__name__)
        vars(module)["__builtins__"] = self._package.builtins
        exec(code, vars(module))  # noqa: S102  the project's own code, which its owner asked us to run
