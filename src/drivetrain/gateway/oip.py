"""Open Inference Protocol v2 (KServe's predict protocol): what the gateway answers below `/v2`.

A model is a workflow, and each row of a request's batch is one Call through the same path as any other: the same keys,
limits, attribution, route, policy and ledger. The rows of a request start some at a time, so that trained models score
them together and others are served between. Errors have the protocol's shape, `{"error": "..."}`. The specification:
https://github.com/kserve/open-inference-protocol
Called by the application; what a tensor is stands in `gateway/oip_tensors.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

import msgspec

from drivetrain.core.calls import Attribution
from drivetrain.core.errors import RequestError, report_fault
from drivetrain.execution.admission import Admitted, too_deep
from drivetrain.execution.call import CallResult, Client, Execution
from drivetrain.execution.environment import Asked
from drivetrain.execution.plan import WorkflowPlan
from drivetrain.gateway.answers import JSON_TYPE, answered, call_headers, error_headers, failed_headers
from drivetrain.gateway.arms import Arms, refused_note
from drivetrain.gateway.http import Connection, Exchange, Request
from drivetrain.gateway.idempotency import Idempotency
from drivetrain.gateway.idempotency_answers import CLIENT_LEFT, Answering
from drivetrain.gateway.identity import Identity
from drivetrain.gateway.metrics import Counters
from drivetrain.gateway.oip_tensors import (
    DECISION,
    Batch,
    Tensor,
    inputs_of,
    metadata,
    output_tensors,
    outputs_of,
    read_batch,
    scalars,
)
from drivetrain.version import VERSION

PREFIX = b"/v2"
MODELS = b"/v2/models/"
GET, POST = b"GET", b"POST"
ROWS_A_TICK = 32
"""Of a batch; starting so many takes about a millisecond, for which everybody else waits."""


class Door(Protocol):
    """What the gateway does for each of its doors."""

    counters: Counters
    idempotency: Idempotency
    arms: Arms | None

    def identity(self, request: Request, connection: Connection) -> Identity: ...

    def plan(self, name: str, identity: Identity, param: str) -> WorkflowPlan: ...

    def attribution(
        self, identity: Identity, plan: WorkflowPlan, headers: Mapping[bytes, bytes], user: str
    ) -> Attribution: ...

    def asked(self, headers: Mapping[bytes, bytes]) -> Asked: ...

    def execution(
        self,
        plan: WorkflowPlan,
        admitted: Admitted,
        attribution: Attribution,
        asked: Asked,
        client: Client,
        *,
        now_ns: int,
        door: str,
        notes: tuple[str, ...] = (),
    ) -> Execution: ...

    def unfit(self) -> str: ...


class OpenInference:
    """`/v2`, and the paths below `/v2/models/` and `/v2/health/`."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def handle(self, method: bytes, path: bytes, request: Request, connection: Connection) -> Exchange | None:
        """method: GET for HEAD. path: without its query."""
        try:
            return self._routed(method, path, request, connection)
        except RequestError as error:
            self._refuse(connection, error)
        except RecursionError:
            self._refuse(connection, too_deep())
        except Exception as fault:  # noqa: BLE001  a fault of ours ends this request, and no other
            report_fault("gateway", fault)
            message = "the gateway failed at this request"
            self._refuse(connection, RequestError(500, message, code="internal_error", kind="server_error"))
        return None

    def _routed(self, method: bytes, path: bytes, request: Request, connection: Connection) -> Exchange | None:
        if path.startswith(MODELS):
            raw_name, *rest = path[len(MODELS) :].split(b"/")
            version = ""
            if len(rest) >= 2 and rest[0] == b"versions":
                version, rest = _text(rest[1]) or "-", rest[2:]
            if raw_name and rest in ([], [b"ready"], [b"infer"]):
                _allow(POST if rest == [b"infer"] else GET, method, request)
                identity = self._door.identity(request, connection)
                plan = self._door.plan(_text(raw_name), identity, "model")
                _check_version(plan, version)
                if rest == [b"infer"]:
                    return self._infer(plan, identity, request, connection, named=bool(version))
                self._ready(plan, connection) if rest else self._metadata(plan, connection)
                return None
        elif path in (PREFIX, b"/v2/health/live", b"/v2/health/ready"):
            _allow(GET, method, request)
            self._server(path, connection)
            return None
        raise RequestError(404, f"nothing answers on {path.decode('latin-1')[:200]}", code="unknown_path")

    # What is served.

    def _server(self, path: bytes, connection: Connection) -> None:
        if path == PREFIX:
            _answer(connection, 200, {"name": "drivetrain", "version": VERSION, "extensions": []})
        elif path == b"/v2/health/live":
            _answer(connection, 200, {"live": True})
        else:
            fit = not self._door.unfit()
            # The specification calls it `live` here too, and its servers `ready`.
            _answer(connection, 200 if fit else 503, {"ready": fit, "live": True})

    def _ready(self, plan: WorkflowPlan, connection: Connection) -> None:
        fit = not self._door.unfit()
        _answer(connection, 200 if fit else 503, {"name": plan.name, "ready": fit})

    def _metadata(self, plan: WorkflowPlan, connection: Connection) -> None:
        described = {
            "name": plan.name,
            "versions": [plan.snapshot],
            "platform": "drivetrain",
            "inputs": [metadata(one) for one in inputs_of(plan).tensors],
            "outputs": [metadata(one) for one in outputs_of(plan)],
        }
        _answer(connection, 200, described)

    # Calls.

    def _infer(
        self, plan: WorkflowPlan, identity: Identity, request: Request, connection: Connection, *, named: bool
    ) -> Exchange | None:
        """named: the request names the live version, so no canary answers it."""
        door = self._door
        admitted = _AdmittedBatch(plan, request.body)
        attribution = door.attribution(identity, plan, request.headers, "")
        asked = door.asked(request.headers)
        notes: tuple[str, ...] = ()
        candidate = door.arms.plan(plan, attribution) if door.arms is not None and not named else None
        if candidate is not None:
            try:
                admitted = _AdmittedBatch(candidate, request.body)
            except RequestError as error:
                notes = (refused_note(error),)
        plan, batch, rows = admitted.plan, admitted.batch, admitted.rows

        def run(connection: Answering) -> Exchange:
            now_ns = time.time_ns()
            running = _Running(door.counters, plan, batch, connection, now_ns)
            running.start(
                [
                    door.execution(
                        plan, one, attribution, asked, _Row(running, row), now_ns=now_ns, door="workflow", notes=notes
                    )
                    for row, one in enumerate(rows)
                ]
            )
            return running

        raw_key = request.headers.get(b"idempotency-key")
        if raw_key is None:
            return run(connection)
        scope = (identity.tenant, identity.key, "infer", plan.name)
        return door.idempotency.begin(scope, raw_key, request.body, _ProtocolErrors(connection), run)

    def _refuse(self, connection: Answering, error: RequestError) -> None:
        self._door.counters.refuse(error.code)
        connection.answer(error.status, error_headers(error), _error_body(error.what))


