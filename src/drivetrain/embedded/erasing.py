"""The Erasure of a project, wired: every store that may know somebody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drivetrain.erasure.erasing import Erasure, Stores
    from drivetrain.project.snapshot import Snapshot


@contextmanager
def erasure(project: Path | None = None, *, on_step: Callable[[str], None] = lambda _: None) -> Iterator[Erasure]:
    """Of the project in or above a folder, which must load: it says which keys are persons.

    Raises: ProjectError, DrivetrainError.
    """
    from drivetrain.embedded.applying import person
    from drivetrain.erasure.erasing import Erasure
    from drivetrain.project import find_root, load, unload

    snapshot = load(find_root(project or Path.cwd()))
    try:
        with stores_of(snapshot) as stores:
            yield Erasure(stores, actor=person(), on_step=on_step)
    finally:
        unload(snapshot)


@contextmanager
def stores_of(snapshot: Snapshot) -> Iterator[Stores]:
    """Everything of a project that may know somebody; what was never used is not made. Raises: DrivetrainError."""
    from drivetrain.adapters.files import FileVault
    from drivetrain.adapters.mapped_online import MappedOnline
    from drivetrain.adapters.sqlite import open_control_log
    from drivetrain.adapters.sqlite_counters import SqliteCounters
    from drivetrain.adapters.sqlite_idempotency import SqliteIdempotency
    from drivetrain.embedded.asking import lake_in, lake_stores
    from drivetrain.embedded.limiting import limits_folder
    from drivetrain.erasure.erasing import Stores
    from drivetrain.features.online import online_folder

    data_folder, keys_folder = snapshot.data_folder, snapshot.keys_folder
    place = lake_stores(snapshot.root, data_folder, snapshot.lake)
    with ExitStack() as stack:
        vault = FileVault(keys_folder, payload_days=snapshot.ledger.payload_days)
        stack.callback(vault.close)
        counters = SqliteCounters(limits_folder(data_folder)) if limits_folder(data_folder).is_dir() else None
        if counters is not None:
            stack.callback(counters.close)
        answers = data_folder / "idempotency"
        yield Stores(
            snapshot=snapshot,
            lake=lake_in(snapshot.root, data_folder, keys_folder, snapshot.lake),
            tables=place.tables,
            objects=place.objects,
            keys=vault,
            online=MappedOnline(online_folder(snapshot)),
            control=open_control_log(data_folder, keys_folder),
            answers=SqliteIdempotency(answers) if answers.is_dir() else None,
            counters=counters,
        )
