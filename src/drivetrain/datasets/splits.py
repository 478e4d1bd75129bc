"""Which rows are `train` and which are `test`: by hash, in whole groups, and the same when the data grows.

The law, for the same seed, key, `group_by` and threshold:
1. A row's member id is a hash of its key. Rows with the same key, and rows that are alike in `group_by`, are one group,
   and so is whatever these join.
2. A group's id is the least member id in it; its split is where hash(seed, group id) falls on the shares. So without an
   earlier number a row's split depends only on which rows there are, never on their order; without `group_by` it
   depends on its own key alone.
3. Where an earlier number was split in this way, a group keeps the id that most of its rows had there (of equal counts
   the least). So a row moves only if new rows join two groups that were apart, and then only the smaller one's.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.codec import MSGPACK
from drivetrain.core.datasets import NAME, SplitV1
from drivetrain.core.errors import DrivetrainError
from drivetrain.datasets.similar import similar_groups

SPLITS_MAX = 20
SIMILAR = 0.7
"""Where nobody says how alike: one word of ten is another."""


class Assigned(msgspec.Struct, frozen=True):
    """Where one row belongs."""

    split: str
    group: str


def parse_shares(text: str) -> tuple[tuple[str, float], ...]:
    """`train=0.8,test=0.2`. Raises: DrivetrainError."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.strip().partition("=")
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if not equals or NAME.fullmatch(name) is None or not 0 < share <= 1 or name in shares:
            raise _no_shares(f"`{part.strip()}` is no share of a split")
        shares[name] = share
    if len(shares) > SPLITS_MAX:
        raise _no_shares(f"There are {len(shares)} splits, and at most {SPLITS_MAX} are allowed")
    if abs(sum(shares.values()) - 1) > 1e-9:
        raise _no_shares(f"The shares of `{text}` add up to {sum(shares.values()):g}")
    return tuple(shares.items())


def assign(
    split: SplitV1,
    keys: Sequence[Sequence[Any]],
    grouped: Sequence[Any] | None = None,
    earlier: Mapping[str, str] | None = None,
) -> list[Assigned]:
    """Per row its split and group.

    keys: each row's key. grouped: each row's value of `group_by`. earlier: member id -> group id in the number before.
    Raises: DrivetrainError.
    """
    members = [member_id(key) for key in keys]
    groups = _named(members, _together(split, members, grouped), earlier or {})
    return [Assigned(share_of(split, group), group) for group in groups]


def member_id(key: Sequence[Any]) -> str:
    """16 hex digits of a row's key."""
    return hashlib.sha256(MSGPACK.encode(list(key))).hexdigest()[:16]


def share_of(split: SplitV1, group: str) -> str:
    """The split of a group."""
    digest = hashlib.sha256(f"{split.seed}\0{group}".encode()).digest()
    at = int.from_bytes(digest[:8]) / 2**64
    end = 0.0
    for name, share in split.shares:
        end += share
        if at < end:
            return name
    return split.shares[-1][0]  # the shares add up to a hair less than 1


def _together(split: SplitV1, members: Sequence[str], grouped: Sequence[Any] | None) -> list[int]:
    """Per row the first row that it belongs to."""
    parents = list(range(len(members)))
    _unite(parents, members)
    if grouped is not None:
        present = [place for place, value in enumerate(grouped) if value is not None]
        if split.similar < 1:
            alike = similar_groups([str(grouped[place]) for place in present], split.similar)
            for place, first in zip(present, alike, strict=True):
                _join(parents, place, present[first])
        else:
            first_of: dict[bytes, int] = {}
            for place in present:
                _join(parents, place, first_of.setdefault(MSGPACK.encode(grouped[place]), place))
    return [_root(parents, place) for place in range(len(parents))]


def _named(members: Sequence[str], roots: Sequence[int], earlier: Mapping[str, str]) -> list[str]:
    least: dict[int, str] = {}
    before: dict[int, Counter[str]] = {}
    for member, root in zip(members, roots, strict=True):
        least[root] = min(member, least.get(root, member))
        known = earlier.get(member)
        if known is not None:
            before.setdefault(root, Counter())[known] += 1
    names = {
        root: min(before[root].items(), key=lambda one: (-one[1], one[0]))[0] if root in before else name
        for root, name in least.items()
    }
    return [names[root] for root in roots]


def _unite(parents: list[int], values: Iterable[str]) -> None:
    first: dict[str, int] = {}
    for place, value in enumerate(values):
        _join(parents, place, first.setdefault(value, place))


def _root(parents: list[int], at: int) -> int:
    while parents[at] != at:
        parents[at] = parents[parents[at]]
        at = parents[at]
    return at


def _join(parents: list[int], one: int, other: int) -> None:
    first, second = sorted((_root(parents, one), _root(parents, other)))
    parents[second] = first


def _no_shares(what: str) -> DrivetrainError:
    return DrivetrainError(f"{what}.", do="Write shares that add up to 1: train=0.8,test=0.2.")
