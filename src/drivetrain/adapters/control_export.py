"""Exports of the control log: JSON lines with a signed last line, which are proved apart from the project.

Owns the format. Called by `drivetrain audit`. The first line says what was chosen, each further one is a record as it
was chained, and the last holds the count, the first and the last hash, and a digest of every byte before it, under the
signature of the project's checkpoint key. Each record's own hash still holds; where no record was left out, so does the
chain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drivetrain.adapters.checkpoints import is_signed, public_text, signed
from drivetrain.adapters.sqlite import BODY_BYTES_MAX, record_hash
from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.control import ControlRecord

LINE_BYTES_MAX = 8 * BODY_BYTES_MAX
"""A record in a line: its body's quotes are escaped, and every character has up to four bytes."""
FINDINGS_MAX = 100
_SIGNED_AS = b"drivetrain control export 1\0"
Line = TypeVar("Line", bound=msgspec.Struct)


class HeadV1(msgspec.Struct, frozen=True, kw_only=True, tag="control-export.1"):
    """The first line."""

    project: str
    environment: str
    at: str
    since: str = ""
    """Empty: from the first record."""
    until: str = ""
    kinds: tuple[str, ...] = ()
    """Empty: all."""
    log_seq: int
    """Of the newest record of the whole log."""
    log_head: str
    """Its hash."""


class TrailerV1(msgspec.Struct, frozen=True, kw_only=True, tag="control-export-end.1"):
    """The last line."""

    count: int
    first_hash: str = ""
    last_hash: str = ""
    sha256: str
    """Of every byte before this line."""
    public_key: str
    signature: str = ""
    """Of the line without it, base64."""


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """What a check of an export found."""

    records: int
    head: HeadV1 | None
    public_key: str
    findings: tuple[str, ...]


def write_export(file: BinaryIO, head: HeadV1, records: Iterable[ControlRecord], key: Ed25519PrivateKey) -> TrailerV1:
    """The last line of what was written."""
    digest = hashlib.sha256()
    count, first, last = 0, "", ""

    def line(content: msgspec.Struct) -> None:
        raw = msgspec.json.encode(content) + b"\n"
        digest.update(raw)
        file.write(raw)

    line(head)
    for record in records:
        count, first, last = count + 1, first or record.hash, record.hash
        line(record)
    unsigned = TrailerV1(
        count=count, first_hash=first, last_hash=last, sha256=digest.hexdigest(), public_key=public_text(key)
    )
    trailer = msgspec.structs.replace(unsigned, signature=signed(key, _SIGNED_AS, unsigned))
    file.write(msgspec.json.encode(trailer) + b"\n")
    return trailer


def verify_export(path: Path, trusted: Sequence[str]) -> Checked:
    """Whether every record of a file is as it was exported, by whom it is trusted. Raises: DrivetrainError."""
    findings: list[str] = []
    digest = hashlib.sha256()
    head: HeadV1 | None = None
    trailer: TrailerV1 | None = None
    before: ControlRecord | None = None
    first, count = "", 0
    for number, raw in _lines(path, findings):
        if trailer is not None:
            findings.append(f"Line {number} stands behind the last line.")
            break
        try:
            if number == 1:
                head = _exact(raw, HeadV1)
            elif raw.startswith(b'{"type":"control-export-end'):
                trailer = _exact(raw, TrailerV1)
                continue
            else:
                record = _exact(raw, ControlRecord)
                count, first = count + 1, first or record.hash
                _check(record, before, findings)
                before = record
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            findings.append(f"Line {number} was edited: {error}.")
        digest.update(raw)
        if len(findings) >= FINDINGS_MAX:
            break
    else:
        _check_end(trailer, (count, first, before.hash if before else "", digest.hexdigest()), trusted, findings)
    return Checked(records=count, head=head, public_key=trailer.public_key if trailer else "", findings=tuple(findings))


def _lines(path: Path, findings: list[str]) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(LINE_BYTES_MAX + 1), b""), start=1):
                if len(raw) > LINE_BYTES_MAX:
                    findings.append(f"Line {number} is longer than any record.")
                    return
                yield number, raw
    except OSError as error:
        raise DrivetrainError(f"{path} cannot be read: {error.strerror}.") from None


def _exact(raw: bytes, kind: type[Line]) -> Line:
    """The line, where it is written exactly as an export writes it."""
    found = msgspec.json.decode(raw, type=kind)
    if msgspec.json.encode(found) + b"\n" != raw:
        raise ValueError("it is not written as exports are")
    return found


def _check(record: ControlRecord, before: ControlRecord | None, findings: list[str]) -> None:
    if record.hash != record_hash(record):
        findings.append(f"Record {record.seq} was edited.")
    if before is None:
        return
    if record.seq <= before.seq:
        findings.append(f"Record {record.seq} stands behind record {before.seq}.")
    elif record.seq == before.seq + 1 and record.prev_hash != before.hash:
        findings.append(f"Record {record.seq} does not follow the one before it.")


def _check_end(
    trailer: TrailerV1 | None, seen: tuple[int, str, str, str], trusted: Sequence[str], findings: list[str]
) -> None:
    if trailer is None:
        findings.append("The signed last line is missing: the file was cut.")
        return
    if not is_signed(trailer.public_key, _SIGNED_AS, msgspec.structs.replace(trailer, signature=""), trailer.signature):
        findings.append("The last line was edited or forged: its signature does not fit.")
    elif trailer.public_key not in trusted:
        findings.append(f"It was signed with another key, {trailer.public_key}, which is not trusted here.")
    if (trailer.count, trailer.first_hash, trailer.last_hash, trailer.sha256) != seen:
        findings.append("Records were added, taken out or edited since it was signed.")