class _AdmittedBatch:
    """A request's rows as one plan admits them. Raises: RequestError."""

    __slots__ = ("batch", "plan", "rows")

    def __init__(self, plan: WorkflowPlan, body: bytes) -> None:
        self.plan = plan
        self.batch = read_batch(plan, body)
        self.rows = [_admitted(plan, row, raw) for row, raw in enumerate(self.batch.rows)]


class _Row:
    """Whom one Call of a batch answers to."""

    __slots__ = ("_row", "_running")

    def __init__(self, running: _Running, row: int) -> None:
        self._running = running
        self._row = row

    def on_stream(self, data: bytes) -> None:
        raise AssertionError("a row of a batch asks for no stream")

    def on_finished(self, result: CallResult) -> None:
        self._running.ended(self._row, result)


class _Running:
    """The Calls of one request; the answer leaves when all of them have ended."""

    __slots__ = (
        "_batch", "_connection", "_counters", "_executions", "_left", "_opened_ns", "_plan", "_results", "_waiting",
    )  # fmt: skip

    def __init__(
        self, counters: Counters, plan: WorkflowPlan, batch: Batch, connection: Answering, opened_ns: int
    ) -> None:
        self._counters = counters
        self._plan = plan
        self._batch = batch
        self._connection = connection
        self._opened_ns = opened_ns
        self._results: list[CallResult | None] = [None] * len(batch.rows)
        self._left = len(batch.rows)
        self._executions: list[Execution] = []
        self._waiting: Iterator[Execution] = iter(())

    def start(self, executions: list[Execution]) -> None:
        """`ROWS_A_TICK` together, so that a trained model scores them together, and others are served between."""
        self._executions = executions
        self._waiting = iter(executions)
        self._start_some()

    def _start_some(self) -> None:
        some = tuple(islice(self._waiting, ROWS_A_TICK))
        for execution in some:
            execution.start()
        if len(some) == ROWS_A_TICK:
            asyncio.get_running_loop().call_soon(self._start_some)

    def ended(self, row: int, result: CallResult) -> None:
        """One Call has ended and its record is written."""
        counters = self._counters
        counters.running -= 1
        counters.count(self._plan.name, result, self._took_us())
        self._results[row] = result
        self._left -= 1
        if not self._left:
            self._answer([one for one in self._results if one is not None])

    # gateway.http.Exchange

    def abort(self) -> None:
        for execution in self._executions:
            execution.abort()

    def pause(self) -> None:
        """Nothing is sent before all is there."""

    def resume(self) -> None:
        """Nothing was paused."""

    def _took_us(self) -> int:
        return (time.time_ns() - self._opened_ns) // 1000

    def _answer(self, results: list[CallResult]) -> None:
        connection = self._connection
        if any(one.status == "aborted" and one.http_status != 200 for one in results):
            # Nobody is there any more; only who takes the answer down for others hears this.
            connection.answer(CLIENT_LEFT, b"", b"")
            return
        for row, result in enumerate(results):
            if result.error is not None:
                headers = failed_headers(result) + call_headers(result, self._took_us())
                connection.answer(result.http_status, headers, _error_body(f"row {row}: {result.error.what}"))
                return
        cost_nano_usd = sum(one.cost_nano_usd for one in results)
        if len(results) == 1:
            headers = call_headers(results[0], self._took_us())
        else:
            headers = b"x-drivetrain-cost-nano-usd: %d\r\n" % cost_nano_usd
        wanted = self._batch.outputs
        body: dict[str, Any] = {"model_name": self._plan.name, "model_version": self._plan.snapshot}
        if self._batch.id is not None:
            body["id"] = self._batch.id
        body["parameters"] = {"call_ids": ",".join(one.call_id for one in results), "cost_nano_usd": cost_nano_usd}
        body["outputs"] = output_tensors(wanted, [_values(self._plan, wanted, one) for one in results])
        connection.answer(200, JSON_TYPE + headers, msgspec.json.encode(body))


