"""Whether a version still is what was registered: every byte, its manifest, its aliases, the control log's word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.lineage import MADE, MadeV1
from drivetrain.core.models import ModelVersionV1
from drivetrain.ports.control import ControlRecord
from drivetrain.registry.aliases import moves, read_aliases
from drivetrain.registry.artifacts import (
    artifact_digest,
    artifact_folder,
    describe_files,
    differences,
    manifest_hash,
)


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What was found."""

    artifact: str
    files: int = 0
    bytes: int = 0
    digest: str = ""
    findings: tuple[str, ...]
    """In words; empty where all is as it was registered."""

    @property
    def whole(self) -> bool:
        """Whether nothing was changed."""
        return not self.findings


def verify(folder: Path, version: ModelVersionV1, records: Sequence[ControlRecord]) -> Verified:
    """Reads every file. folder: the registry's. Aliases of the model are compared with the log too."""
    findings = _files(folder, version)
    findings += _noted(version, records)
    findings += _aliases(folder, version, records)
    return Verified(
        artifact=version.artifact, files=len(version.files), bytes=sum(one.bytes for one in version.files),
        digest=version.digest, findings=tuple(findings),
    )  # fmt: skip


def _files(folder: Path, version: ModelVersionV1) -> list[str]:
    findings = []
    try:
        found = describe_files(artifact_folder(folder, version.name, version.number))
        findings += [f"{one[0].upper()}{one[1:]}." for one in differences(version.files, found)]
    except DrivetrainError as error:
        findings.append(error.what)
    except OSError as error:
        findings.append(f"Its files cannot be read: {error.strerror or error}.")
    if artifact_digest(version.format, version.signature, version.files) != version.digest:
        findings.append("Its manifest was changed: the digest is not that of its format, signature and files.")
    return findings


def _noted(version: ModelVersionV1, records: Sequence[ControlRecord]) -> list[str]:
    """Whether the control log says the same; it is chained, and a manifest is not."""
    record = next((one for one in reversed(records) if one.kind == MADE and one.subject == version.artifact), None)
    if record is None:
        return ["The control log does not know that it was made."]
    try:
        facts = msgspec.json.decode(record.body, type=MadeV1).facts
    except msgspec.MsgspecError:
        return [f"Record {record.seq} of the control log, which says how it was made, cannot be read."]
    if facts.get("digest") != version.digest:
        return [f"Its digest is not the one in record {record.seq} of the control log."]
    if facts.get("manifest_sha256") != manifest_hash(version):
        return [f"Its manifest is not what record {record.seq} of the control log says was made."]
    return []


def _aliases(folder: Path, version: ModelVersionV1, records: Sequence[ControlRecord]) -> list[str]:
    try:
        last = {one.alias: one for one in moves(records, version.name)}
        found = read_aliases(folder / version.name)
    except DrivetrainError as error:
        return [error.what]
    findings = []
    for alias in sorted({*last, *found}):
        said = last[alias].number if alias in last else None
        if found.get(alias) != said:
            findings.append(
                f"The alias `{alias}` stands at {found.get(alias, 'nothing')}, and the control log says "
                f"{said or 'nothing'}: `drivetrain models alias` writes it anew."
            )
        elif last[alias].number == version.number and last[alias].digest != version.digest:
            findings.append(f"The alias `{alias}` was moved to another digest than this version has.")
    return findings
