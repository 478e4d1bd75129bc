"""OpenLineage events of what was made, to a file or an endpoint, with the types of OpenLineage's own client.

Each record becomes one RunEvent of type COMPLETE. Its run id follows from the record, so events that are sent twice
are the same run. The client library is the extra `lineage`, imported when the first event is made.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.lineage import MadeV1
from drivetrain.core.times import iso
from drivetrain.lineage.artifacts import parse_artifact
from drivetrain.lineage.graph import Graph
from drivetrain.ports.disk import SHARED_MODE, whole_file
from drivetrain.version import VERSION

PRODUCER = f"https://pypi.org/project/drivetrain/{VERSION}/"
SEND_TIMEOUT_S = 10.0
"""For all events together: whoever runs the command waits for it, and the file is written before."""
DEFAULT_PATH = "/api/v1/lineage"
"""Where endpoints of OpenLineage take events; used where the URL names no path."""
RUN_IDS = uuid.UUID("6f2c8a52-5f0e-5d0c-9a39-2f6f0b8d4a11")
"""Namespace of run ids."""
ROWS_FACT = "rows"
REPORTED_CHARS_MAX = 200
"""Of what an endpoint says when it refuses."""


class Sent(msgspec.Struct, frozen=True):
    """How sending went."""

    sent: int
    """Events that the endpoint took, in order."""
    of: int
    problem: str = ""
    """Why it was not all of them."""


def run_events(graph: Graph, artifacts: Iterable[str], *, namespace: str) -> Iterator[Any]:
    """A RunEvent per record of `artifacts`, oldest first. namespace: the project's name.

    Raises: DrivetrainError where the client library is missing.
    """
    types = _client()
    made = [one for artifact in artifacts for one in graph.makings(artifact)]
    made.sort(key=lambda one: (one.at_ns, one.artifact))
    return (types.event(graph, one, namespace) for one in made)


def event_json(event: Any) -> str:
    """One event as one line of JSON."""
    from openlineage.client.serde import Serde

    return json.dumps(Serde.to_dict(event), sort_keys=True, ensure_ascii=True)


def write_events(path: Path, events: Iterable[Any]) -> int:
    """Write events as lines of JSON and say how many; the file is whole or as it was. Raises: DrivetrainError."""
    count = 0
    try:
        with whole_file(path, mode=SHARED_MODE) as file:
            for event in events:
                file.write(event_json(event).encode("ascii") + b"\n")
                count += 1
    except OSError as error:
        raise DrivetrainError(f"{path} cannot be written: {error.strerror}.", do="Name a file that can be.") from error
    return count


def check_endpoint(url: str) -> SplitResult:
    """The parts of an endpoint's URL. Raises: DrivetrainError where it is none, or carries a secret."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise DrivetrainError(
            f"`{url}` is no endpoint.", do="Write `http://HOST:PORT` or `https://HOST/api/v1/lineage`."
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise DrivetrainError(
            "The endpoint's URL has a user, a query or a fragment, which may hold a secret.",
            do="Leave it out, and put a key into the environment variable OPENLINEAGE_API_KEY.",
        )
    return parts


def send_events(
    url: str,
    events: Iterable[Any],
    *,
    api_key: str = "",
    timeout_s: float = SEND_TIMEOUT_S,
    monotonic: Callable[[], float] = time.monotonic,
) -> Sent:
    """Post events to an endpoint one by one, for at most `timeout_s` in all, and say how far it came.

    api_key: sent as a bearer token. Raises: DrivetrainError where `url` is no endpoint.
    """
    parts = check_endpoint(url)
    bodies = [event_json(event).encode() for event in events]
    sending = _Sending(parts, bodies, api_key, monotonic() + timeout_s, monotonic)
    # A thread of its own, since looking up a name or a server that drips bytes cannot be bounded otherwise.
    worker = threading.Thread(target=sending.run, name="drivetrain-openlineage", daemon=True)
    worker.start()
    worker.join(timeout_s)
    problem = sending.problem
    if worker.is_alive():
        sending.stop()
        problem = f"it did not take everything within {timeout_s:g} s"
    return Sent(sending.sent, len(bodies), problem)


