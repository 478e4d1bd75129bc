"""What stays outside: systems whose data is not in the lake, declared so that lineage and checks know of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Never

from drivetrain.core.declarations import Place, caller_place


class Source:
    """A system that cannot be consolidated: who owns it, where it is, what it holds, how fresh it must be."""

    __slots__ = ("description", "fresh_within", "location", "name", "owner", "place", "readers", "schema", "unknown")

    def __init__(
        self,
        name: str,
        *,
        owner: str = "",
        location: str = "",
        schema: Mapping[str, Any] | None = None,
        fresh_within: str | None = None,
        readers: Sequence[str] = (),
        description: str = "",
        place: Place | None = None,
        **unknown: Never,
    ) -> None:
        self.name = name
        self.owner = owner
        """Who answers for it: an e-mail address."""
        self.location = location
        """Where it is, in words or as a URL without any secret."""
        self.schema: Mapping[str, Any] = schema or {}
        """Column -> type, as far as anybody relies on it."""
        self.fresh_within = fresh_within
        """The oldest that its newest row may be: `90s`, `10m`, `6h`, `2d`; None: nothing is promised."""
        self.readers = tuple(readers)
        """Workflows, feature views and Datasets that read it."""
        self.description = description
        self.place = place or caller_place()
        self.unknown: Mapping[str, Any] = unknown
