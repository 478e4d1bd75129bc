"""The graph of artifacts: records of the control log and a project's declarations, walked upstream and downstream.

An artifact's inputs are those of its records, newest first. A version that was never recorded has what is declared of
its name. A name without a version stands for what is declared and for its newest version. What stays outside is an
input of each reader that it names, in every version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.lineage import MadeV1
from drivetrain.lineage.artifacts import LEDGER_TABLES, Artifact, parse_artifact
from drivetrain.lineage.declared import Declared
from drivetrain.lineage.made import ErasedV1, History

CANDIDATES_SHOWN = 20
"""Artifacts that an ambiguous name may be, in its error."""
PREFIX_CHARS_MIN = 4
"""A version may be shortened to this many characters, as hashes are."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one artifact."""

    artifact: str
    made: MadeV1 | None = None
    """Its newest record; None where there is none."""
    actor: str = ""
    times: int = 0
    """How often it was recorded."""
    erased: tuple[ErasedV1, ...] = ()
    declared: Declared | None = None
    """What is declared of it, or of its name where it is a version."""

    @property
    def standing(self) -> str:
        """`made`, `outside`, `declared`, `ledger` (the project's own records), `file`, or `unrecorded`: it was used,
        and nobody recorded how it came to be."""
        parts = parse_artifact(self.artifact)
        if self.made is not None:
            return "made"
        if self.declared is not None:
            return "outside" if self.declared.outside else "declared"
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


class Graph:
    """Artifacts and what each was made from. Built in one pass over the records."""

    def __init__(self, history: History, declared: Mapping[str, Declared]) -> None:
        self._history = history
        self._declared = declared
        self._versions = _versions(history)
        self._inputs: dict[str, tuple[str, ...]] = {}
        self._outputs: dict[str, list[str]] = {}
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

    def node(self, artifact: str) -> Node:
        """What is known of an artifact; it need not be in the graph."""
        makings = self._history.made.get(artifact, ())
        declared = self._declared.get(artifact) or self._declared.get(parse_artifact(artifact).base)
        return Node(
            artifact=artifact,
            made=makings[-1].made if makings else None,
            actor=makings[-1].actor if makings else "",
            times=len(makings),
            erased=self._history.erased.get(artifact, ()),
            declared=declared,
        )

    def makings(self, artifact: str) -> tuple[MadeV1, ...]:
        """Each record of an artifact, oldest first."""
        return tuple(one.made for one in self._history.made.get(artifact, ()))

    def inputs(self, artifact: str) -> tuple[str, ...]:
        """What it was made from, directly."""
        return self._inputs.get(artifact, ())

    def outputs(self, artifact: str) -> tuple[str, ...]:
        """What was made from it, directly, oldest first."""
        return tuple(self._outputs.get(artifact, ()))

    def upstream(self, artifact: str, depth: int | None = None) -> dict[str, int]:
        """Everything that it was made from -> over how many steps, at least; the nearest first."""
        return _reached(artifact, self._inputs, depth)

    def downstream(self, artifact: str, depth: int | None = None) -> dict[str, int]:
        """Everything that was made from it -> over how many steps, at least; the nearest first."""
        return _reached(artifact, self._outputs, depth)

    def tree(self, artifact: str, *, downstream: bool = False, depth: int | None = None) -> Iterator[Step]:
        """What lies up- or downstream as lines of a tree; each artifact's own part is given once."""
        edges: Mapping[str, Iterable[str]] = self._outputs if downstream else self._inputs
        if depth is not None and depth < 1:
            return
        shown = {artifact}
        path = {artifact}
        stack: list[tuple[str, Iterator[tuple[str, bool]], Step | None]] = [
            (artifact, _marked(edges.get(artifact, ())), None)
        ]
        while stack:
            name, children, above = stack[-1]
            child = next(children, None)
            if child is None:
                stack.pop()
                path.discard(name)
                continue
            one, is_last = child
            below, level = edges.get(one, ()), len(stack)
            if one in path:
                yield Step(one, is_last, level, above, "cycle")
            elif not below:
                yield Step(one, is_last, level, above)
            elif one in shown:
                yield Step(one, is_last, level, above, "repeated")
            elif depth is not None and level >= depth:
                yield Step(one, is_last, level, above, "cut")
            else:
                shown.add(one)
                path.add(one)
                step = Step(one, is_last, level, above)
                yield step
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
            return text
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

    def _newest(self, base: str) -> str | None:
        versions = self._versions.get(base)
        return versions[-1] if versions else None

    def _inputs_of(self, artifact: str) -> tuple[str, ...]:
        makings = self._history.made.get(artifact, ())
        found = dict.fromkeys(one for making in reversed(makings) for one in making.made.inputs)
        base = parse_artifact(artifact).base
        declared = self._declared.get(base)
        if declared is not None:
            recorded = artifact != base and bool(makings)
            found |= dict.fromkeys(one for one in declared.inputs if not recorded or self._is_outside(one))
        if artifact == base:
            newest = self._newest(base)
            if newest is not None and newest != artifact:
                found[newest] = None
        return tuple(found)

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


def _marked(children: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Each child, and whether it is the last."""
    listed = tuple(children)
    for place, one in enumerate(listed, start=1):
        yield one, place == len(listed)


def _reached(start: str, edges: Mapping[str, Iterable[str]], depth: int | None) -> dict[str, int]:
    found: dict[str, int] = {start: 0}
    level, far = [start], 0
    while level and (depth is None or far < depth):
        far += 1
        beyond = []
        for artifact in level:
            for one in edges.get(artifact, ()):
                if one not in found:
                    found[one] = far
                    beyond.append(one)
        level = beyond
    del found[start]
    return found


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
