"""Fields, windows and the ttl of a Feast view -> ours; each that has no counterpart is noted and left out.

Owns which type is which. Called by the translation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drivetrain.core.features import AGGREGATIONS
from drivetrain.core.times import DURATION_DAYS_MAX, duration_text
from drivetrain.features.checks import COLUMN, RESERVED
from drivetrain.features.feast_notes import Notes, shown
from drivetrain.features.feast_reading import Declared, Duration, TypeName
from drivetrain.features.feast_records import TAggregation, TField, TSource

TYPES = {
    "int32": "int64", "int64": "int64", "float32": "float64", "float64": "float64", "float": "float64",
    "double": "float64", "string": "string", "uuid": "string", "timeuuid": "string", "time_uuid": "string",
    "bool": "bool", "unixtimestamp": "timestamp", "unix_timestamp": "timestamp",
}  # fmt: skip
"""Type of Feast's, in small letters -> dtype."""
FUNCTIONS = {"avg": "mean", "count_distinct": "approx_distinct", **{one: one for one in AGGREGATIONS}}
_DAY_US = 86_400_000_000


def dtype_of(declared: Any) -> str | None:
    """The dtype of a type of Feast's; None where no feature has it."""
    if isinstance(declared, TypeName):
        return TYPES.get(declared.name.lower())
    return None


def fields_of(
    notes: Notes, view: Declared, listed: Sequence[Any], keys: set[str], source: TSource | None = None
) -> tuple[TField, ...]:
    """The fields that can be features, each name once; keys are passed over."""
    made: dict[str, TField] = {}
    times = {*RESERVED, *((source.timestamp, source.created) if source else ())} - {""}
    for one in listed:
        if not isinstance(one, Declared) or not one.name:
            notes.note(view, f"A field of `{view.name}` cannot be read: {shown(one)}.", "Add it by hand.")
            continue
        dtype = dtype_of(one.arguments.get("dtype"))
        if one.name in keys:
            continue
        where = f"`{one.name}` of `{view.name}`"
        if dtype is None:
            notes.note(one, f"{where} has the type {shown(one.arguments.get('dtype'))}, which no feature has.",
                       "Split it into columns of numbers, texts, booleans or times.")  # fmt: skip
        elif not COLUMN.fullmatch(one.name) or one.name.lower() in {name.lower() for name in made}:
            notes.note(one, f"{where} is a name that no column has here, or has twice.", "Rename the column.")
        elif one.name.lower() in {name.lower() for name in (*times, *keys)}:
            notes.note(one, f"{where} is a time or a key, and no feature.")
        else:
            if one.arguments.get("vector_index"):
                notes.note(one, f"The vector index of {where} is not carried over.")
            made[one.name] = TField(name=one.name, dtype=dtype, description=one.text("description"))
    return tuple(made.values())


def inferred(
    notes: Notes, view: Declared, keys: set[str], source: TSource, columns: Mapping[str, str]
) -> tuple[TField, ...]:
    """Features of a view that lists none, as Feast takes them: every column of its file but keys and times."""
    found = {
        name: dtype
        for name, dtype in columns.items()
        if name not in keys and name not in (source.timestamp, source.created, *RESERVED)
    }
    if not found:
        notes.note(view, f"`{view.name}` lists no features, and its columns cannot be looked up.",
                   "List them in `schema`.")  # fmt: skip
    for name, dtype in found.items():
        if not dtype or not COLUMN.fullmatch(name):
            notes.note(view, f"`{name}` of `{view.name}` has a type that no feature has, or a name.")
    return tuple(TField(name=name, dtype=dtype) for name, dtype in found.items() if dtype and COLUMN.fullmatch(name))


def aggregations_of(notes: Notes, view: Declared) -> tuple[TAggregation, ...]:
    """The windows of a view."""
    made: dict[str, TAggregation] = {}
    for one in view.listed("aggregations"):
        if not isinstance(one, Declared):
            continue
        function, window = FUNCTIONS.get(one.text("function").lower()), one.arguments.get("time_window")
        over = duration_text(window.us) if isinstance(window, Duration) and window.us > 0 else None
        column = one.text("column")
        if function is None or over is None or not isinstance(window, Duration) or not COLUMN.fullmatch(column):
            notes.note(one, f"The aggregation `{one.text('function')}` of `{column}` is not carried over.",
                       f"Functions are {', '.join(AGGREGATIONS)}, over whole seconds.")  # fmt: skip
            continue
        if one.text("function") == "count_distinct":
            notes.note(one, f"`count_distinct` of `{column}` becomes `approx_distinct`, which is an estimate.")
        seconds = window.us // 1_000_000
        name = one.name or f"{one.text('function')}_{column}_{seconds}s"
        made[name] = TAggregation(function=function, column=column, over=over, name=name)
    return tuple(made.values())


def ttl_us_of(notes: Notes, view: Declared) -> int | None:
    """How long rows of a view hold; None: for ever."""
    ttl = view.arguments.get("ttl")
    if isinstance(ttl, Duration) and 0 < ttl.us <= DURATION_DAYS_MAX * _DAY_US:
        return ttl.us
    if ttl is not None and (not isinstance(ttl, Duration) or ttl.us < 0):
        notes.note(view, f"The ttl of `{view.name}` cannot be read: {shown(ttl)}; its rows hold for ever.",
                   'Write it: `ttl="2d"`.')  # fmt: skip
    return None
