"""The graph of artifacts: records of the control log and a project's declarations, walked upstream and downstream.

What came later changes no past: upstream of an artifact is what held when it was made, by the newest record then; where
an input was recorded only later, by its first. A version that was never recorded has what is declared of its name. A
name without a version stands for what is declared and for its newest version. What stays outside is an input of each
reader that it names, in every version. Downstream is whatever any record says was made from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.lineage import MadeV1
from drivetrain.lineage.artifacts import LEDGER_TABLES, Artifact, parse_artifact
from drivetrain.lineage.declared import Declared
from drivetrain.lineage.made import ErasedV1, History, Making

CANDIDATES_SHOWN = 20
"""Artifacts that an ambiguous name may be, in its error."""
PREFIX_CHARS_MIN = 4
"""A version may be shortened to this many characters, as hashes are."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one artifact."""

    artifact: str
    made: MadeV1 | None = None
    """Its newest record, of those that held at the moment in question; None where there is none."""
    actor: str = ""
    times: int = 0
    """How often it was recorded."""
    erased: tuple[ErasedV1, ...] = ()
    declared: Declared | None = None
    """What is declared of it, or of its name where it is a version."""
    newest: str = ""
    """Its newest version, of a name without one that was not recorded itself."""

    @property
    def standing(self) -> str:
        """`made`, `outside`, `declared`, `newest` (a name that stands for its newest version), `ledger` (the project's
        own records), `file`, or `unrecorded`: it was used, and nobody recorded how it came to be."""
        parts = parse_artifact(self.artifact)
        if self.made is not None:
            return "made"
        if self.declared is not None:
            return "outside" if self.declared.outside else "declared"
        if self.newest:
            return "newest"
        if parts.kind == "table" and parts.name in LEDGER_TABLES:
            return "ledger"
        return "file" if parts.kind == "file" else "unrecorded"


class Step(msgspec.Struct, frozen=True):
    """One line of a tree."""

    artifact: str
    is_last: bool
    """Whether it is the last at its level."""
    level: int
    """1 for what the tree's root touches."""
    above: Step | None = None
    """The line that it hangs below; None: the root."""
    why: str = ""
    """`repeated` (its own inputs stand above), `cycle` (it is above itself), `cut` (deeper than asked for); or empty:
    what is below it follows."""
    at_ns: int | None = None
    """When what hangs above it was made: the moment of which it is told; None: now."""


class _Place(msgspec.Struct, frozen=True):
    """An artifact on a walk. Upstream the moment is when it was needed, downstream from when on readers count."""

    artifact: str
    moment_ns: int | None = None


