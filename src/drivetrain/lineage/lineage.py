"""Lineage of a project: record what was made, and ask what came from what.

The one door of this room for Python. The control log is injected; the Snapshot is needed only for what is declared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from drivetrain.core.lineage import MadeV1
from drivetrain.lineage import openlineage
from drivetrain.lineage.declared import declared_artifacts
from drivetrain.lineage.graph import Graph
from drivetrain.lineage.made import ErasedV1, read_history, record_erased, record_made
from drivetrain.ports.control import ControlLog
from drivetrain.project.snapshot import Snapshot

Facts = Mapping[str, str | int | float | bool]


class Lineage:
    """Records of a control log, and the graph over them.

    control: what is made is recorded there. snapshot: of whose declarations the graph knows too. actor: who makes.
    """

    def __init__(
        self,
        control: ControlLog,
        snapshot: Snapshot | None = None,
        *,
        actor: str = "",
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._control = control
        self._snapshot = snapshot
        self._actor = actor
        self._now_ns = now_ns

    def made(
        self, artifact: str, *, inputs: Sequence[str] = (), code_hash: str = "", facts: Facts | None = None
    ) -> MadeV1:
        """Record that `artifact` came to be now. Raises: DrivetrainError as `record_made`."""
        return record_made(
            self._control,
            artifact,
            at_ns=self._now_ns(),
            inputs=inputs,
            code_hash=code_hash,
            facts=facts,
            actor=self._actor,
        )

    def erased(self, artifact: str, *, facts: Facts | None = None) -> ErasedV1:
        """Record that `artifact`, or rows of it, are gone now. Raises: DrivetrainError as `record_made`."""
        return record_erased(self._control, artifact, at_ns=self._now_ns(), facts=facts, actor=self._actor)

    def graph(self) -> Graph:
        """Everything known now. Reads the whole control log: 10,000 records take about 0.2 s."""
        return Graph(read_history(self._control.records()), declared_artifacts(self._snapshot))

    def upstream(self, artifact: str, depth: int | None = None) -> dict[str, int]:
        """Everything that an artifact was made from -> over how many steps. Raises: DrivetrainError where unknown."""
        graph = self.graph()
        return graph.upstream(graph.resolve(artifact), depth)

    def downstream(self, artifact: str, depth: int | None = None) -> dict[str, int]:
        """Everything that was made from an artifact -> over how many steps. Raises: DrivetrainError where unknown."""
        graph = self.graph()
        return graph.downstream(graph.resolve(artifact), depth)

    def openlineage(self, namespace: str) -> Iterator[Any]:
        """An OpenLineage RunEvent per record, oldest first. Needs the extra `lineage`."""
        graph = self.graph()
        return openlineage.run_events(graph, graph, namespace=namespace)
