"""Online features in memory-mapped files: a read is a few lookups, without any database.

Owns one folder per table, and who may write when. Gateway workers and the embedded runner read; materialization and
pushes write, one process at a time by `flock`. What stands in the files is for `mapped_files.py`, and how one is read
for `mapped_table.py`.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from drivetrain.adapters.mapped_files import Current, VectorsFile, current_of, publish, sweep, write_pushed
from drivetrain.adapters.mapped_table import KNOWN_MAX, MappedTable
from drivetrain.adapters.online_vectors import VectorFormat, check_rows, foreign, no_name
from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.locks import locked
from drivetrain.ports.online import NAME, Layout, PartRow, Pushed, TableState, Vectors, newer

PUSHED_BYTES_MAX = 32 * 1024 * 1024
"""What is pushed beyond this is folded into the table by the push itself; readers hold it in memory."""
SUPERSEDED_S = 3_600.0
"""So long a reader goes on with the vectors of its own definition after others took their place: time to reload."""
LOCK_S = 600.0
"""The longest that a writer waits for another, which may be writing millions of vectors."""
LOOK_EVERY_S = 0.002
"""How often a waiting writer looks again: a push takes less than a millisecond."""


class MappedOnline:
    """OnlineStore in a folder of memory-mapped files.

    folder: made by the first writer; a reader needs none. One instance serves one thread at a time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
        pushed_bytes_max: int = PUSHED_BYTES_MAX,
        known_max: int = KNOWN_MAX,
    ) -> None:
        self._folder = folder
        self._monotonic = monotonic
        self._entropy = entropy
        self._pushed_bytes_max = pushed_bytes_max
        self._known_max = known_max
        self._open: dict[str, MappedTable] = {}
        self._kept: dict[str, tuple[MappedTable, float]] = {}
        """Tables whose place another definition took, and until when they may be read."""

    def replace(
        self, layout: Layout, vectors: Iterable[tuple[bytes, Sequence[PartRow | None]]], as_of_us: Sequence[int]
    ) -> int:
        """See OnlineStore. About 10 us per vector of 20 features; nobody waits meanwhile, not even pushes."""
        folder = self._made(layout.table)
        assert len(as_of_us) == len(layout.parts), "one moment per part"
        with _locked(folder, "replacing.lock"):
            with _locked(folder):
                before = self._latest(layout.table)
                folded = before.all_pushed(layout) if before else {}
                seen = before.pushed_end if before else 0
            # The build holds only its own lock: what is pushed meanwhile is carried over below.
            name = self._entropy(8).hex()
            build = VectorsFile(folder / f"{name}.vectors", layout, tuple(as_of_us), self._entropy)
            try:
                count = build.write(_merged(vectors, folded, len(layout.parts)))
                with _locked(folder):
                    late = before.pushed_after(seen, layout) if (before := self._latest(layout.table)) else []
                    write_pushed(folder / f"{name}.pushed", late)
                    publish(folder, Current(f"{name}.vectors", f"{name}.pushed"))
                    sweep(folder)
            except BaseException:
                current = current_of(folder)
                if current is None or current.vectors != f"{name}.vectors":  # else it was published, and stays
                    for kind in ("vectors", "pushed"):
                        (folder / f"{name}.{kind}").unlink(missing_ok=True)
                raise
        return count

    def push(self, layout: Layout, rows: Sequence[Pushed]) -> int:
        """See OnlineStore. One `write`; synced to the disk by the next materialization."""
        if not rows:
            return 0
        check_rows(layout, rows)
        folder = self._made(layout.table)
        with _locked(folder):
            table = self._latest(layout.table)
            if table is None:
                name = self._entropy(8).hex()
                build = VectorsFile(folder / f"{name}.vectors", layout, (0,) * len(layout.parts), self._entropy)
                build.write(())
                write_pushed(folder / f"{name}.pushed", rows)
                publish(folder, Current(f"{name}.vectors", f"{name}.pushed"))
                return len(rows)
            if table.layout.fingerprint != layout.fingerprint:
                raise foreign(layout, table.layout)
            size = table.append(rows)
        if size > self._pushed_bytes_max:
            self._fold(layout.table)
        return len(rows)

    def read(self, layout: Layout, keys: Sequence[bytes]) -> Vectors:
        """See OnlineStore. Two system calls, then about 0.6 us per key and 20 columns."""
        table = self._latest(layout.table)
        if table is None:
            return _blank(layout, len(keys))
        if table.layout.fingerprint != layout.fingerprint:
            kept, until = self._kept.get(layout.table, (table, 0.0))
            if kept.layout.fingerprint != layout.fingerprint or self._monotonic() > until:
                raise foreign(layout, table.layout)
            table = kept
        return table.read(keys)

    def scan(self, table: str) -> Iterator[tuple[bytes, Sequence[PartRow | None]]]:
        """See OnlineStore."""
        found = self._latest(table)
        if found is not None:
            for key, rows, _ in found.rows():
                yield key, rows

    def remove(self, table: str, keys: Iterable[bytes]) -> int:
        """See OnlineStore. Writes the table anew."""
        gone = set(keys)
        return self._fold(table, gone) if gone and NAME.fullmatch(table) and (self._folder / table).is_dir() else 0

    def state(self, table: str) -> TableState | None:
        """See OnlineStore."""
        found = self._latest(table)
        if found is None:
            return None
        return TableState(
            layout=found.layout, vectors=found.footer.count, as_of_us=found.footer.as_of_us, pushed=found.pushed_rows
        )

    def tables(self) -> list[str]:
        """See OnlineStore."""
        try:
            return sorted(one.name for one in self._folder.iterdir() if (one / "current").exists())
        except FileNotFoundError:
            return []

    def drop(self, table: str) -> None:
        """See OnlineStore."""
        if NAME.fullmatch(table) and (self._folder / table).is_dir():
            folder = self._folder / table
            with _locked(folder, "replacing.lock"), _locked(folder):
                self._open.pop(table, None)
                self._kept.pop(table, None)
                (folder / "current").unlink(missing_ok=True)
                shutil.rmtree(folder)

    def _fold(self, table: str, gone: set[bytes] | None = None) -> int:
        """The table written anew with what was pushed, without some keys; how many of those there were."""
        folder = self._folder / table
        removed = 0
        with _locked(folder, "replacing.lock"), _locked(folder):
            before = self._latest(table)
            if before is None:
                return 0

            def kept() -> Iterator[tuple[bytes, Sequence[PartRow | None], Sequence[bool]]]:
                nonlocal removed
                for key, rows, pushed in before.rows():
                    if gone is not None and key in gone:
                        removed += 1
                    else:
                        yield key, rows, pushed

            name = self._entropy(8).hex()
            VectorsFile(folder / f"{name}.vectors", before.layout, before.footer.as_of_us, self._entropy).write(kept())
            write_pushed(folder / f"{name}.pushed", ())
            publish(folder, Current(f"{name}.vectors", f"{name}.pushed"))
            sweep(folder)
        return removed

    def _made(self, table: str) -> Path:
        if not NAME.fullmatch(table):
            raise no_name(table)
        folder = self._folder / table
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def _latest(self, table: str) -> MappedTable | None:
        """The table as it is on the disk now, with all that was pushed; None where there is none."""
        held = self._open.get(table)
        if held is not None and not held.changed():
            return held
        if not NAME.fullmatch(table):
            return None
        found = MappedTable.opened(self._folder / table, self._known_max)
        if found is None:
            self._open.pop(table, None)
            return None
        if held is not None and held.layout.fingerprint != found.layout.fingerprint:
            self._kept[table] = (held, self._monotonic() + SUPERSEDED_S)
        self._open[table] = found
        return found


