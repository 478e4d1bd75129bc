"""What the tests of trainings share: a project folder with Datasets, a registry, Reports and the scorers that serve."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drivetrain.adapters.objects import FileObjects
from drivetrain.adapters.sqlite import open_control_log
from drivetrain.core.datasets import SchemaV1, SplitV1
from drivetrain.core.recipes import AnyRecipe, TabularClassification, TrainedModel
from drivetrain.datasets import Datasets, Declared, FromFile
from drivetrain.inference.scorers import open_scorer
from drivetrain.lineage.lineage import Lineage
from drivetrain.registry.reports import Reports
from drivetrain.registry.store import Registry
from drivetrain.training.training import Training

NOW_NS = 1_767_225_600_000_000_000
"""2026-01-01T00:00:00Z."""


class Place:
    """A folder in which models are trained."""

    def __init__(self, root: Path) -> None:
        self.root = root / "project"
        self.root.mkdir(exist_ok=True)
        self.data = root / "data"
        self.control = open_control_log(self.data, root / "keys", now_ns=lambda: NOW_NS)
        self.datasets = Datasets(
            None, FileObjects(self.data / "lake"), self.control, root=self.root, actor="tester", now_ns=lambda: NOW_NS
        )
        self.lineage = Lineage(self.control, actor="tester", now_ns=lambda: NOW_NS)
        self.registry = Registry(
            self.data / "models", self.control, self.lineage, now_ns=lambda: NOW_NS, actor="tester"
        )
        self.reports = Reports(self.data / "reports")

    def training(self, **options: Any) -> Training:
        given: dict[str, Any] = {
            "open_scorer": open_scorer, "actor": "tester", "now_ns": lambda: NOW_NS, **options,
        }  # fmt: skip
        return Training(self.datasets, self.registry, self.reports, self.lineage, **given)

    def dataset(
        self,
        name: str,
        rows: Iterable[Mapping[str, Any]],
        *,
        split: SplitV1 | None = None,
        schema: SchemaV1 | None = None,
    ) -> str:
        """A Dataset of rows; its reference."""
        (self.root / f"{name}.csv").write_text(table(list(rows)))
        declared = {} if schema is None else {"declared": Declared(schema=schema)}
        made = self.datasets.create(name, FromFile(f"{name}.csv"), split=split, **declared).dataset
        return f"{made.name}@{made.number}"

    def state(self) -> set[str]:
        """Every file that a training could leave behind."""
        return {
            str(path.relative_to(self.data))
            for folder in ("models", "reports", "tmp")
            for path in (self.data / folder).rglob("*")
            if path.is_file() and path.name != "models.lock"
        }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; None is an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def orders(count: int, *, seed: int = 1, missing: float = 0.05) -> list[dict[str, Any]]:
    """Orders with an amount, a country and whether they are new; which are fraud follows from these, with noise."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        amount = round(chance.lognormvariate(4, 1), 2)
        country = chance.choice(["de", "fr", "us", "br"])
        fresh = chance.random() < 0.4
        risk = (amount > 80) + (country == "br") + fresh + chance.gauss(0, 0.5)
        found.append(
            {
                "order": f"order-{number}",
                "amount": None if chance.random() < missing else amount,
                "country": None if chance.random() < missing else country,
                "fresh": str(fresh).lower(),
                "minutes": round(5 + amount / 10 + 3 * fresh + chance.gauss(0, 1), 3),
                "fraud": "yes" if risk > 1.5 else "no",
            }
        )
    return found


COLUMNS = ("amount", "country", "fresh")
SPLIT = SplitV1(shares=(("train", 0.75), ("test", 0.25)), key=("order",))


def fraud(dataset: str, recipe: AnyRecipe | None = None, **options: Any) -> TrainedModel:
    """The declaration that most tests train by."""
    chosen = recipe if recipe is not None else TabularClassification(columns=COLUMNS)
    return TrainedModel("fraud", dataset=dataset, recipe=chosen, label=options.pop("label", "fraud"), **options)
