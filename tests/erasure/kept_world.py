"""The same project without a gateway: made in a second, copied, erased from, killed while it is erased from."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from erasure_world import CODE, HER, HIM, csv_file, files_with, needles, planted, stats_file

from drivetrain.adapters.files import FileVault
from drivetrain.adapters.sqlite import SqliteControlLog, open_control_log
from drivetrain.adapters.sqlite_counters import SqliteCounters
from drivetrain.adapters.sqlite_idempotency import SqliteIdempotency
from drivetrain.core.calls import AttemptV1, Attribution, ClosedV1, OpenedV1, OutcomeV1, Stored
from drivetrain.core.datasets import ColumnV1, SchemaV1
from drivetrain.core.features import FeaturesSeenV1
from drivetrain.datasets import Datasets
from drivetrain.datasets.schema import Declared
from drivetrain.datasets.sources import FromCalls, FromFile
from drivetrain.embedded.asking import lake_for, lake_stores
from drivetrain.embedded.erasing import stores_of
from drivetrain.embedded.feature_store import feature_store
from drivetrain.embedded.limiting import limits_folder
from drivetrain.erasure.erasing import Erasure, Stores
from drivetrain.lake.lake import Lake
from drivetrain.lake.roller import Roller
from drivetrain.ledger.journal import FrameJournal
from drivetrain.lineage.lineage import Lineage
from drivetrain.ports.counters import MONEY, Line, Report, SyncRequest, Terms, Want
from drivetrain.ports.idempotency import Claim, Keep
from drivetrain.project import load, unload
from drivetrain.project.snapshot import Snapshot
from support.books import limit
from support.projects import provider, settings

T0_NS = 1_767_225_600_000_000_000
DAY_NS = 86_400_000_000_000
PEOPLE_SCHEMA = SchemaV1(
    columns=(
        ColumnV1(name="customer", type="string", subject=True, personal=True),
        ColumnV1(name="mail", type="string", pattern=r"mail-.*", personal=True),
        ColumnV1(name="age", type="int64"),
    )
)


def build(root: Path) -> None:
    """The project's files and everything that it knows of two persons; a part of it is rolled."""
    her, him = HER, HIM
    tables = provider("raw", "http://127.0.0.1:9/v1") + '[models."raw/m"]\nusd_per_million_input = "1"\n'
    tables += (
        'usd_per_million_output = "1"\n' + limit("person", "each user", usd="9") + limit("shop", "team:shop", usd="9")
    )
    files = {
        "drivetrain.toml": settings(ledger='retention = "full"\n', tables=tables),
        "workflows/shop.py": CODE,
        "data/people.csv": csv_file(her, him),
        "data/stats.csv": stats_file(her, him),
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    with loaded(root) as snapshot:
        vault = FileVault(snapshot.keys_folder)
        write(snapshot, vault, [(0, her), (1, him), (2, her)])
        Roller(snapshot.data_folder, tables_of(snapshot)).roll()
        write(snapshot, vault, [(3, her), (4, him)])
        store = feature_store(snapshot)
        for id_ in (her, him):
            store.push("clicks", [{"customer": id_, "page": planted(id_)["page"]}])
            store.push("bought", [{"customer": id_, "product": "p", "note": planted(id_)["note"]}])
        store.materialize_incremental()
        store.push("clicks", [{"customer": id_, "page": planted(id_)["page"] + "-again"} for id_ in (her, him)])
        made = datasets_of(snapshot, vault)
        made.create(
            "people", FromFile("data/people.csv"), declared=Declared(schema=PEOPLE_SCHEMA), allow_quarantine=True
        )
        made.create("asked", FromCalls("team = 'shop'"))
        Lineage(control_of(snapshot), snapshot).made("model:triage@14", inputs=["dataset:people@1"])
        spend_of(snapshot, her, him)
        answers_of(snapshot, her, him)
        vault.close()


@contextmanager
def loaded(root: Path) -> Iterator[Snapshot]:
    snapshot = load(root)
    try:
        yield snapshot
    finally:
        unload(snapshot)


def write(snapshot: Snapshot, vault: FileVault, calls: list[tuple[int, str]]) -> None:
    """A segment of a writer that has left, with these Calls: (number and day, whose)."""
    journal = FrameJournal(snapshot.data_folder)
    for number, id_ in calls:
        for record in records_of(number, id_, vault):
            journal.append(record)
    journal.flush()
    journal.close()


def records_of(number: int, id_: str, vault: FileVault) -> list[Stored]:
    said = planted(id_)
    at_ns = T0_NS + number * DAY_NS
    call_id = f"call_{at_ns // 1_000_000:012x}0123456789{number:08x}"
    who = Attribution(team="shop", user=id_, tags=(f"customer={id_}", f"{said['tag']}-of-{id_}", "plan=pro"))
    opened = OpenedV1(
        call_id, at_ns, "0123456789abcdef", "refund", "workflow", False, who, retained=2,
        payload=vault.seal(id_, call_id, "request", said["prompt"].encode()), business_key=said["order"],
        features=FeaturesSeenV1("seen", "f" * 16, at_ns, sealed=vault.seal(id_, call_id, "features", b"{}")),
    )  # fmt: skip
    attempts = (
        AttemptV1("small", "raw/m", "answer", "escalated", f"too odd: {said['prompt']}", cost_nano_usd=5),
        AttemptV1("large", "raw/m", "escalation", "accepted", cost_nano_usd=1_000 + number),
    )
    closed = ClosedV1(call_id, at_ns + 1_000_000, "answered", 200, "large", 1_005 + number, attempts)
    outcomes = [
        OutcomeV1(call_id, "label", "crm", said["label"], at_ns, at_ns),
        OutcomeV1(call_id, "stars", "crm", 4.0, at_ns, at_ns),
        OutcomeV1("", "said", "crm", said["late"], at_ns, at_ns, "", "refund", said["order"]),
        OutcomeV1("", "ok", "crm", True, at_ns, at_ns, "", "refund", said["order"]),
    ]
    return [opened, closed, *outcomes]


def spend_of(snapshot: Snapshot, *people: str) -> None:
    """A worker that lives on has leased some of everybody's budget."""
    store = SqliteCounters(limits_folder(snapshot.data_folder))
    store.join("worker-1", "segment-1")
    terms = [Terms(f"person/{id_}@2026-01", MONEY, 1_000) for id_ in people]
    lines = [Line(number, one, 100, 100, 100) for number, one in enumerate(terms, 1)]
    store.sync(SyncRequest("worker-1", 1, wants=(Want(1, tuple(lines)),)))
    store.sync(SyncRequest("worker-1", 1, reports=tuple(Report(one.slice, one.terms, booked=7) for one in lines)))
    assert store.leave()
    store.close()


def answers_of(snapshot: Snapshot, *people: str) -> None:
    """Copies of answers; here they are not sealed, so that a search can find what is left of them."""
    store = SqliteIdempotency(snapshot.data_folder / "idempotency", worker="worker-1")
    for id_ in people:
        key = hashlib.sha256(planted(id_)["request"].encode()).digest()
        store.visit((Claim(key, b"body"),))
        store.visit((Keep(key, planted(id_)["answer"].encode() * 500),))
    store.close()


def tables_of(snapshot: Snapshot) -> Any:
    return lake_stores(snapshot.root, snapshot.data_folder, snapshot.lake).tables


def control_of(snapshot: Snapshot) -> SqliteControlLog:
    return open_control_log(snapshot.data_folder, snapshot.keys_folder)


def datasets_of(snapshot: Snapshot, vault: FileVault | None = None) -> Datasets:
    lake = lake_for(snapshot)
    assert lake.objects is not None
    return Datasets(lake, lake.objects, control_of(snapshot), vault=vault, root=snapshot.root)


def copied(template: Path, root: Path) -> Path:
    shutil.copytree(template, root)
    return root


def totals(snapshot: Snapshot) -> dict[str, Any]:
    """What must not change, whoever is erased."""
    lake: Lake = lake_for(snapshot)
    asked = {
        "calls": "SELECT day, workflow, variant, status, team, count(*), sum(cost_nano_usd), sum(attempt_count) "
        "FROM calls GROUP BY ALL ORDER BY ALL",
        "spend": "SELECT day, workflow, variant, sum(calls), sum(attempts), sum(cost_nano_usd) FROM spend "
        "GROUP BY ALL ORDER BY ALL",
        "history": "SELECT metric, source, kind, count(*), sum(number) FROM outcomes_history GROUP BY ALL ORDER BY ALL",
        "outcomes": "SELECT metric, kind, count(*), count(DISTINCT call_id), sum(number) FROM outcomes "
        "GROUP BY ALL ORDER BY ALL",
    }
    found: dict[str, Any] = {name: lake.query(sql).rows for name, sql in asked.items()}
    store = SqliteCounters(limits_folder(snapshot.data_folder))
    listed = store.accounts("person/", "@2026-01", 100)
    store.close()
    assert listed.settled
    return {**found, "counters": (listed.count, listed.settled, listed.held)}


def left(snapshot: Snapshot, id_: str) -> dict[str, list[str]]:
    return files_with(snapshot.data_folder, needles(id_))


class Halted(BaseException):
    """The process ends here."""


class Halting:
    """A store whose changes end the process, before or after one is made, when the count comes to `at`."""

    CHANGES = frozenset({
        "append", "replace", "compact", "vacuum", "drop", "put", "put_file", "delete", "remove", "forget", "rename",
        "drop_answers",
    })  # fmt: skip

    def __init__(self, store: Any, tick: Any) -> None:
        self._store = store
        self._tick = tick

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in self.CHANGES:
            return found

        def changed(*given: Any, **named: Any) -> Any:
            self._tick()
            done = found(*given, **named)
            self._tick()
            return done

        return changed


@contextmanager
def erasure(snapshot: Snapshot, tick: Any = None) -> Iterator[Erasure]:
    """The project's Erasure. tick: called before and after everything that it changes."""
    with stores_of(snapshot) as stores:
        used = stores if tick is None else _halting(stores, tick)
        yield Erasure(used, actor="tests", on_step=lambda _: tick() if tick is not None else None)


def _halting(stores: Stores, tick: Any) -> Stores:
    names = ("tables", "objects", "keys", "online", "control", "answers", "counters")
    return msgspec.structs.replace(stores, **{name: Halting(getattr(stores, name), tick) for name in names})
