"""Aliases of models: where each stands, and every move of it, which the control log keeps.

The log is the truth; `aliases.json` is what a project's references are resolved by, and is written after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import ALIAS_MOVED, ALIASES, AliasesV1
from drivetrain.ports.control import ControlRecord
from drivetrain.ports.disk import write_whole

ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,63}")
ALIASES_MAX = 100
"""Of one model; aliases are roles, not tags."""
ALIASES_BYTES_MAX = 64 * 1024
"""Several times what `ALIASES_MAX` take."""
REASON_CHARS_MAX = 500
"""It stands in the control log for ever."""
_DECODER: msgspec.json.Decoder[AliasesV1] = msgspec.json.Decoder(AliasesV1)


class AliasMove(msgspec.Struct, frozen=True, kw_only=True):
    """One move, as the control log has it."""

    name: str
    alias: str
    before: int
    """0: it did not exist."""
    number: int
    """Where it stands since."""
    digest: str
    """Of that version."""
    reason: str
    at_ns: int
    actor: str
    seq: int
    """Of its record in the control log."""


class MovedV1(msgspec.Struct, frozen=True, kw_only=True, rename={"before": "from", "number": "to"}):
    """The body of a record of kind `ALIAS_MOVED`."""

    before: int
    number: int
    digest: str
    reason: str = ""


def moves(records: Iterable[ControlRecord], name: str) -> Iterator[AliasMove]:
    """Every move of a model's aliases, oldest first. Raises: DrivetrainError for a record that cannot be read."""
    for record in records:
        model, _, alias = record.subject.partition("@")
        if record.kind != ALIAS_MOVED or model != name:
            continue
        try:
            moved = msgspec.json.decode(record.body, type=MovedV1)
        except msgspec.MsgspecError as error:
            raise DrivetrainError(
                f"Record {record.seq} of the control log, about the alias {record.subject}, cannot be read: {error}.",
                do="Run `drivetrain audit verify`.",
            ) from None
        yield AliasMove(
            name=name, alias=alias, before=moved.before, number=moved.number, digest=moved.digest, reason=moved.reason,
            at_ns=record.at_ns, actor=record.actor, seq=record.seq,
        )  # fmt: skip


def standing(moved: Iterable[AliasMove]) -> dict[str, int]:
    """Alias -> number after these moves."""
    return {one.alias: one.number for one in moved}


def read_aliases(folder: Path) -> dict[str, int]:
    """Alias -> number, of one model's folder, by alias. Raises: DrivetrainError where its file is damaged."""
    path = folder / ALIASES
    try:
        with path.open("rb") as file:
            found = _DECODER.decode(file.read(ALIASES_BYTES_MAX)).aliases
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DrivetrainError(
            f"The aliases of model `{folder.name}` cannot be read: {error}.",
            looked=[str(path)],
            do="Move one of them: the file is then written anew from the control log.",
        ) from None
    return dict(sorted(found.items()))


def write_aliases(folder: Path, aliases: dict[str, int]) -> None:
    """Replaces the file, whole or not at all. Raises: OSError."""
    content = msgspec.json.encode(AliasesV1(aliases=dict(sorted(aliases.items()))))
    write_whole(folder / ALIASES, msgspec.json.format(content, indent=1) + b"\n")


def check_alias(alias: str, reason: str) -> None:
    """Raises: DrivetrainError where it is no alias, or why it is moved is too long a story."""
    if ALIAS.fullmatch(alias) is None:
        raise DrivetrainError(
            f"{alias[:100]!r} is no alias.",
            do="An alias starts with a small letter and has at most 64 of a-z, 0-9, `_` and `-`: `champion`.",
        )
    if len(reason) > REASON_CHARS_MAX or not reason.isprintable():
        raise DrivetrainError(f"A reason is one line of at most {REASON_CHARS_MAX} printable characters.")