class _ProtocolErrors:
    """A connection on which errors in OpenAI's shape are told in the protocol's."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.streaming = False

    def answer(self, status: int, headers: bytes, body: bytes) -> None:
        if status >= 400 and body:
            error = msgspec.json.decode(body)["error"]
            if isinstance(error, dict):
                body = _error_body(error["message"])
        self._connection.answer(status, headers, body)

    def begin_stream(self, headers: bytes) -> None:
        raise AssertionError("this door has no streams")

    def send(self, data: bytes) -> None:
        raise AssertionError("this door has no streams")

    def end_stream(self, data: bytes) -> None:
        raise AssertionError("this door has no streams")


def _allow(wanted: bytes, method: bytes, request: Request) -> None:
    if method != wanted:
        said = request.method.decode("latin-1")
        raise RequestError(405, f"{said} is not answered on this path", code="method_not_allowed")


def _check_version(plan: WorkflowPlan, version: str) -> None:
    """The version of a workflow is its Snapshot, and one is served."""
    if version and version != plan.snapshot:
        shown = version[:32] if version.isprintable() else "of that name"
        message = f"version `{shown}` of `{plan.name}` is not served; `{plan.snapshot}` is"
        raise RequestError(404, message, code="model_not_found", param="version")


def _admitted(plan: WorkflowPlan, row: int, raw: bytes) -> Admitted:
    try:
        return plan.admit_input(raw)
    except RequestError as error:
        message = f"row {row}: {error.what}"
        raise RequestError(error.status, message, code=error.code, kind=error.kind, param=error.param) from None


def _values(plan: WorkflowPlan, wanted: tuple[Tensor, ...], result: CallResult) -> dict[str, Any]:
    """Tensor name -> value of one Call."""
    output = answered(plan, result)
    if plan.output_reader is None:
        found = {"text": output if isinstance(output, str) else getattr(output, "content", None)}
    else:
        found = scalars(wanted, output)
    decided = result.decision
    if decided is not None:
        action, reason = DECISION
        found.update({action.name: decided.action, reason.name: decided.reason})
    return found


def _text(raw: bytes) -> str:
    return unquote_to_bytes(raw).decode("utf-8", "replace")


def _answer(connection: Connection, status: int, body: Mapping[str, Any]) -> None:
    connection.answer(status, JSON_TYPE, msgspec.json.encode(body))


def _error_body(message: str) -> bytes:
    return msgspec.json.encode({"error": message})