class Graph:
    """Artifacts and what each was made from. Built in one pass over the records."""

    def __init__(self, history: History, declared: Mapping[str, Declared]) -> None:
        self._history = history
        self._declared = declared
        self._versions = _versions(history)
        self._inputs: dict[str, tuple[str, ...]] = {}
        self._outputs: dict[str, list[str]] = {}
        self._told = {
            artifact: frozenset(one for making in makings for one in self._recorded(making.made))
            for artifact, makings in history.made.items()
        }
        waiting = [*history.made, *history.erased, *declared]
        while waiting:
            artifact = waiting.pop()
            if artifact in self._inputs:
                continue
            inputs = self._inputs[artifact] = self._inputs_of(artifact)
            waiting.extend(inputs)
        for artifact in sorted(self._inputs, key=self._age):
            for one in self._inputs[artifact]:
                self._outputs.setdefault(one, []).append(artifact)

    def __len__(self) -> int:
        return len(self._inputs)

    def __contains__(self, artifact: str) -> bool:
        return artifact in self._inputs

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._inputs))

    @property
    def unreadable(self) -> tuple[int, ...]:
        """Records of the control log that could not be read."""
        return self._history.unreadable

    def node(self, artifact: str, at_ns: int | None = None) -> Node:
        """What is known of an artifact, by the record that held at `at_ns` (None: now); it need not be in the graph."""
        makings = self._history.made.get(artifact, ())
        held = self._held(artifact, at_ns)
        declared = self._declared.get(artifact) or self._declared.get(parse_artifact(artifact).base)
        return Node(
            artifact=artifact,
            made=held.made if held is not None else None,
            actor=held.actor if held is not None else "",
            times=len(makings),
            erased=self._history.erased.get(artifact, ()),
            declared=declared,
            newest=(self._newest(artifact, at_ns) or "") if not makings else "",
        )

    def makings(self, artifact: str) -> tuple[MadeV1, ...]:
        """Each record of an artifact, oldest first."""
        return tuple(one.made for one in self._history.made.get(artifact, ()))

    def inputs(self, artifact: str) -> tuple[str, ...]:
        """What it was made from, directly: by its newest record."""
        return tuple(one.artifact for one in self._above(_Place(artifact)))

    def outputs(self, artifact: str) -> tuple[str, ...]:
        """What was made from it, directly, oldest first."""
        return tuple(self._outputs.get(artifact, ()))

    def upstream(self, artifact: str, depth: int | None = None) -> dict[str, int]:
        """Everything that it was made from -> over how many steps, at least; the nearest first."""
        return self._reached(artifact, self._above, depth)

    def downstream(self, artifact: str, depth: int | None = None) -> dict[str, int]:
        """Everything that was made from it -> over how many steps, at least; the nearest first."""
        return self._reached(artifact, self._below, depth)

    def tree(self, artifact: str, *, downstream: bool = False, depth: int | None = None) -> Iterator[Step]:
        """What lies up- or downstream as lines of a tree; each artifact's own part is given once."""
        beside = self._below if downstream else self._above
        if depth is not None and depth < 1:
            return
        root = _Place(artifact)
        shown = {self._key(root)}
        path = {self._key(root)}
        stack: list[tuple[_Place, Iterator[tuple[_Place, bool]], Step | None]] = [(root, _marked(beside(root)), None)]
        while stack:
            place, children, above = stack[-1]
            child = next(children, None)
            if child is None:
                stack.pop()
                path.discard(self._key(place))
                continue
            one, is_last = child
            below, level, key = beside(one), len(stack), self._key(one)
            why = ""
            if key in path:
                why = "cycle"
            elif below and key in shown:
                why = "repeated"
            elif below and depth is not None and level >= depth:
                why = "cut"
            step = Step(one.artifact, is_last, level, above, why, None if downstream else one.moment_ns)
            yield step
            if below and not why:
                shown.add(key)
                path.add(key)
                stack.append((one, _marked(below), step))

    def cycles(self, artifacts: Iterable[str]) -> list[tuple[str, ...]]:
        """Groups of `artifacts` of which each was made from each other: a mistake of whoever recorded them."""
        return _cycles(set(artifacts), self._inputs)

    def resolve(self, text: str) -> str:
        """The artifact that somebody means by an id, a name, `NAME@VERSION`, or one with a shortened version.

        A name without version is the newest version, or what is declared where no version was made.
        Raises: DrivetrainError where nothing is called that, with the nearest name, or where several are.
        """
        if text in self._inputs:
            # Of a Dataset its readers' declarations say nothing but that it is read.
            is_itself = text in self._history.made or (text in self._declared and not text.startswith("dataset:"))
            return text if is_itself else self._newest(text) or text
        found = self._matching(text)
        if not found:
            names = {name for one in self._inputs for name in (one, one.partition(":")[2])}
            raise DrivetrainError(
                f"Nothing is known of `{text}`.",
                looked=[f"{len(self._history.made)} recorded and {len(self._declared)} declared artifacts"],
                do=did_you_mean(text, names) if names else "Nothing was recorded or declared yet.",
            )
        if len(found) > 1:
            listed = ", ".join(f"`{one}`" for one in found[:CANDIDATES_SHOWN])
            more = f" and {len(found) - CANDIDATES_SHOWN} more" if len(found) > CANDIDATES_SHOWN else ""
            raise DrivetrainError(f"`{text}` may be {listed}{more}.", do="Write its kind in front, and its version.")
        return found[0]

    def _matching(self, text: str) -> list[str]:
        name, at, version = text.rpartition("@")
        bases: dict[str, list[Artifact]] = {}
        for one in self._inputs:
            parts = parse_artifact(one)
            if text in (parts.base, parts.name) or (at and name in (parts.base, parts.name)):
                bases.setdefault(parts.base, []).append(parts)
        whole = [base for base, versions in bases.items() if text in (base, versions[0].name)]
        if whole:
            return sorted(self._newest(base) or base for base in whole)
        every = [one for versions in bases.values() for one in versions]
        exact = sorted(str(one) for one in every if one.version == version)
        if exact or len(version) < PREFIX_CHARS_MIN:
            return exact
        return sorted(str(one) for one in every if one.version.startswith(version))

    def _newest(self, base: str, at_ns: int | None = None) -> str | None:
        """The version of a name that was made last, of those made until `at_ns`; None where there is none."""
        versions = self._versions.get(base, ())
        if at_ns is None:
            return versions[-1] if versions else None
        return next((one for one in reversed(versions) if self._history.made[one][0].made.at_ns <= at_ns), None)

    def _held(self, artifact: str, at_ns: int | None) -> Making | None:
        """The record that held then: the newest until then, or the first where all came later."""
        makings = self._history.made.get(artifact, ())
        if not makings:
            return None
        if at_ns is None:
            return makings[-1]
        return next((one for one in reversed(makings) if one.made.at_ns <= at_ns), makings[0])

    def _inputs_of(self, artifact: str) -> tuple[str, ...]:
        """Its inputs by any record, newest first."""
        makings = self._history.made.get(artifact, ())
        found = dict.fromkeys(one for making in reversed(makings) for one in self._recorded(making.made))
        found |= dict.fromkeys(self._understood(artifact, None))
        return tuple(found)

    def _recorded(self, made: MadeV1) -> tuple[str, ...]:
        """The inputs of one record; a name without a version, which nobody recorded, is what was its newest then."""
        makings = self._history.made
        return tuple(one if one in makings else self._newest(one, made.at_ns) or one for one in made.inputs)

    def _understood(self, artifact: str, at_ns: int | None) -> Iterator[str]:
        """The inputs that no record says: what is declared, and a name's newest version."""
        base = parse_artifact(artifact).base
        declared = self._declared.get(base)
        if declared is not None:
            recorded = artifact != base and artifact in self._history.made
            yield from (one for one in declared.inputs if not recorded or self._is_outside(one))
        newest = self._newest(base, at_ns) if artifact == base else None
        if newest is not None:
            yield newest

    def _above(self, place: _Place) -> tuple[_Place, ...]:
        """What it was made from, each as of when it was made."""
        held = self._held(place.artifact, place.moment_ns)
        made_ns = place.moment_ns if held is None else held.made.at_ns
        found = dict.fromkeys(() if held is None else self._recorded(held.made))
        found |= dict.fromkeys(self._understood(place.artifact, place.moment_ns))
        return tuple(_Place(one, made_ns) for one in found)

    def _below(self, place: _Place) -> tuple[_Place, ...]:
        """What was made from it. By way of a name alone, only what was made after it."""
        makings = self._history.made.get(place.artifact, ())
        is_version = bool(makings) and bool(parse_artifact(place.artifact).version)
        since_ns = makings[0].made.at_ns if is_version else place.moment_ns
        found = []
        for one in self._outputs.get(place.artifact, ()):
            readers = self._history.made.get(one, ())
            late = not is_version or place.artifact not in self._told.get(one, ())
            if late and since_ns is not None and readers and readers[-1].made.at_ns < since_ns:
                continue
            found.append(_Place(one, since_ns if late and not readers else None))
        return tuple(found)

    def _key(self, place: _Place) -> _Place:
        """Places of one key have the same about them."""
        held = self._held(place.artifact, place.moment_ns)
        return _Place(place.artifact, None if held is None else held.made.at_ns)

    def _reached(self, start: str, beside: Callable[[_Place], tuple[_Place, ...]], depth: int | None) -> dict[str, int]:
        found: dict[str, int] = {start: 0}
        seen = {self._key(_Place(start))}
        level, far = [_Place(start)], 0
        while level and (depth is None or far < depth):
            far += 1
            beyond = []
            for place in level:
                for one in beside(place):
                    key = self._key(one)
                    if key not in seen:
                        seen.add(key)
                        found.setdefault(one.artifact, far)
                        beyond.append(one)
            level = beyond
        del found[start]
        return found

    def _is_outside(self, artifact: str) -> bool:
        declared = self._declared.get(artifact)
        return declared is not None and declared.outside

    def _age(self, artifact: str) -> tuple[int, str]:
        makings = self._history.made.get(artifact)
        return (makings[-1].made.at_ns if makings else 0, artifact)


