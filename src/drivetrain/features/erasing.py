"""Erasing in features: online vectors and pushed rows of a person go from every table's files.

Owns which vectors are about a person: those of entities that are declared with `subject=True`, whose key is the id. A
table that is not declared any more loses every vector that has the id among its keys. Called by erasure; readers go on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.features import Entity
from drivetrain.features.definitions import Definitions, KeyDefinition
from drivetrain.features.materialize import tables_of
from drivetrain.features.online import stored
from drivetrain.ports.online import OnlineStore

Keys = Sequence[Any]
_KEYS: msgspec.msgpack.Decoder[list[Any]] = msgspec.msgpack.Decoder(list)


def subject_keys(entities: Mapping[str, Entity]) -> tuple[str, ...]:
    """Join keys of the entities that are persons."""
    return tuple(dict.fromkeys(key for one in entities.values() if one.subject for key in one.join_keys))


class OnlineErasing:
    """What is to be erased of one subject in the online vectors."""

    def __init__(self, store: OnlineStore, definitions: Definitions, entities: Mapping[str, Entity], id_: str) -> None:
        self._store = store
        self._ids: dict[str, list[tuple[int, Any]]] = {}
        """Declared table -> (place in the key, the id as it stands there)."""
        self._any = list(_as_any(id_))
        keys = frozenset(subject_keys(entities))
        for lookup in tables_of(definitions, definitions.views):
            self._ids[lookup.layout.table] = list(_places(lookup.keys, keys, id_))

    def count(self) -> dict[str, int]:
        """Table -> vectors of them; changes nothing. Reads every vector."""
        found = {table: len(self._theirs(table)) for table in self._store.tables()}
        return {table: count for table, count in found.items() if count}

    def erase(self) -> dict[str, int]:
        """Table -> vectors that went. Each table that may have some is written anew, so that no earlier file stays."""
        found = {}
        for table in self._store.tables():
            theirs = self._theirs(table)
            if theirs or self._ids.get(table, self._any):
                # Writing anew takes along what a writer that was killed had left beside.
                count = self._store.remove(table, theirs or [_NOBODY])
                if count:
                    found[table] = count
        return found

    def _theirs(self, table: str) -> list[bytes]:
        if table not in self._ids:
            return [
                key
                for key, _ in self._store.scan(table)
                if any(_same(one, two) for one in _KEYS.decode(key) for two in self._any)
            ]
        places = self._ids[table]
        if not places:
            return []
        return [key for key, _ in self._store.scan(table) if _is_at(_KEYS.decode(key), places)]


_NOBODY = msgspec.msgpack.encode(["", "", "nobody"])
"""A key that no entity has."""


def _places(keys: Sequence[KeyDefinition], subjects: frozenset[str], id_: str) -> Iterable[tuple[int, Any]]:
    for place, key in enumerate(keys):
        if key.name in subjects:
            for value in _as_any(id_):
                try:
                    yield place, stored(key.dtype, value)
                except ValueError:
                    continue


def _as_any(id_: str) -> Iterable[Any]:
    """What an id may stand as: a text, and a whole number where it is written as one."""
    yield id_
    if re.fullmatch("0|-?[1-9][0-9]{0,18}", id_):
        yield int(id_)


def _is_at(values: Sequence[Any], places: Sequence[tuple[int, Any]]) -> bool:
    return any(_same(values[place], value) for place, value in places)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)
