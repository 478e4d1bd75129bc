"""Names of artifacts: `KIND:NAME` or `KIND:NAME@VERSION`, taken apart and put together."""

from __future__ import annotations

import msgspec

from drivetrain.core.errors import DrivetrainError

KINDS = (
    "dataset", "features", "service", "table", "file", "source", "workflow", "model", "policy", "report", "release",
)  # fmt: skip
"""Kinds that this package makes; others may be recorded too."""
LEDGER_TABLES = ("calls", "attempts", "outcomes", "outcomes_history", "spend", "control")
"""Tables that hold what the project itself recorded."""
ID_CHARS_MAX = 1_024
"""Of an artifact's id: a path and a hash fit well."""


class Artifact(msgspec.Struct, frozen=True):
    """An artifact's id in its parts."""

    kind: str
    name: str
    version: str = ""
    """Empty: the artifact as such, whatever its version."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}@{self.version}" if self.version else f"{self.kind}:{self.name}"

    @property
    def base(self) -> str:
        """The id without its version."""
        return f"{self.kind}:{self.name}"


def parse_artifact(text: str) -> Artifact:
    """The parts of an id. The version is what follows the last `@`. Raises: DrivetrainError where it is none."""
    kind, colon, rest = text.partition(":")
    name, at, version = rest.rpartition("@")
    if not at:
        name, version = rest, ""
    if not colon or not kind.isidentifier() or not name or (at and not version) or len(text) > ID_CHARS_MAX:
        raise DrivetrainError(
            f"`{text[:ID_CHARS_MAX]}` is no artifact.",
            do=f"Write KIND:NAME or KIND:NAME@VERSION, at most {ID_CHARS_MAX} characters, such as `dataset:golden@3`.",
        )
    return Artifact(kind, name, version)
