"""What a table no longer needs, and how it goes: replaced data files, what killed writers left, and the old log.

The library's own vacuum keeps the log, in which replaced rows' statistics stay readable, and adds two commits to it.
Here a checkpoint is made of the oldest version that stays, then everything before it is deleted: first data, then log,
so that a crash leaves only what the next run finds again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import unquote

import msgspec

from drivetrain.adapters.objects import Listed, TableFolder
from drivetrain.core.errors import DrivetrainError

ORPHAN_S = 3600.0
"""Age from which a file that no version names is taken for a killed writer's, where nobody can tell who writes."""
LOG = "_delta_log"
_NUMBERED = re.compile(r"^(\d{20})\.(json|crc|checkpoint\.)")
_COMPACTED = re.compile(r"^\d{20}\.(\d{20})\.compacted\.json$")


class TableFile(msgspec.Struct, frozen=True):
    """A data file that a version names."""

    path: str
    """Below the table, as it stands on the disk."""
    partition: dict[str, str | None]


class TableVersion(msgspec.Struct, frozen=True, kw_only=True):
    """What one version of a table is, read from its log."""

    version: int
    files: tuple[TableFile, ...]
    checkpoint: Callable[[], None]
    """Write it down by itself, so that older entries of the log are not needed to read it."""


class _Path(msgspec.Struct, frozen=True):
    path: str


class _Commit(msgspec.Struct, frozen=True):
    timestamp: int = 0


class _Action(msgspec.Struct, frozen=True):
    """A line of a commit; what else it says is skipped."""

    add: _Path | None = None
    remove: _Path | None = None
    commit: _Commit | None = msgspec.field(name="commitInfo", default=None)


def vacuum(
    folder: TableFolder,
    table: str,
    read: Callable[[int | None], TableVersion],
    *,
    since_s: float,
    now_s: float,
    is_quiet: bool,
) -> int:
    """Delete what no version needs that was the newest at `since_s` or later; how many files went.

    read: the table at a version, or now. is_quiet: nobody is writing, so every file that no version names may go.
    Raises: DrivetrainError.
    """
    entries = list(folder.entries(table))
    # Read after listing: what is committed meanwhile is either not listed, or named by this version.
    newest = read(None)
    log = [one for one in entries if _is_log(one, table)]
    commits = {version: one for one in log if (version := _commit(one)) is not None}
    oldest = _oldest_kept(commits, newest, read, since_s)
    needed = {file.path for file in oldest.files} | {file.path for file in newest.files}
    gone: set[str] = set()
    for version, one in sorted(commits.items()):
        adds, removes = _changes(folder.get(one.path) or b"")
        gone |= removes
        if version > oldest.version:
            needed |= adds

    def is_waste(one: Listed) -> bool:
        path = one.path.removeprefix(f"{table}/")
        return path not in needed and (is_quiet or path in gone or one.changed_s < now_s - ORPHAN_S)

    data = [one.path for one in entries if not _is_log(one, table) and is_waste(one)]
    folder.delete_all(data)
    old = [one.path for one in log if _is_before(one, oldest.version)]
    if old:
        oldest.checkpoint()
    left = [one.path for one in log if _is_half(one) and (is_quiet or one.changed_s < now_s - ORPHAN_S)]
    folder.delete_all(old + left)
    folder.forget_copies(table, frozenset(f"{table}/{path}" for path in needed))
    return len(data) + len(old) + len(left)


def committed_ns(commit: bytes) -> int:
    """When a commit was made, by its file's content; 0 where it does not tell."""
    actions = msgspec.json.Decoder(_Action).decode_lines(commit)
    return max((action.commit.timestamp for action in actions if action.commit is not None), default=0) * 1_000_000


def _is_log(one: Listed, table: str) -> bool:
    return one.path.startswith(f"{table}/{LOG}/")


def _commit(one: Listed) -> int | None:
    name = one.path.rpartition("/")[2]
    return int(name[:20]) if re.fullmatch(r"\d{20}\.json", name) else None


def _oldest_kept(
    commits: dict[int, Listed], newest: TableVersion, read: Callable[[int | None], TableVersion], since_s: float
) -> TableVersion:
    """The version that was the newest at `since_s`; a later one where the log does not reach so far back."""
    at_that_time = [version for version, one in commits.items() if one.changed_s <= since_s]
    start = max(at_that_time, default=0)
    for version in sorted(version for version in commits if start <= version < newest.version):
        try:
            return read(version)
        except DrivetrainError:
            continue
    return newest


def _changes(commit: bytes) -> tuple[set[str], set[str]]:
    actions = msgspec.json.Decoder(_Action).decode_lines(commit)
    adds: set[str] = set()
    removes: set[str] = set()
    for action in actions:
        if action.add is not None:
            adds.add(unquote(action.add.path))
        if action.remove is not None:
            removes.add(unquote(action.remove.path))
    return adds, removes


def _is_before(one: Listed, version: int) -> bool:
    name = one.path.rpartition("/")[2]
    numbered = _COMPACTED.match(name) or _NUMBERED.match(name)
    return numbered is not None and int(numbered[1]) < version


def _is_half(one: Listed) -> bool:
    """Of a commit or checkpoint that never came to be: not numbered, and not the pointer to the last checkpoint."""
    name = one.path.rpartition("/")[2]
    return "#" in name or (not re.match(r"^\d{20}\.", name) and name != "_last_checkpoint")
