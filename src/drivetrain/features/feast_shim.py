"""A program, never imported: runs the Python files of a Feast repository with a stand-in for Feast, and tells by JSON.

It needs nothing but the standard library and is started as `python -I -S feast_shim.py`. Request on stdin: `root`,
`files`, `environment`, `file_seconds`, `memory_bytes`. Answers, one JSON object a line: `{"running": FILE}` before each
file, then everything that was declared with its line, and what went wrong.

The definitions may call each other and the standard library; they get no network, no processes, no files outside their
repository, and write none. Libraries that are not there are stand-ins too, so that `import pandas` costs nothing and a
value that only pandas could compute is known to be missing. This keeps in mistakes and
curious scripts; it is no sandbox against native code, of which there is none here to call.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import math
import os
import re
import resource
import signal
import sys
import traceback
import types
from typing import Any

DEPTH_MAX = 32
TEXT_MAX = 100_000
"""Characters of one value."""
OBJECTS_MAX = 20_000
PROBLEMS_MAX = 200
_MARK = "\0absent\0"
"""Stands in a text that was made of something absent."""
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_READABLE = ("/dev/null", "/dev/urandom", "/dev/zero", "/usr/share/zoneinfo")
_REFUSED = re.compile(
    r"socket\.(?!__new__)|subprocess\.|ctypes\.|pty\.|shutil\.|ftplib|urllib|http\."
    r"|os\.(system|exec|posix_spawn|spawn|fork|forkpty|remove|rename|rmdir|mkdir|link|symlink|truncate|chmod|chown"
    r"|utime|kill|killpg|setxattr|removexattr|chflags|mkfifo|mknod)$"
)

POSITIONAL = {
    "Entity": ("name", "value_type", "description", "join_key"),
    "FeatureView": ("name", "entities", "ttl"),
    "FeatureService": ("name", "features", "tags", "description", "owner"),
    "Feature": ("name", "dtype", "description", "labels"),
    "Field": ("name", "dtype"),
    "FileSource": ("path", "event_timestamp_column", "file_format"),
    "RequestDataSource": ("name", "schema"),
    "RequestSource": ("name", "schema"),
    "PushSource": ("name", "batch_source"),
    "Aggregation": ("column", "function", "time_window", "slide_interval", "name"),
    "OnDemandFeatureView": ("name", "features", "inputs", "udf"),
    "Project": ("name",),
}
"""Arguments that older versions took by place."""
KINDS = frozenset(
    {*POSITIONAL, "BatchFeatureView", "StreamFeatureView", "LabelView", "Permission", "ValidationReference",
     "SavedDataset", "LoggingConfig"}
)  # fmt: skip
DECORATORS = {
    "on_demand_feature_view": "OnDemandFeatureView",
    "stream_feature_view": "StreamFeatureView",
    "batch_feature_view": "BatchFeatureView",
}
_ROOT = ""
_OBJECTS: list[Recorded] = []


class TooLong(BaseException):
    """A file took more time than it may."""


class Absent:
    """Stands for what only a library that is not there could give. It takes part in everything and is false."""

    def __init__(self, name: str) -> None:
        self.__dict__["_absent"] = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return _absent(f"{self._absent}.{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Nothing is kept."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return Absent(f"{self._absent}()")

    def __mro_entries__(self, bases: Any) -> tuple[type, ...]:
        return ()

    def __getitem__(self, key: Any) -> Any:
        return Absent(f"{self._absent}[]")

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *raised: Any) -> None:
        """Nothing was opened."""

    def __fspath__(self) -> str:
        raise TypeError(f"{self._absent} is not there, so its value is not known")

    __bool__ = lambda self: False  # noqa: E731
    __setitem__ = __delitem__ = lambda self, *given: None
    __repr__ = __str__ = lambda self: _MARK
    __hash__ = object.__hash__


def _same(self: Absent, *others: Any) -> Absent:
    return self


for _operator in [
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
    "matmul",
]:
    setattr(Absent, f"__{_operator}__", _same)
    setattr(Absent, f"__r{_operator}__", _same)
for _operator in ("neg", "pos", "abs", "invert"):
    setattr(Absent, f"__{_operator}__", _same)


def _absent(name: str) -> Any:
    """A stand-in; of protobuf's Duration, which old definitions write a ttl with, the real value."""
    if name == "google.protobuf.duration_pb2.Duration":
        return lambda seconds=0, nanos=0: datetime.timedelta(seconds=seconds, microseconds=nanos // 1_000)
    return Absent(name)


class TypeName:
    """A type of Feast's, by name: `Int64`, `INT64`, `Array(String)`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *parts: Any, **named: Any) -> TypeName:
        return TypeName(f"{self.name}({', '.join(getattr(one, 'name', '?') for one in parts)})")

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, TypeName) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


class TypeNames:
    """`ValueType` and `PrimitiveFeastType`."""

    def __getattr__(self, name: str) -> TypeName:
        if name.startswith("__"):
            raise AttributeError(name)
        return TypeName(name)

    __getitem__ = __getattr__


class Projection:
    """Some features of a view, perhaps under another name or with other keys."""

    def __init__(self, view: Recorded, names: list[str] | None, alias: Any = None, keys: Any = None) -> None:
        self.view, self.names, self.alias, self.keys = view, names, alias, keys

    def with_name(self, name: str) -> Projection:
        return Projection(self.view, self.names, name, self.keys)

    def with_join_key_map(self, keys: dict[str, str]) -> Projection:
        return Projection(self.view, self.names, self.alias, keys)

    def with_projection(self, other: Any) -> Any:
        return other


class Recorded:
    """Anything that is declared: its kind, its arguments and its place."""

    _kind = ""

    def __init__(self, *given: Any, **arguments: Any) -> None:
        if len(_OBJECTS) >= OBJECTS_MAX:
            raise MemoryError(f"more than {OBJECTS_MAX} declarations")
        named = dict(zip(POSITIONAL.get(self._kind, ()), given))  # noqa: B905  more are noted below
        if len(given) > len(named):
            named["(by place)"] = len(given)
        self.__dict__.update(_arguments={**named, **arguments}, _place=_place(), _number=len(_OBJECTS))
        _OBJECTS.append(self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        arguments = self.__dict__.get("_arguments", {})
        if name in arguments:
            return arguments[name]
        if name == "projection":
            return Projection(self, None)
        if name == "join_key":
            return (arguments.get("join_keys") or [arguments.get("name")])[0]
        return Absent(f"{self._kind}.{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        self._arguments[name] = value

    def __getitem__(self, names: Any) -> Projection:
        return Projection(self, [names] if isinstance(names, str) else list(names))

    def with_name(self, name: str) -> Projection:
        return Projection(self, None).with_name(name)

    def with_join_key_map(self, keys: dict[str, str]) -> Projection:
        return Projection(self, None).with_join_key_map(keys)


def _decorator(kind: str) -> Any:
    def declare(*given: Any, **arguments: Any) -> Any:
        def decorated(function: Any) -> Any:
            name = arguments.pop("name", None) or getattr(function, "__name__", "")
            made = _known(kind)(name=name, udf=function, **arguments)
            made.__dict__["_place"] = place
            return made

        place = _place()
        if len(given) == 1 and isinstance(given[0], types.FunctionType):
            return decorated(given[0])
        return decorated

    return declare


_CLASSES: dict[str, type] = {}


def _known(kind: str) -> type:
    return _CLASSES.setdefault(kind, type(kind, (Recorded,), {"_kind": kind}))


class FeastModule(types.ModuleType):
    """`feast` and everything below it: a name means the same wherever a version of Feast has it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self.__name__ == "feast.types" and not name.startswith(("Primitive", "Value")):
            return TypeName(name)
        if name in ("ValueType", "PrimitiveFeastType"):
            return TypeNames()
        if name in DECORATORS:
            return _decorator(DECORATORS[name])
        if name in KINDS or name.endswith(("Source", "Format", "Transformation")):
            return _known(name)
        # A module that was not imported by itself, as in `feast.types.Int64` after `import feast`.
        return importlib.import_module(f"{self.__name__}.{name}") if name.islower() else Absent(f"feast.{name}")

    def __call__(self, *given: Any, **named: Any) -> Any:
        return Absent(f"{self.__name__}()")


class AbsentModule(types.ModuleType):
    """A library that is not there."""

    __all__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return _absent(f"{self.__name__}.{name}")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Comes last: what neither the standard library nor the repository has."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or (top != "feast" and _in_repository(top)):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return (FeastModule if spec.name.partition(".")[0] == "feast" else AbsentModule)(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Submodules that Feast also has as functions must not hide them."""


def _module(name: str, path: str) -> types.ModuleType:
    """The module of a file, by its dotted path as Feast imports it; one named like a library comes by its file."""
    if all(part.isidentifier() for part in name.split(".")) and name.partition(".")[0] not in sys.stdlib_module_names:
        module = importlib.import_module(name)
        if str(getattr(module, "__file__", "")).startswith(f"{_ROOT}/"):
            return module
    spec = importlib.util.spec_from_file_location(f"repository {name}", os.path.join(_ROOT, path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _in_repository(top: str) -> bool:
    return os.path.exists(os.path.join(_ROOT, f"{top}.py")) or os.path.isdir(os.path.join(_ROOT, top))


def _place() -> tuple[str, int]:
    """The innermost line of the repository's that is running."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(f"{_ROOT}/"):
            return file[len(_ROOT) + 1 :], frame.f_lineno
        frame = frame.f_back
    return "", 0


def told(value: Any, depth: int = 0) -> Any:
    """A value as JSON; what JSON has no word for is an object with `$`."""
    if value is None or isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else {"$": "other", "text": "a large number"}
    if isinstance(value, str):
        return {"$": "absent", "name": "a text of a missing value"} if _MARK in value else str(value)[:TEXT_MAX]
    if isinstance(value, datetime.timedelta):
        return {"$": "duration", "us": value // datetime.timedelta(microseconds=1)}
    if isinstance(value, Recorded):
        return {"$": "declared", "number": value._number}
    if isinstance(value, Projection):
        keys = sorted(map(str, value.keys)) if isinstance(value.keys, dict) else None
        alias = None if value.alias is None else str(value.alias)
        return {"$": "projection", "number": value.view._number, "names": value.names, "alias": alias, "keys": keys}
    if isinstance(value, TypeName):
        return {"$": "type", "name": value.name}
    if isinstance(value, Absent):
        return {"$": "absent", "name": value._absent}
    if isinstance(value, types.FunctionType):
        code = value.__code__
        return {"$": "function", "file": code.co_filename.removeprefix(f"{_ROOT}/"), "line": code.co_firstlineno}
    if depth < DEPTH_MAX and isinstance(value, list | tuple | set | frozenset):
        return [told(one, depth + 1) for one in value]
    if depth < DEPTH_MAX and isinstance(value, dict):
        return {"$": "map", "items": [[told(key, depth + 1), told(one, depth + 1)] for key, one in value.items()]}
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))[:TEXT_MAX]
    return {"$": "other", "text": type(value).__name__}


class Runner:
    """Runs files one after another and keeps what went wrong."""

    def __init__(self, say: Any, seconds: float) -> None:
        self._say = say
        self._seconds = seconds
        self.problems: list[dict[str, Any]] = []
        self.names: dict[int, str] = {}

    def run(self, path: str) -> None:
        self._say({"running": path})
        name = path.removesuffix(".py").replace("/", ".")
        signal.setitimer(signal.ITIMER_REAL, self._seconds)
        try:
            module = _module(name, path)
        except BaseException as error:  # noqa: BLE001  whatever a definition raises is a problem to tell
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._note(error, path)
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        for variable, value in list(vars(module).items()):
            if isinstance(value, Recorded):
                self.names.setdefault(value._number, variable)

    def _note(self, error: BaseException, path: str) -> None:
        file, line = path, 0
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename.startswith(f"{_ROOT}/"):
                file, line = frame.filename[len(_ROOT) + 1 :], frame.lineno or 0
        if isinstance(error, SyntaxError) and (error.filename or "").startswith(f"{_ROOT}/"):
            file, line = str(error.filename)[len(_ROOT) + 1 :], error.lineno or 0
        if len(self.problems) < PROBLEMS_MAX:
            kind, text = type(error).__name__, " ".join(str(error).split())[:300]
            self.problems.append({"file": file, "line": line, "kind": kind, "text": text})


def _confine(root: str, memory_bytes: int, seconds: int) -> None:
    """No network, no processes, no writing, no files from elsewhere, and not for ever."""
    try:
        flags = _CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
        ctypes.CDLL(None, use_errno=True).unshare(flags)  # where it is not allowed, what follows still holds
    except (OSError, AttributeError):
        pass
    for name, most in (
        ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0), ("RLIMIT_NOFILE", 128), ("RLIMIT_AS", memory_bytes),
        ("RLIMIT_CPU", seconds),
    ):  # fmt: skip
        with contextlib.suppress(OSError, ValueError):  # not every system has each of them
            resource.setrlimit(getattr(resource, name), (most, most))
    allowed = tuple(
        f"{os.path.realpath(one).rstrip('/')}/" for one in (root, sys.base_prefix, os.path.dirname(os.__file__))
    )

    def allow(event: str, given: tuple[Any, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir"):
            path, flags = given[0], (given[2] if event == "open" else 0)
            if isinstance(path, int) or path is None:
                return
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                raise PermissionError(f"definitions may not write files: {path!r}")
            real = os.path.realpath(os.fsdecode(path))
            if not f"{real}/".startswith(allowed) and not real.startswith(_READABLE):
                raise PermissionError(f"definitions may only read files of their repository: {path!r}")
        elif _REFUSED.match(event):
            raise PermissionError(f"definitions may not use `{event}`")

    sys.addaudithook(allow)


def _stop(number: int, frame: Any) -> None:
    raise TooLong("it takes too long")


def main() -> None:
    """Reads the request, runs the files, tells."""
    request = json.load(sys.stdin.buffer)
    # What definitions print goes nowhere; the answer has a channel of its own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for channel in (0, 1, 2):
        os.dup2(nowhere, channel)

    def say(answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    globals()["_ROOT"] = request["root"]
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(_ROOT)
    sys.argv[:] = ["feast", "apply"]
    sys.dont_write_bytecode = True
    sys.path.insert(0, _ROOT)
    sys.meta_path.append(Finder())
    signal.signal(signal.SIGALRM, _stop)
    _confine(_ROOT, request["memory_bytes"], request["cpu_seconds"])
    runner = Runner(say, request["file_seconds"])
    for path in request["files"]:
        runner.run(path)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    objects = [
        {
            "kind": next(base.__name__ for base in type(one).__mro__ if base.__name__ in _CLASSES),
            "file": one._place[0],
            "line": one._place[1],
            "variable": runner.names.get(one._number, ""),
            "arguments": {str(name): told(value) for name, value in one._arguments.items()},
        }
        for one in _OBJECTS
    ]
    say({"declared": objects, "problems": runner.problems})


if __name__ == "__main__":
    main()