def _merged(
    vectors: Iterable[tuple[bytes, Sequence[PartRow | None]]], folded: dict[bytes, dict[int, PartRow]], width: int
) -> Iterator[tuple[bytes, Sequence[PartRow | None], Sequence[bool]]]:
    """New vectors with the pushed rows that are newer; of rows of the same age the source's holds."""
    for key, rows in vectors:
        patches = folded.pop(key, None)
        if patches is None:
            yield key, rows, ()
            continue
        now = [newer(patches.get(at), row) for at, row in enumerate(rows)]
        yield key, now, [one is not None and one is patches.get(at) for at, one in enumerate(now)]
    for key, patches in folded.items():
        yield key, [patches.get(at) for at in range(width)], [at in patches for at in range(width)]


def _blank(layout: Layout, count: int) -> Vectors:
    form = VectorFormat(layout)
    return form.decode(form.blank * count, lambda _row, _place, _length: b"", (0,) * len(layout.parts))


@contextlib.contextmanager
def _locked(folder: Path, name: str = "lock") -> Iterator[None]:
    """One writer at a time. Raises: DrivetrainError after `LOCK_S`."""
    with locked(folder / name, wait_s=LOCK_S, look_every_s=LOOK_EVERY_S) as held:
        if not held:
            raise DrivetrainError(
                f"Another process has been writing {folder} for {LOCK_S:.0f} s.", do="End it, and try again."
            )
        yield
