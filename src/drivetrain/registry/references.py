"""How people name a version at the command line: by its newest number, by alias or by number."""

from __future__ import annotations

import re

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import SCHEME, Reference

_REFERENCE = re.compile(r"([a-z][a-z0-9_-]{0,63})(?:[@/]([1-9][0-9]{0,8})|@([a-z][a-z0-9_-]{0,63}))?")


def find_reference(text: str) -> Reference:
    """`NAME`, `NAME@ALIAS`, `NAME@NUMBER`, `NAME/NUMBER`, each also after `models:/`; neither: the newest.

    Raises: DrivetrainError.
    """
    found = _REFERENCE.fullmatch(text.removeprefix(SCHEME))
    if found is None:
        raise DrivetrainError(
            f"{text[:100]!r} names no model.",
            do="Write NAME for its newest version, NAME@ALIAS, or NAME@NUMBER: `triage@champion`, `triage@3`.",
        )
    return Reference(found[1], found[3] or "", int(found[2] or 0))
