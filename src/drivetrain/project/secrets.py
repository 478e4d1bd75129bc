"""References to secrets: which ones a project makes, which cannot be found here, and what one holds.

A reference is `env:NAME` or `file:PATH`. The secret itself never enters a Snapshot, a record or an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.project.snapshot import SecretRef, Snapshot
from drivetrain.project.tables import Table

SECRET_BYTES_MAX = 64 * 1024
REFERENCE_HELP = 'Write "env:NAME" for an environment variable or "file:secrets/NAME.key" for a file.'

_REFERENCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:\S(?:.*\S)?")


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """A secret that a project refers to and that is not here."""

    used_by: str
    """The key of drivetrain.toml that refers to it."""
    reference: str

    def __str__(self) -> str:
        kind, _, name = self.reference.partition(":")
        what = f"environment variable {name} is not set" if kind == "env" else f"file {name} does not exist"
        return f"`{self.used_by}`: {what}"


def is_reference(text: str) -> bool:
    """Whether a text is a well-formed reference."""
    return _REFERENCE.fullmatch(text) is not None


def read_reference(table: Table, key: str, *, needed: bool = False) -> SecretRef | None:
    """A reference to a secret. What stands there instead is never shown: it may be the secret."""
    value = table.raw(key)
    if value is None:
        if needed:
            table.note(key, "is missing.", do=REFERENCE_HELP)
        return None
    if isinstance(value, str) and is_reference(value):
        return SecretRef(value)
    table.note(
        key,
        "must say where the secret is kept; a secret itself never stands in a file of the project.",
        do=REFERENCE_HELP,
    )
    return None


def references(snapshot: Snapshot) -> dict[str, SecretRef]:
    """Every reference of a project, by the key of drivetrain.toml that makes it."""
    found: dict[str, SecretRef] = {}
    for provider in snapshot.providers.values():
        where = f"providers.{provider.name}"
        if provider.key is not None:
            found[f"{where}.key"] = provider.key
        for header, value in provider.headers.items():
            if is_reference(value):
                found[f"{where}.headers.{header}"] = SecretRef(value)
        if provider.endpoint.proxy is not None and is_reference(provider.endpoint.proxy):
            found[f"{where}.proxy"] = SecretRef(provider.endpoint.proxy)
    for key in snapshot.keys.values():
        found[f"keys.{key.name}.secret"] = key.secret
    return found


def missing(snapshot: Snapshot, environ: Mapping[str, str]) -> tuple[Missing, ...]:
    """The secrets that cannot be found here; serving would refuse to start without them."""
    absent = []
    for where, secret in references(snapshot).items():
        kind, _, name = secret.reference.partition(":")
        here = bool(environ.get(name)) if kind == "env" else (snapshot.root / name).is_file()
        if not here:
            absent.append(Missing(used_by=where, reference=secret.reference))
    return tuple(absent)


def resolve(secret: SecretRef, root: Path, environ: Mapping[str, str], *, used_by: str) -> str:
    """The secret itself, without the line break at its end.

    Raises: DrivetrainError where it is absent, empty, or has characters no header may carry.
    """
    kind, _, name = secret.reference.partition(":")
    if kind == "env":
        value, looked = environ.get(name, ""), f"environment variable {name}"
    else:
        path = root / name
        looked = str(path)
        try:
            with path.open("rb") as file:
                value = file.read(SECRET_BYTES_MAX).decode("ascii", "replace")
        except OSError as error:
            what = f"`{used_by}` refers to {secret.reference}, which cannot be read: {error.strerror}."
            raise DrivetrainError(what, looked=[looked], do="Make the file, or correct the reference.") from None
    value = value.strip()
    if not value:
        what = f"`{used_by}` refers to {secret.reference}, which is not set or empty."
        raise DrivetrainError(what, looked=[looked], do="Set it, or correct the reference.")
    if not value.isascii() or not value.isprintable():
        what = f"`{used_by}` refers to {secret.reference}, which holds characters that no HTTP header may carry."
        raise DrivetrainError(what, looked=[looked], do="It must be one line of printable ASCII.")
    return value