def _versions(history: History) -> dict[str, list[str]]:
    """Name -> its recorded versions, the one that was made last at the end."""
    found: dict[str, list[str]] = {}
    for artifact, _ in sorted(history.made.items(), key=lambda one: (one[1][-1].made.at_ns, one[1][-1].seq)):
        parts = parse_artifact(artifact)
        if parts.version:
            found.setdefault(parts.base, []).append(artifact)
    return found


def _marked(children: tuple[_Place, ...]) -> Iterator[tuple[_Place, bool]]:
    """Each child, and whether it is the last."""
    for number, one in enumerate(children, start=1):
        yield one, number == len(children)


def _cycles(within: set[str], edges: Mapping[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Strongly connected components of more than one artifact, and artifacts that are their own input.

    Source: R. Tarjan, Depth-first search and linear graph algorithms (1972), with a stack of its own.
    """
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    waiting: list[str] = []
    standing: set[str] = set()
    found: list[tuple[str, ...]] = []
    for root in sorted(within):
        if root in number:
            continue
        work = [(root, iter(edges.get(root, ())))]
        number[root] = low[root] = len(number)
        waiting.append(root)
        standing.add(root)
        while work:
            artifact, inputs = work[-1]
            deeper = next((one for one in inputs if one in within and one not in number), None)
            if deeper is not None:
                number[deeper] = low[deeper] = len(number)
                waiting.append(deeper)
                standing.add(deeper)
                work.append((deeper, iter(edges.get(deeper, ()))))
                continue
            work.pop()
            near = [one for one in edges.get(artifact, ()) if one in standing]
            low[artifact] = min([low[artifact], *(low[one] for one in near)])
            if low[artifact] == number[artifact]:
                group = []
                while True:
                    one = waiting.pop()
                    standing.discard(one)
                    group.append(one)
                    if one == artifact:
                        break
                if len(group) > 1 or artifact in edges.get(artifact, ()):
                    found.append(tuple(sorted(group)))
    return sorted(found)
