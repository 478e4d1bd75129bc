"""What the modules in `workflows/`, `features/`, `training/` and `evals/` declare, by kind and name.

Owns which values of a module count as declarations. What is wrong with one of them is for the checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, TypeVar

import msgspec

from drivetrain.core.declarations import Workflow
from drivetrain.core.evals import Eval
from drivetrain.core.features import (
    Entity,
    FeatureService,
    FeatureView,
    FileSource,
    OnDemandFeatureView,
    Projection,
    PushSource,
    RequestSource,
    SqlSource,
    TableSource,
)
from drivetrain.core.recipes import TrainedModel
from drivetrain.core.sources import Source
from drivetrain.project.modules import Package
from drivetrain.project.problems import Problems
from drivetrain.project.snapshot import Features
from drivetrain.project.spots import Spots

FOLDERS = ("workflows/", "features/", "training/", "evals/")
KINDS = (
    Workflow, Entity, FeatureView, OnDemandFeatureView, FeatureService, FileSource, TableSource, SqlSource, PushSource,
    Source, TrainedModel, Eval,
)  # fmt: skip
NAMES = {
    Entity: "Entity", FeatureView: "Feature view", OnDemandFeatureView: "Feature view",
    FeatureService: "Feature service", Source: "Source outside",
}  # fmt: skip

ImportProblem = Callable[[BaseException, str, Package, Problems], None]
Declared = TypeVar("Declared")


class Declarations(msgspec.Struct, frozen=True):
    """Every declaration once, in the order of files and lines."""

    found: tuple[Any, ...] = ()

    def of(self, *kinds: type[Declared]) -> list[Declared]:
        """Those of some kinds."""
        return [one for one in self.found if isinstance(one, kinds)]


def declared_in_code(package: Package, problems: Problems, note_import: ImportProblem) -> Declarations:
    """What the project's modules hold, also in lists, tuples and dicts of theirs."""
    found: dict[int, Any] = {}
    for path in package.files:
        if not path.startswith(FOLDERS) or not path.endswith(".py"):
            continue
        if "." in path.removesuffix(".py"):
            problems.add(
                "The file cannot be imported: its name has a dot.", file=path, do="Use `_` instead of the dot."
            )
            continue
        try:
            module = package.module(path)
        except (Exception, SystemExit) as error:  # noqa: BLE001  the user's code may raise anything; each is a mistake to show
            note_import(error, path, package, problems)
            continue
        for one in _held(module):
            found.setdefault(id(one), one)
    return Declarations(tuple(found.values()))


def features_of(declarations: Declarations, spots: Spots, problems: Problems) -> Features:
    """The features that are declared, and what they are made of; two of a name are a mistake."""
    every: dict[int, Any] = {
        id(one): one for one in declarations.of(*(kind for kind in KINDS if kind not in (Workflow, TrainedModel, Eval)))
    }
    waiting = list(every.values())
    while waiting:
        for one in _parts(waiting.pop()):
            if id(one) not in every:
                every[id(one)] = one
                waiting.append(one)
    made = list(every.values())

    def named(*kinds: type[Declared]) -> Mapping[str, Declared]:
        return _by_name([one for one in made if isinstance(one, kinds)], spots, problems)

    views = named(FeatureView, OnDemandFeatureView)
    return Features(
        entities=named(Entity),
        views={name: one for name, one in views.items() if isinstance(one, FeatureView)},
        on_demand={name: one for name, one in views.items() if isinstance(one, OnDemandFeatureView)},
        services=named(FeatureService),
        sources=named(FileSource, TableSource, SqlSource, PushSource),
        outside=named(Source),
    )


def _by_name(found: list[Declared], spots: Spots, problems: Problems) -> Mapping[str, Declared]:
    named: dict[str, Any] = {}
    for one in found:
        declaration: Any = one
        name = str(declaration.name)
        first = named.setdefault(name, declaration)
        if first is not declaration and not _same_source(first, declaration):
            place, before = spots.of(declaration), spots.of(first)
            kind = NAMES.get(type(declaration), "Source")
            problems.add(
                f"{kind} `{name}` is declared twice; first in {before.file}:{before.line}.", file=place.file,
                line=place.line, do="Give one of them another name.",
            )  # fmt: skip
    return named


def _same_source(one: Any, other: Any) -> bool:
    """Whether two sources read the same rows: a file may be written down at each view that reads it."""
    if type(one) is not type(other) or not isinstance(one, FileSource | TableSource | SqlSource):
        return False
    names = (*type(one).__slots__, "timestamp_field", "created_timestamp_column", "fresh_within")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _parts(declaration: Any) -> Iterator[Any]:
    """What a declaration is made of and needs a name for."""
    found: list[Any] = []
    if isinstance(declaration, FeatureView):
        found = [*_listed(declaration.entities), declaration.source]
    elif isinstance(declaration, OnDemandFeatureView):
        found = _listed(declaration.sources)
    elif isinstance(declaration, FeatureService):
        found = _listed(declaration.features)
    elif isinstance(declaration, PushSource):
        found = [declaration.batch_source]
    for one in found:
        whole = one.view if isinstance(one, Projection) else one
        if isinstance(whole, KINDS) and not isinstance(whole, RequestSource):
            yield whole


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _held(module: ModuleType) -> list[Any]:
    values = list(vars(module).values())
    for value in vars(module).values():
        if isinstance(value, list | tuple):
            values += value
        elif isinstance(value, dict):
            values += value.values()
    return [value for value in values if isinstance(value, KINDS)]
