"""What the tests of Datasets share: a project's Datasets over files, a clock that stands, and a log in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.adapters.objects import FileObjects
from drivetrain.datasets import Datasets
from drivetrain.lake.lake import Lake
from drivetrain.ports.control import ControlRecord, Verification

NOW_NS = 1_767_225_600_000_000_000
"""2026-01-01T00:00:00Z."""


class MemoryLog:
    """A control log that is forgotten; `failing` refuses every record."""

    def __init__(self) -> None:
        self.kept: list[ControlRecord] = []
        self.failing: Exception | None = None

    def append(self, *, kind: str, actor: str, subject: str, body: Mapping[str, Any]) -> ControlRecord:
        if self.failing is not None:
            raise self.failing
        text = msgspec.json.encode(body, order="sorted").decode()
        digest = hashlib.sha256(text.encode()).hexdigest()
        record = ControlRecord(
            seq=len(self.kept) + 1, at_ns=NOW_NS, kind=kind, actor=actor, subject=subject, body=text,
            prev_hash="", hash=digest,
        )  # fmt: skip
        self.kept.append(record)
        return record

    def records(self, after_seq: int = 0) -> Iterator[ControlRecord]:
        return iter(self.kept[after_seq:])

    def verify(self) -> Verification:
        return Verification(records=len(self.kept), head="", findings=())


class Place:
    """A folder with a store, a log and the Datasets over them."""

    def __init__(self, root: Path, *, lake: Lake | None = None) -> None:
        self.root = root / "project"
        self.root.mkdir()
        self.store = root / "lake"
        self.objects = FileObjects(self.store)
        self.log = MemoryLog()
        self.scratch = root / "scratch"
        self.lake = lake
        self.datasets = self.over(self.objects)

    def over(self, objects: Any, **options: Any) -> Datasets:
        """The same Datasets over another store."""
        given: dict[str, Any] = {"root": self.root, "scratch": self.scratch, "actor": "tester",
                                 "now_ns": lambda: NOW_NS, **options}  # fmt: skip
        return Datasets(self.lake, objects, self.log, **given)

    def file(self, name: str, content: str | bytes) -> str:
        """A file in the project; its name."""
        (self.root / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    def state(self) -> dict[str, bytes]:
        """Every file of the store, and the log: what must be as it was."""
        files = {
            str(path.relative_to(self.store)): path.read_bytes() for path in self.store.rglob("*") if path.is_file()
        }
        left = sorted(str(path) for path in self.scratch.rglob("*")) if self.scratch.exists() else []
        assert not left, f"the bench left {left}"
        return {**files, "log": b"%d" % len(self.log.kept)}