class _Sending:
    """Posts bodies over one connection until the first that is not taken."""

    def __init__(
        self,
        parts: SplitResult,
        bodies: list[bytes],
        api_key: str,
        until: float,
        monotonic: Callable[[], float],
    ) -> None:
        self._parts = parts
        self._bodies = bodies
        self._headers = {"content-type": "application/json", "user-agent": f"drivetrain/{VERSION}"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._until = until
        self._monotonic = monotonic
        self._connection: HTTPConnection | None = None
        self._stopped = False
        self.sent = 0
        self.problem = ""

    def run(self) -> None:
        try:
            for body in self._bodies:
                if self._stopped or not self._post(body):
                    return
                self.sent += 1
        except (OSError, HTTPException, ValueError) as error:
            self.problem = f"{type(error).__name__}: {error}"[:REPORTED_CHARS_MAX]
        finally:
            self.stop()

    def stop(self) -> None:
        self._stopped = True
        if self._connection is not None:
            self._connection.close()

    def _post(self, body: bytes) -> bool:
        if self._connection is None:
            self._connection = self._opened()
        self._connection.request("POST", self._parts.path.rstrip("/") or DEFAULT_PATH, body, self._headers)
        answer = self._connection.getresponse()
        said = answer.read(REPORTED_CHARS_MAX)
        if 200 <= answer.status < 300:
            if not answer.isclosed():
                # What follows of its answer is of no interest, and must not be taken for the next one's.
                self._connection.close()
                self._connection = None
            return True
        self.problem = f"it answered {answer.status}: {said.decode('utf-8', 'replace')}"
        return False

    def _opened(self) -> HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        left_s = max(0.1, self._until - self._monotonic())
        if self._parts.scheme == "http":
            return HTTPConnection(host, port, timeout=left_s)
        return HTTPSConnection(host, port, timeout=left_s, context=ssl.create_default_context())


def _client() -> _Types:
    try:
        return _Types()
    except ImportError as error:
        raise DrivetrainError(
            "OpenLineage events need a library that is not installed.", do="Run `pip install 'drivetrain[lineage]'`."
        ) from error


class _Types:
    """The client's types, imported once events are wanted."""

    def __init__(self) -> None:
        from openlineage.client import event_v2, facet_v2

        self._events = event_v2
        self._facets = facet_v2

    def event(self, graph: Graph, made: MadeV1, namespace: str) -> Any:
        """The RunEvent of one record."""
        parts = parse_artifact(made.artifact)
        run_id = uuid.uuid5(RUN_IDS, f"{namespace}\0{made.artifact}\0{made.at_ns}")
        described: Any = self._facets.RunFacet(producer=PRODUCER).with_additional_properties(
            artifact=made.artifact, codeHash=made.code_hash, facts=dict(made.facts)
        )
        return self._events.RunEvent(
            eventTime=iso(made.at_ns),
            producer=PRODUCER,
            eventType=self._events.RunState.COMPLETE,
            run=self._events.Run(runId=str(run_id), facets={"drivetrain_made": described}),
            job=self._events.Job(namespace=namespace, name=parts.base, facets=self._job_facets(parts.kind)),
            inputs=[
                self._events.InputDataset(namespace=namespace, name=parse_artifact(one).base, facets=facets)
                for one, facets in ((one, self._facets_of(graph, one)) for one in made.inputs)
            ],
            outputs=[
                self._events.OutputDataset(
                    namespace=namespace,
                    name=parts.base,
                    facets=self._facets_of(graph, made.artifact),
                    outputFacets=self._statistics(made),
                )
            ],
        )

    def _job_facets(self, kind: str) -> dict[str, Any]:
        job_type = self._facets.job_type_job.JobTypeJobFacet(
            processingType="BATCH", integration="DRIVETRAIN", jobType=kind.upper(), producer=PRODUCER
        )
        return {"jobType": job_type}

    def _facets_of(self, graph: Graph, artifact: str) -> dict[str, Any]:
        """What is known of an artifact: its version, and its declared schema, description and owner."""
        facets, found = self._facets, {}
        version = parse_artifact(artifact).version
        if version:
            found["version"] = facets.dataset_version_dataset.DatasetVersionDatasetFacet(
                datasetVersion=version, producer=PRODUCER
            )
        node = graph.node(artifact)
        declared = node.declared
        if declared is not None and declared.schema:
            fields = [
                facets.schema_dataset.SchemaDatasetFacetFields(name=name, type=kind) for name, kind in declared.schema
            ]
            found["schema"] = facets.schema_dataset.SchemaDatasetFacet(fields=fields, producer=PRODUCER)
        if declared is not None and declared.description:
            found["documentation"] = facets.documentation_dataset.DocumentationDatasetFacet(
                description=declared.description, producer=PRODUCER
            )
        if declared is not None and declared.owner:
            owner = facets.ownership_dataset.Owner(name=declared.owner)
            found["ownership"] = facets.ownership_dataset.OwnershipDatasetFacet(owners=[owner], producer=PRODUCER)
        if node.erased:
            change = facets.lifecycle_state_change_dataset
            found["lifecycleStateChange"] = change.LifecycleStateChangeDatasetFacet(
                lifecycleStateChange=change.LifecycleStateChange.ALTER, producer=PRODUCER
            )
        return found

    def _statistics(self, made: MadeV1) -> dict[str, Any]:
        rows = made.facts.get(ROWS_FACT)
        if not isinstance(rows, int) or isinstance(rows, bool):
            return {}
        statistics = self._facets.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
            rowCount=rows, producer=PRODUCER
        )
        return {"outputStatistics": statistics}
