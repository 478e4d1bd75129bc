"""Everything that is wrong with what a project says of systems that stay outside: its Sources.

Owns their owner, location, schema, promise and readers, and how a promise of freshness is written. Called where a
project is loaded. Sources that feature views read are for the room `features/`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from typing import Any

from drivetrain.core.errors import did_you_mean
from drivetrain.core.sources import Source
from drivetrain.core.times import span_us
from drivetrain.project.names import E_MAIL, NAME, NAME_HELP
from drivetrain.project.problems import Problems
from drivetrain.project.snapshot import Features
from drivetrain.project.spots import Spots
from drivetrain.project.workflow_notes import kind, written

FRESH_DAYS_MAX = 3_660
"""Ten years: what may be older than that is promised nothing."""
USER_IN_URL = re.compile(r"\w+://[^/\s]*[^/\s@:]*:[^/\s@]+@")
SECRET_IN_TEXT = re.compile(
    r"(?:^|[?&;,\s])(?:api[-_]?key|access[-_]?key|key|token|access_token|sig|signature|secret|password|passwd|pwd|code)"
    r"\s*[=:]\s*\S",
    re.IGNORECASE,
)
READER_KINDS = ("workflow", "features", "service", "dataset")
"""What may stand before a reader's name, with a colon."""


def check_sources(features: Features, workflows: Collection[str], spots: Spots, problems: Problems) -> None:
    """Notes every mistake in the declared Sources. workflows: names of those that are declared."""
    for name, source in features.outside.items():
        check = _SourceCheck(source, features, workflows, spots, problems)
        check.run()
        if name in features.sources:
            check.note("has the name of a source that feature views read.", do="Give one of them another name.")


def duration_s(text: object) -> int | None:
    """Seconds of `90s`, `10m`, `6h`, `2d` or `1w`; None where it is no such duration."""
    try:
        seconds = span_us(text) // 1_000_000 if isinstance(text, str) else 0
    except ValueError:
        return None
    return seconds if 0 < seconds <= FRESH_DAYS_MAX * 86_400 else None


class _SourceCheck:
    """One Source being checked."""

    def __init__(
        self, source: Source, features: Features, workflows: Collection[str], spots: Spots, problems: Problems
    ) -> None:
        self.source = source
        self.features = features
        self.workflows = workflows
        self.spots = spots
        self.problems = problems

    def note(self, what: str, *arguments: str, value: str = "", do: str = "") -> None:
        place = self.spots.of(self.source, *arguments)
        self.problems.add(f"Source `{self.source.name}` {what}", file=place.file, line=place.line, value=value, do=do)

    def run(self) -> None:
        source = self.source
        known = [name for name in inspect.signature(Source.__init__).parameters if name not in _NOT_ARGUMENTS]
        for name in source.unknown:
            self.note(f"has no argument `{name}`.", name, do=did_you_mean(name, known))
        if not isinstance(source.name, str) or not NAME.fullmatch(source.name):
            self.note("has a wrong name.", value=written(source.name), do=NAME_HELP)
        if not source.owner:
            self.note("has no owner.", do='Write `owner="team@acme.example"`: who answers for it.')
        elif not isinstance(source.owner, str) or not E_MAIL.fullmatch(source.owner):
            self.note("has an owner that is no e-mail address.", "owner", value=written(source.owner))
        self._location()
        self._schema()
        if source.fresh_within is not None and duration_s(source.fresh_within) is None:
            do = f"Write a whole number and a unit, at most {FRESH_DAYS_MAX} days: `90s`, `10m`, `6h`, `2d`, `1w`."
            self.note("has a wrong `fresh_within`.", "fresh_within", value=written(source.fresh_within), do=do)
        self._readers()

    def _location(self) -> None:
        location = self.source.location
        if not location:
            self.note("has no location.", do="Write where it is, in words or as a URL.")
        elif not isinstance(location, str):
            self.note("has a location that is no text.", "location", value=kind(location))
        elif USER_IN_URL.search(location) or SECRET_IN_TEXT.search(location):
            # What was written is not shown: it may be the secret.
            self.note(
                "has a location with a secret in it.", "location", do="Leave the secret out; nothing connects to it."
            )

    def _schema(self) -> None:
        schema: Any = self.source.schema
        if not isinstance(schema, Mapping):
            self.note("has a `schema` that is no dict.", "schema", value=kind(schema))
            return
        for column, declared in schema.items():
            if not isinstance(column, str) or not column or not isinstance(declared, str | type):
                self.note(
                    "has a `schema` that is not column -> type.", "schema", str(column), value=written(declared),
                    do='Write `{"customer_id": "string"}`.',
                )  # fmt: skip

    def _readers(self) -> None:
        declared = {
            "workflow": self.workflows,
            "features": {*self.features.views, *self.features.on_demand},
            "service": self.features.services,
        }
        every = {name for names in declared.values() for name in names}
        if not isinstance(self.source.readers, tuple) or isinstance(self.source.readers, str):
            self.note("has `readers` that are no list.", "readers", value=kind(self.source.readers))
            return
        for reader in self.source.readers:
            if not isinstance(reader, str) or not reader:
                self.note("has a reader that is no name.", "readers", value=written(reader))
                continue
            before, colon, name = reader.partition(":")
            if not colon:
                if reader not in every:
                    do = did_you_mean(reader, every)
                    self.note(
                        f"names a reader `{reader}` that is not declared.", "readers", value=written(reader),
                        do=f"{do} A Dataset is written `dataset:NAME`.",
                    )  # fmt: skip
            elif before not in READER_KINDS:
                do = did_you_mean(before, READER_KINDS)
                self.note("names a reader of an unknown kind.", "readers", value=written(reader), do=do)
            elif before != "dataset" and name not in declared[before]:
                do = did_you_mean(name, declared[before])
                self.note(f"names a reader `{reader}` that is not declared.", "readers", value=written(reader), do=do)


_NOT_ARGUMENTS = ("self", "place", "unknown")
