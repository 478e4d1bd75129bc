"""What a project's references to trained models stand for now: found in its text, before any of its code is imported.

The result is part of the Snapshot's hash, so a moved alias is another Snapshot and changes nothing that is served. Only
the registry's manifests are read here; artifacts are opened, and their digests checked, by whoever scores with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from drivetrain.core.errors import did_you_mean
from drivetrain.core.models import (
    ALIASES,
    DTYPES,
    FORMATS,
    MANIFEST,
    REFERENCE,
    TASKS,
    AliasesV1,
    ModelVersionV1,
    Pinned,
    Reference,
    parse_reference,
)

FOLDER = "models"
"""Of the registry, in the data folder."""
MANIFEST_BYTES_MAX = 8 * 1024 * 1024
"""Of a version's manifest: labels of a classification with a hundred thousand classes."""
ALIASES_BYTES_MAX = 64 * 1024
"""Of a model's aliases, as the registry writes them."""
_UNREADABLE = (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What reading a damaged file raises."""


def models_folder(data_folder: Path) -> Path:
    """Where the registry of a project keeps its models."""
    return data_folder / FOLDER


def pins(files: Mapping[str, bytes], data_folder: Path) -> dict[str, Pinned]:
    """Reference -> what it stands for, of every reference that some file of the project writes out.

    What cannot be resolved is left out; the checks tell why.
    """
    found = {}
    for reference in sorted(_references(files)):
        pinned = _resolved(reference, models_folder(data_folder))
        if isinstance(pinned, Pinned):
            found[reference] = pinned
    return found


def reference_mistake(reference: str, data_folder: Path) -> tuple[str, str]:
    """What is wrong with a reference that is not pinned, and what to do."""
    if REFERENCE.fullmatch(reference) is None:
        return "is no reference to a trained model.", 'Write "models:/NAME@ALIAS" or "models:/NAME/NUMBER".'
    mistake = _resolved(reference, models_folder(data_folder))
    if isinstance(mistake, Pinned):
        return (
            "is put together when the project is imported, so nobody can tell from its text what it names.",
            f'Write "{reference}" out where the variant is declared.',
        )
    return mistake


def pins_digest(pinned: Mapping[str, Pinned]) -> bytes:
    """What a Snapshot's hash is over, of them; empty where there are none."""
    return b"".join(
        f"{reference}\n{one.id}\n{one.digest}\n".encode() for reference, one in sorted(pinned.items())
    )  # fmt: skip


def _references(files: Mapping[str, bytes]) -> set[str]:
    found: set[str] = set()
    for content in files.values():
        if b"models:/" in content:
            text = content.decode("utf-8", "replace")
            found.update(match[0] for match in REFERENCE.finditer(text))
    return found


def _resolved(text: str, folder: Path) -> Pinned | tuple[str, str]:
    """What it stands for, or what is wrong and what to do."""
    reference = parse_reference(text)
    place = folder / reference.name
    if not _holds_versions(place):
        known = [one.name for one in folder.iterdir() if _holds_versions(one)] if folder.is_dir() else []
        help_ = did_you_mean(reference.name, known) if known else ""
        return (
            f"names a model `{reference.name}` that the registry does not hold.",
            help_ or "Run `drivetrain train` or `drivetrain models import`, then move the alias.",
        )
    number = reference.number
    if reference.alias:
        try:
            aliases = _aliases(place / ALIASES)
        except _UNREADABLE as error:
            return (
                f"names the alias `{reference.alias}` of `{reference.name}`, whose aliases cannot be read: {error}.",
                f"Run `{_move(reference)}`, which writes them anew.",
            )
        if reference.alias not in aliases:
            has = ", ".join(f"`{one}`" for one in sorted(aliases)) or "none"
            return (
                f"names the alias `{reference.alias}`, which `{reference.name}` does not have (it has {has}).",
                f"Run `{_move(reference)}`.",
            )
        number = aliases[reference.alias]
    return _pinned(reference.name, number, place / str(number) / MANIFEST)


def _holds_versions(place: Path) -> bool:
    return any(place.glob(f"*/{MANIFEST}"))


def _move(reference: Reference) -> str:
    """The command that lets its alias stand for a version."""
    return f'drivetrain models alias {reference.name} {reference.alias} NUMBER --reason "..."'


def _pinned(name: str, number: int, manifest: Path) -> Pinned | tuple[str, str]:
    help_ = f"Run `drivetrain models verify {name}/{number}`."
    try:
        if manifest.stat().st_size > MANIFEST_BYTES_MAX:
            return f"names version {number}, whose manifest is larger than {MANIFEST_BYTES_MAX} bytes.", help_
        version = msgspec.json.decode(manifest.read_bytes(), type=ModelVersionV1)
    except FileNotFoundError:
        return f"names version {number} of `{name}`, which does not exist.", f"Run `drivetrain models show {name}`."
    except _UNREADABLE as error:
        return f"names version {number} of `{name}`, whose manifest cannot be read: {error}.", help_
    if (version.name, version.number) != (name, number):
        return f"names version {number} of `{name}`, whose manifest is that of {version.artifact}.", help_
    signature = version.signature
    kinds = ((version.format, FORMATS), (signature.task, TASKS), *((one.dtype, DTYPES) for one in signature.inputs))
    unknown = [said for said, known in kinds if said not in known]
    if unknown:
        return (
            f"names version {number} of `{name}`, whose manifest says `{unknown[0][:50]}`, which is not known.",
            help_,
        )
    return Pinned(
        name=name, number=number, digest=version.digest, format=version.format, signature=signature,
        thresholds=version.thresholds,
    )  # fmt: skip


def _aliases(file: Path) -> dict[str, int]:
    """Raises: one of `_UNREADABLE`."""
    try:
        with file.open("rb") as opened:
            return msgspec.json.decode(opened.read(ALIASES_BYTES_MAX), type=AliasesV1).aliases
    except FileNotFoundError:
        return {}
