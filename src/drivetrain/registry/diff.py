"""What differs between two versions, as their manifests tell it."""

from __future__ import annotations

from typing import Any

import msgspec

from drivetrain.core.models import Column, FileV1, ModelVersionV1

FACTS = (
    "format", "recipe", "seed", "dataset", "dataset_hash", "code_hash", "environment_hash", "owner", "licence",
    "description", "source", "report",
)  # fmt: skip
"""Fields that are compared one by one."""
HASH_CHARS = 16
"""Of a file's hash: enough to tell two apart."""


class Changed(msgspec.Struct, frozen=True):
    """One thing that is not the same; None where it is not there."""

    name: str
    before: str | int | float | None
    after: str | int | float | None


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """From one version to another."""

    before: str
    """`model:triage@3`."""
    after: str
    signature: tuple[Changed, ...] = ()
    """Columns as `name: type`, labels with the number of their class, task and target."""
    metrics: tuple[Changed, ...] = ()
    thresholds: tuple[Changed, ...] = ()
    facts: tuple[Changed, ...] = ()
    files: tuple[Changed, ...] = ()
    """Sizes and hashes."""

    @property
    def is_same(self) -> bool:
        """Whether the same files under the same signature were made in the same way."""
        return not (self.signature or self.metrics or self.thresholds or self.facts or self.files)


def difference(before: ModelVersionV1, after: ModelVersionV1) -> Difference:
    """Costs nothing: no artifact is read."""
    facts = ({name: getattr(one, name) or None for name in FACTS} for one in (before, after))
    return Difference(
        before=before.artifact,
        after=after.artifact,
        signature=_changed(_signature(before), _signature(after)),
        metrics=_changed(before.metrics, after.metrics),
        thresholds=_changed(before.thresholds, after.thresholds),
        facts=_changed(*facts),
        files=_files(before, after),
    )


def _changed(before: dict[str, Any], after: dict[str, Any]) -> tuple[Changed, ...]:
    names = dict.fromkeys([*before, *after])
    return tuple(
        Changed(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)
    )


def _signature(version: ModelVersionV1) -> dict[str, Any]:
    signature = version.signature
    told: dict[str, Any] = {f"column {one.name}": _column(one) for one in signature.inputs}
    told |= {f"label {label}": f"class {place}" for place, label in enumerate(signature.labels)}
    names = ("task", "target", "candidates", "candidate_id")
    return told | {name: getattr(signature, name) or None for name in names}


def _column(column: Column) -> str:
    null = " or null" if column.nullable else ""
    return f"{column.dtype}{null}{' of ' + ', '.join(column.values) if column.values else ''}"


def _files(before: ModelVersionV1, after: ModelVersionV1) -> tuple[Changed, ...]:
    return _changed(*({one.path: _file(one) for one in version.files} for version in (before, after)))


def _file(one: FileV1) -> str:
    return f"{one.bytes:,} bytes, SHA-256 {one.sha256[:HASH_CHARS]}"
