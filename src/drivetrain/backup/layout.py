"""The layout of a data folder: which version of Drivetrain's stores stands in it, as `layout.json` says.

Owns that file. Whoever opens a project's stores asks `opened` first: it refuses a folder of a newer version, and writes
down this version's where the folder is new. A folder of before there was such a file has layout 0, and is read as it
is; `drivetrain migrate` brings it up to this one.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.disk import write_whole
from drivetrain.version import VERSION

LAYOUT = 1
"""This version's. It rises when an older version would misread, or lose, what this one writes."""
NAME = "layout.json"
BYTES_MAX = 64 * 1024
"""What is larger is no such file."""


class LayoutV1(msgspec.Struct, frozen=True, kw_only=True):
    """Content of `layout.json`. Later versions may add to it; `layout` stays."""

    layout: int
    version: str = ""
    """Of the package that wrote it."""


def read_layout(data_folder: Path) -> int:
    """0 where the folder says nothing. Raises: DrivetrainError where it cannot be read, or is of a newer version."""
    path = data_folder / NAME
    try:
        with path.open("rb") as file:
            raw = file.read(BYTES_MAX)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise DrivetrainError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        found = msgspec.json.decode(raw, type=LayoutV1)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DrivetrainError(
            f"{path} says nothing that is understood: {error}.",
            do=f'Restore it from a backup, or write {{"layout": {LAYOUT}}} if this version has always written here.',
        ) from None
    if found.layout > LAYOUT:
        raise DrivetrainError(
            f"The data folder has layout {found.layout}, written by drivetrain {found.version or '?'}; "
            f"drivetrain {VERSION} knows layouts up to {LAYOUT}. Nothing was changed.",
            looked=[str(path)],
            do="Use that version, or restore a backup that this one made.",
        )
    return found.layout


def opened(data_folder: Path) -> None:
    """Call it before anything is read or written there: a few microseconds.

    Raises: DrivetrainError where a newer version wrote the folder, OSError where a new one cannot be made.
    """
    if read_layout(data_folder) == 0 and not _holds_anything(data_folder):
        write_layout(data_folder)


def write_layout(data_folder: Path) -> None:
    """From now on the folder has this version's layout. Raises: OSError."""
    data_folder.mkdir(parents=True, exist_ok=True)
    write_whole(data_folder / NAME, msgspec.json.encode(LayoutV1(layout=LAYOUT, version=VERSION)))


def _holds_anything(data_folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), os.scandir(data_folder) as found:
        return any(one.name[0] != "." for one in found)
    return False
