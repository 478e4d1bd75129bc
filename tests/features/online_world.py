"""A project with features of every kind, on a clock that tests move: late rows, pushes, windows, functions."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.adapters.mapped_online import MappedOnline
from drivetrain.core.features import FeatureRecordV1
from drivetrain.embedded.feature_store import feature_store
from drivetrain.features.online import online_folder
from drivetrain.features.parity import Seeing
from drivetrain.features.store import FeatureStore
from drivetrain.ports.online import Layout, PartRow

START = datetime(2026, 2, 1, 12, tzinfo=UTC)
CUSTOMERS = [f"c{number}" for number in range(12)]
PRODUCTS = [1, 2, 3]

DECLARED = """
import drivetrain as dt

customer = dt.Entity("customer")
product = dt.Entity("product", value_type=int)

stats_rows = dt.FileSource("data/stats.csv", name="stats_rows", created_timestamp_column="created", fresh_within="3h")
stats = dt.FeatureView(
    "stats", entities=[customer], source=stats_rows, ttl="20d",
    schema=[
        dt.Field("orders", int, default=0), dt.Field("mean", float), dt.Field("vip", bool, default=False),
        dt.Field("since", "timestamp"), dt.Field("city", str, default="nowhere"),
    ],
)
events = dt.FileSource("data/events.csv", name="events", created_timestamp_column="created")
amounts = dt.FeatureView(
    "amounts", entities=[customer], source=events,
    aggregations=[
        *(dt.Aggregation(function=name, column="amount", over=over)
          for name in ("sum", "mean", "min", "max", "last") for over in ("6h", "3d")),
        dt.Aggregation(function="count", over="6h"),
        dt.Aggregation(function="approx_distinct", column="shop", over="3d"),
    ],
)
prices = dt.FeatureView(
    "prices", entities=[customer, product], source=dt.FileSource("data/prices.csv", name="prices"),
    schema=[dt.Field("price", float, default=-1.0), dt.Field("discount", float)],
)
clicks = dt.PushSource("clicks", schema=[dt.Field("n", int), dt.Field("page", str)])
click = dt.FeatureView(
    "click", entities=[customer], source=clicks, ttl="2h", schema=[dt.Field("n", int, default=0), dt.Field("page", str)]
)
clicked = dt.FeatureView(
    "clicked", entities=[customer], source=clicks, aggregations=[dt.Aggregation(function="sum", column="n", over="1d")]
)

asked = dt.RequestSource("asked", schema=[dt.Field("amount", float)])

@dt.on_demand_feature_view(
    sources=[stats[["orders", "mean"]], amounts[["amount_sum_3d"]], asked],
    schema=[dt.Field("share", float, default=-1.0), dt.Field("kind", str)],
)
def judged(row):
    total = row["amount_sum_3d"]
    return {
        "share": row["amount"] / total if total else None,
        "kind": f"{row['orders']}/{round(row['mean'], 3) if row['mean'] is not None else '-'}",
    }

