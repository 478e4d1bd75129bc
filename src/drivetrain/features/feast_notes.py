"""What a translation tells of a Feast repository, and the names that it gives: shaped as they are here, and there once.

Owns which arguments are carried over at all; every other one that says something is noted. Called by the translation's
other files.
"""

from __future__ import annotations

import re
from typing import Any

from drivetrain.features.feast_reading import Declared, Note, Projected, TypeName, Unknown
from drivetrain.project.names import NAME

_CARRIED = {
    "Entity": {"name", "value_type", "join_key", "join_keys", "description", "owner", "tags", "labels"},
    "FeatureView": {
        "name", "entities", "ttl", "source", "batch_source", "stream_source", "schema", "features", "online",
        "description", "owner", "tags",
    },
    "OnDemandFeatureView": {
        "name", "sources", "inputs", "input_schema", "schema", "features", "udf", "udf_string", "mode",
        "feature_transformation", "singleton", "description", "owner", "tags",
    },
    "FeatureService": {"name", "features", "description", "owner", "tags"},
}  # fmt: skip
_CARRIED["BatchFeatureView"] = _CARRIED["StreamFeatureView"] = {
    *_CARRIED["FeatureView"], "aggregations", "mode", "udf", "udf_string", "feature_transformation", "timestamp_field",
}  # fmt: skip
_SAYS_NOTHING = {"offline", "version", "org", "track_metrics", "enabled", "stream_engine", "batch_engine",
                 "enable_tiling", "tiling_hop_size", "precompute_online"}  # fmt: skip
"""Arguments that tune Feast's own engines."""


class Notes:
    """What is told, in the order in which it was found, and the names that are taken."""

    def __init__(self) -> None:
        self.all: list[Note] = []
        self._names: dict[str, set[str]] = {}

    def note(self, one: Declared, what: str, do: str = "") -> None:
        """Tell something of a declaration."""
        self.all.append(Note(file=one.file, line=one.line, what=what, do=do))

    def check_arguments(self, one: Declared) -> None:
        """Tell which arguments of a declaration are not carried over."""
        for name, value in one.arguments.items():
            carried = _CARRIED.get(one.kind, set())
            if name in carried or name in _SAYS_NOTHING or value in (None, False, "", [], {}) or not carried:
                continue
            self.note(one, f"`{name}` of {one.kind} `{one.name}` is not carried over.")
        if one.listed("tags") and one.kind in ("Entity", "FeatureService", "OnDemandFeatureView"):
            self.note(one, f"The tags of {one.kind} `{one.name}` are not carried over.")

    def name(self, kind: str, one: Declared) -> str:
        """A name as they are here, once."""
        shaped = shape(one.name)
        made = self.unique(kind, shaped)
        if made != one.name:
            self.note(one, f"{one.kind} `{one.name}` is called `{made}` here.",
                       "Names are lower-case here, and there once.")  # fmt: skip
        return made

    def unique(self, kind: str, name: str) -> str:
        """A name that nothing of its kind has yet."""
        taken = self._names.setdefault(kind, set())
        made, number = name, 1
        while made in taken:
            number += 1
            made = f"{name[:58]}_{number}"
        taken.add(made)
        return made


def shape(name: str) -> str:
    """A name as names are here, of the same letters as far as these may stand in one."""
    if NAME.fullmatch(name):
        return name
    shaped = re.sub(r"[^a-z0-9_-]+", "_", name.lower()).strip("_-")[:60]
    return shaped if NAME.fullmatch(shaped) else f"f_{shaped}"[:64]


def shown(value: Any) -> str:
    """A value of the repository, for a note."""
    if isinstance(value, Projected):
        value = value.view
    if isinstance(value, Declared):
        return f"{value.kind} `{value.name}`"
    if isinstance(value, TypeName):
        return value.name
    if isinstance(value, Unknown):
        return value.text
    return repr(value)[:80]