everything = dt.FeatureService("everything", features=[stats, amounts, prices, click, clicked, judged])
"""


class World:
    """The project, its clock, and what its Calls saw."""

    def __init__(self, root: Path, *, seed: int = 1, declared: str = DECLARED) -> None:
        self.root = root
        self.now = START
        self.dice = random.Random(seed)
        for folder in ("features", "data"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "drivetrain.toml").write_text('[project]\nname = "features"\n')
        (root / "features" / "customer.py").write_text(declared)
        self._write_files()
        self.store = feature_store(root, now_ns=self.now_ns)
        self.seen: list[Seeing] = []

    def now_ns(self) -> int:
        return int(self.now.timestamp()) * 1_000_000_000 + self.now.microsecond * 1_000

    def reload(self) -> FeatureStore:
        self.store = feature_store(self.root, now_ns=self.now_ns)
        return self.store

    def pass_time(self, **parts: float) -> None:
        self.now += timedelta(**parts)

    def call(self, customer: str, product: int = 1, amount: float = 10.0) -> Seeing:
        """What a Call sees, as its record keeps it."""
        given = {"customer": customer, "product": product, "amount": amount, "text": "not for features"}
        seen = self.store.reader().read("everything", given, self.now_ns())
        record = FeatureRecordV1(seen.given, seen.values, seen.views)
        made = Seeing(
            call_id=f"call_{len(self.seen)}",
            service="everything",
            fingerprint=seen.fingerprint,
            opened_ns=self.now_ns(),
            as_of_ns=seen.as_of_ns,
            record=msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=FeatureRecordV1),
        )
        self.seen.append(made)
        return made

    def calls(self, count: int) -> None:
        for _ in range(count):
            self.call(
                self.dice.choice([*CUSTOMERS, "stranger"]), self.dice.choice([*PRODUCTS, 99]), self.dice.random() * 9
            )

    def push_some(self, count: int) -> None:
        """Rows of now and late ones, some of the same moment."""
        self.store.push(
            "clicks",
            [
                {
                    "customer": self.dice.choice(CUSTOMERS[:6]),
                    "event_timestamp": self.now - timedelta(minutes=self.dice.choice([0, 0, 5, 90, 400])),
                    "n": self.dice.choice([None, 1, 2, 3]),
                    "page": self.dice.choice([None, "home", "café ☕"]),
                }
                for _ in range(count)
            ],
        )

    def _write_files(self) -> None:
        dice = self.dice

        def moment(days: float) -> datetime:
            return START + timedelta(days=2) - timedelta(seconds=int(dice.random() * days * 86_400))

        def late(event: datetime) -> datetime:
            return event + timedelta(hours=dice.choice([0, 0, 1, 30]))

        stats = []
        for _ in range(150):
            event = moment(30)
            stats.append(
                {
                    "customer": dice.choice(CUSTOMERS[:9]), "event_timestamp": event.isoformat(),
                    "created": late(event).isoformat(), "orders": dice.choice(["", dice.randrange(50)]),
                    "mean": dice.choice(["", repr(dice.random() * 100)]), "vip": dice.choice(["", "true", "false"]),
                    "since": dice.choice(["", moment(900).isoformat()]), "city": dice.choice(["", "Köln", "Łódź"]),
                }
            )  # fmt: skip
        events = []
        for _ in range(400):
            event = moment(5)
            events.append(
                {
                    "customer": dice.choice(CUSTOMERS[3:]), "event_timestamp": event.isoformat(),
                    "created": late(event).isoformat(), "amount": dice.choice(["", repr(dice.gauss(0, 1e6)), "0.1"]),
                    "shop": dice.choice(["a", "b", "c", ""]),
                }
            )  # fmt: skip
        prices = [
            {
                "customer": dice.choice(CUSTOMERS), "product": dice.choice(PRODUCTS),
                "event_timestamp": moment(10).isoformat(), "price": repr(dice.random()),
                "discount": dice.choice(["", "inf", "nan", "0.25"]),
            }
            for _ in range(80)
        ]  # fmt: skip
        for name, rows in (("stats", stats), ("events", events), ("prices", prices)):
            write_csv(self.root / "data" / f"{name}.csv", rows)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


class Skewed(MappedOnline):
    """A store whose writer does something to a column that the definition does not say."""

    def __init__(self, folder: Path, column: str, change: Callable[[Any], Any]) -> None:
        super().__init__(folder)
        self._column = column
        self._change = change

    def replace(self, layout: Layout, vectors: Iterable[tuple[bytes, Sequence[PartRow | None]]], as_of_us: Any) -> int:
        places = [[name for name, _ in part.columns] for part in layout.parts]

        def skewed(row: PartRow | None, names: list[str]) -> PartRow | None:
            if row is None or self._column not in names:
                return row
            at = names.index(self._column)
            values = [*row.values]
            values[at] = self._change(values[at])
            return PartRow(row.event_us, row.created_us, tuple(values))

        changed = (
            (key, [skewed(row, names) for row, names in zip(rows, places, strict=True)]) for key, rows in vectors
        )
        return super().replace(layout, changed, as_of_us)


def skew(world: World, column: str, change: Callable[[Any], Any]) -> None:
    world.store.online = Skewed(online_folder(world.store.snapshot), column, change)
