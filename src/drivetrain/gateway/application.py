"""What the gateway answers on each path; no sockets here, and nothing that waits.

`POST /v1/chat/completions`, `POST /v1/workflows/{name}`, `POST /v1/outcomes`, `GET /v1/models`, the probes and
`/metrics`; what is below `/v2` stands in `gateway/oip.py`. Everything a call needs is in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from hmac import compare_digest
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.adapters.files import key_file
from drivetrain.adapters.sqlite_idempotency import SqliteIdempotency
from drivetrain.cache.cache_control import read_cache_control
from drivetrain.core.calls import Attribution
from drivetrain.core.errors import RequestError, did_you_mean, report_fault
from drivetrain.embedded.runtime import Runtime
from drivetrain.execution.admission import Admitted, bad_request, parse_body, too_deep
from drivetrain.execution.call import CallResult, Client, Execution
from drivetrain.execution.environment import NOTHING_ASKED, Asked
from drivetrain.execution.plan import Plans, WorkflowPlan
from drivetrain.gateway.answers import JSON_TYPE, call_headers, error_headers, failed_headers, typed_body
from drivetrain.gateway.arms import Arms
from drivetrain.gateway.copies import Copies
from drivetrain.gateway.http import Connection, Exchange, Request
from drivetrain.gateway.idempotency import Idempotency
from drivetrain.gateway.idempotency_answers import CLIENT_LEFT, Answering
from drivetrain.gateway.identity import Identity, KeyRing
from drivetrain.gateway.metrics import Counters, Published, count_models, read_others, text
from drivetrain.gateway.oip import OpenInference
from drivetrain.gateway.outcomes import CallableWorkflows, read_outcomes

DEADLINE_MS_MAX = 86_400_000
"""Of a client's own deadline: a day."""
ASKING = frozenset({b"cache-control", b"idempotency-key", b"x-drivetrain-cache", b"x-request-timeout-ms"})
"""Headers that ask something of the Call beside its input."""
Handler = Callable[[Request, Connection], Exchange | None]


class Gateway:
    """One worker's application."""

    def __init__(self, runtime: Runtime, keys: Callable[[Plans], KeyRing], *, worker: str, run_folder: Path) -> None:
        self.runtime = runtime
        self.draining = False
        self.started = False
        self.counters = Counters()
        self.copies = Copies(run_folder, runtime.loop)
        """What a rollout's shadow is sent."""
        snapshot = runtime.plans.snapshot
        self.idempotency = Idempotency(
            SqliteIdempotency(snapshot.data_folder / "idempotency"),
            lambda: key_file(snapshot.keys_folder / "idempotency.key"),
            self._refuse,
            loop=runtime.loop,
        )
        self.upstream_connections: Callable[[], int] = lambda: runtime.transport.open_connections
        self.client_connections: Callable[[], int] = lambda: 0
        self.early_refusals: Callable[[], dict[str, int]] = dict
        self.arms: Arms | None = None
        """Which plans answer whom while a canary runs; None: the live ones answer everybody."""
        self.release_counts: Callable[[Published], None] = lambda _own: None
        """Puts what is said of Releases into what is published."""
        self._keys_of = keys
        self._worker = worker
        self._run_folder = run_folder
        self._plans = runtime.plans
        self._keys = keys(runtime.plans)
        self._handlers: dict[tuple[bytes, bytes], Handler] = {
            (b"POST", b"/v1/chat/completions"): self._chat,
            (b"POST", b"/v1/outcomes"): self._outcomes,
            (b"GET", b"/v1/models"): self._models,
            (b"GET", b"/livez"): self._livez,
            (b"GET", b"/readyz"): self._readyz,
            (b"GET", b"/startupz"): self._startupz,
            (b"GET", b"/metrics"): self._metrics,
        }
        self._open_inference = OpenInference(self)
        self._paths = frozenset(path for _, path in self._handlers)

    def reload(self) -> None:
        """Serve the runtime's present plans; running calls keep theirs. Raises: DrivetrainError."""
        self._keys = self._keys_of(self.runtime.plans)
        self._plans = self.runtime.plans

    def published(self) -> Published:
        """This worker's counters and gauges."""
        own = self.counters.published()
        for code, number in self.early_refusals().items():
            own.refused[code] = own.refused.get(code, 0) + number
        own.slow_code = {name: slow.count for name, slow in self._plans.slow_code.items()}
        candidate = self.runtime.candidate
        for name, slow in candidate.plans.slow_code.items() if candidate is not None else ():
            own.slow_code[name] = own.slow_code.get(name, 0) + slow.count
        self.release_counts(own)
        own.shadow_copies = self.copies.counts()
        own.connections = self.client_connections()
        own.upstream_connections = self.upstream_connections()
        own.ledger_failed = int(bool(self.runtime.journal.failed))
        limits, health = self.runtime.limits, self.runtime.health
        own.limits_failed = int(limits is not None and bool(limits.failed or limits.fenced))
        own.cache_bytes = self.runtime.cache.bytes
        for model, state in health.states(time.monotonic_ns()).items():
            if state != "closed":
                own.unwell[f"{model}\x00{state}"] = 1
        for model, counts in health.counts().items():
            for kind in ("open", "throttled", "paused", "retries"):
                if number := getattr(counts, kind):
                    own.withheld[f"{model}\x00{kind}"] = number
        if self.runtime.models is not None:
            count_models(own, self._worker.rpartition("-")[0], self.runtime.models.counts())
        return own

    # gateway.http.Application

    def handle(self, request: Request, connection: Connection) -> Exchange | None:
        method = b"GET" if request.method == b"HEAD" else request.method
        handler = self._handlers.get((method, request.path))
        try:
            if handler is not None:
                return handler(request, connection)
            return self._other(method, request, connection)
        except RequestError as error:
            self._refuse(connection, error)
        except RecursionError:
            self._refuse(connection, too_deep())
        except Exception as fault:  # noqa: BLE001  a fault of ours ends this request, and no other
            report_fault("gateway", fault)
            message = "the gateway failed at this request"
            self._refuse(connection, RequestError(500, message, code="internal_error", kind="server_error"))
        return None

    def _other(self, method: bytes, request: Request, connection: Connection) -> Exchange | None:
        path = request.path.split(b"?", 1)[0]
        if path != request.path:
            handler = self._handlers.get((method, path))
            if handler is not None:
                return handler(request, connection)
        if path.startswith(b"/v1/workflows/") and request.method == b"POST":
            return self._workflow(path[14:], request, connection)
        if path.startswith(b"/v1/models/") and method == b"GET":
            return self._model(path[11:], request, connection)
        if path == b"/v2" or path.startswith((b"/v2/models/", b"/v2/health/")):
            return self._open_inference.handle(method, path, request, connection)
        if path in self._paths or path.startswith((b"/v1/workflows/", b"/v1/models/")):
            said = request.method.decode("latin-1")
            raise RequestError(405, f"{said} is not answered on this path", code="method_not_allowed")
        raise RequestError(404, f"nothing answers on {path.decode('latin-1')[:200]}", code="unknown_path")

    # Calls.

    def _chat(self, request: Request, connection: Connection) -> Exchange | None:
        identity = self.identity(request, connection)
        body = parse_body(request.body)
        name = body.get("model")
        if not isinstance(name, str):
            raise bad_request("`model` must be the name of a workflow", param="model", code="invalid_type")
        plan = self.plan(name, identity, "model")
        admitted = plan.chat.admit(body, request.body)
        return self._start(plan, admitted, identity, request, connection)

    def _workflow(self, raw_name: bytes, request: Request, connection: Connection) -> Exchange | None:
        identity = self.identity(request, connection)
        plan = self.plan(_name(raw_name), identity, "workflow")
        admitted = plan.admit_input(request.body)
        return self._start(plan, admitted, identity, request, connection, typed=True)

    def identity(self, request: Request, connection: Connection) -> Identity:
        """Who calls. Raises: RequestError (401)."""
        authorization = request.headers.get(b"authorization")
        known = connection.credentials
        if known is not None and known[0] is self._keys and _same(known[1], authorization):
            return known[2]  # type: ignore[no-any-return]
        identity = self._keys.identify(authorization)
        connection.credentials = (self._keys, authorization, identity)
        return identity

    def plan(self, name: str, identity: Identity, param: str) -> WorkflowPlan:
        """The workflow, where the key may call it. Raises: RequestError (404)."""
        plan = self._plans.workflows.get(name)
        allowed = identity.workflows
        if plan is None or (allowed is not None and name not in allowed):
            known = [one for one in self._plans.workflows if identity.may_call(one)]
            shown = name[:100] if name.isprintable() else "that name"
            message = f"no workflow `{shown}` is served to this key. {did_you_mean(name[:100], known)}"
            raise RequestError(404, message, code="model_not_found", param=param)
        return plan

    def _start(
        self,
        plan: WorkflowPlan,
        admitted: Admitted,
        identity: Identity,
        request: Request,
        connection: Connection,
        *,
        typed: bool = False,
    ) -> Exchange | None:
        attribution = self.attribution(identity, plan, request.headers, admitted.user)
        notes: tuple[str, ...] = ()
        if self.arms is not None:
            door = "workflow" if typed else "chat"
            chosen = self.arms.chosen(plan, admitted, attribution, door=door, raw=request.body)
            plan, admitted, notes = chosen.plan, chosen.admitted, chosen.notes
        if ASKING.isdisjoint(request.headers):
            return self._run(plan, admitted, attribution, NOTHING_ASKED, connection, typed=typed, notes=notes)
        asked = _asked(request.headers)
        raw_key = request.headers.get(b"idempotency-key")
        if raw_key is None:
            return self._run(plan, admitted, attribution, asked, connection, typed=typed, notes=notes)
        scope = (identity.tenant, identity.key, "workflow" if typed else "chat", plan.name if typed else "")
        run = partial(self._run, plan, admitted, attribution, asked, typed=typed, notes=notes)
        return self.idempotency.begin(scope, raw_key, request.body, connection, run)

    def _run(
        self,
        plan: WorkflowPlan,
        admitted: Admitted,
        attribution: Attribution,
        asked: Asked,
        connection: Answering,
        *,
        typed: bool,
        notes: tuple[str, ...],
    ) -> Exchange:
        now_ns = time.time_ns()
        client = _CallClient(self, connection, plan, now_ns, typed=typed)
        door = "workflow" if typed else "direct" if plan.direct else "chat"
        execution = self.execution(plan, admitted, attribution, asked, client, now_ns=now_ns, door=door, notes=notes)
        client.call_id = execution.call_id
        execution.start()
        return execution

    def attribution(
        self, identity: Identity, plan: WorkflowPlan, headers: Mapping[bytes, bytes], user: str
    ) -> Attribution:
        """Whom a Call is for. Raises: RequestError."""
        return self._keys.attribution(identity, plan.workflow, headers, user)

    def asked(self, headers: Mapping[bytes, bytes]) -> Asked:
        """What a request's headers ask of its Calls. Raises: RequestError."""
        return NOTHING_ASKED if ASKING.isdisjoint(headers) else _asked(headers)

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
    ) -> Execution:
        """One Call, counted as running and not yet started. notes: for its record, before its own."""
        runtime = self.runtime
        self.counters.running += 1
        call_id, copies = runtime.next_call_id(), self.copies
        if plan.name in copies.workflows and copies.chosen(plan, call_id):
            client = copies.of(client, plan, admitted, attribution, door)
        return Execution(
            plan,
            admitted,
            attribution,
            call_id=call_id,
            opened_ns=now_ns,
            day=runtime.day(now_ns),
            door=door,
            env=runtime.environment_of(plan),
            client=client,
            asked=asked,
            notes=notes,
        )

    # The truth, later.

    def _outcomes(self, request: Request, connection: Connection) -> Exchange | None:
        identity = self.identity(request, connection)
        workflows = CallableWorkflows(self._plans.workflows, identity.may_call)
        outcomes = read_outcomes(request.body, key=identity.key, now_ns=time.time_ns(), workflows=workflows)

        def written(recorded: bool) -> None:
            if recorded:
                body = b'{"object":"outcomes","recorded":%d}' % len(outcomes)
                connection.answer(200, JSON_TYPE, body)
            else:
                why = self.runtime.journal.failed or "unknown reason"
                message = f"the ledger cannot be written ({why}); send these outcomes again"
                error = RequestError(503, message, code="ledger_unavailable", kind="server_error", retry_after_s=1)
                self._refuse(connection, error)

        for outcome in outcomes[:-1]:
            self.runtime.journal.append(outcome)
        self.runtime.journal.append(outcomes[-1], written)
        return None

    # What is served.

    def _models(self, request: Request, connection: Connection) -> Exchange | None:
        identity = self.identity(request, connection)
        data = [_model_object(plan) for name, plan in self._plans.workflows.items() if identity.may_call(name)]
        connection.answer(200, JSON_TYPE, msgspec.json.encode({"object": "list", "data": data}))
        return None

    def _model(self, raw_name: bytes, request: Request, connection: Connection) -> Exchange | None:
        identity = self.identity(request, connection)
        plan = self.plan(_name(raw_name), identity, "model")
        connection.answer(200, JSON_TYPE, msgspec.json.encode(_model_object(plan)))
        return None

    # Probes.

    def _livez(self, _request: Request, connection: Connection) -> Exchange | None:
        connection.answer(200, JSON_TYPE, b'{"status":"ok"}')
        return None

    def _readyz(self, _request: Request, connection: Connection) -> Exchange | None:
        unfit, ring = self.unfit(), self._keys
        body = msgspec.json.encode(
            {
                "status": unfit or "ok",
                "snapshot": self._plans.snapshot.short_hash,
                "ledger": self.runtime.journal.failed or "ok",
                "limits": self._unlimited() or "ok",
                "keys": "refused" if ring.closed else "degraded" if ring.problem else "ok",
                "providers": self.runtime.health.states(time.monotonic_ns()),
            }
        )
        connection.answer(503 if unfit else 200, JSON_TYPE, body)
        return None

    def unfit(self) -> str:
        """Why no Call should be sent here now; empty where they may."""
        return (
            "ledger_unavailable" if self.runtime.journal.failed else "limits_unavailable" if self._unlimited()
            else "keys_unavailable" if self._keys.closed else "draining" if self.draining
            else "" if self.started else "starting"
        )  # fmt: skip

    def _unlimited(self) -> str:
        """Why budgets and limits cannot be kept; empty where they can."""
        limits = self.runtime.limits
        return "" if limits is None else "fenced" if limits.fenced else limits.failed

    def _startupz(self, _request: Request, connection: Connection) -> Exchange | None:
        status = 200 if self.started else 503
        connection.answer(status, JSON_TYPE, b'{"status":"ok"}' if self.started else b'{"status":"starting"}')
        return None

    def _metrics(self, _request: Request, connection: Connection) -> Exchange | None:
        workers = [self.published(), *read_others(self._run_folder, self._worker)]
        headers = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"
        connection.answer(200, headers, text(workers).encode())
        return None

    def _refuse(self, connection: Answering, error: RequestError) -> None:
        self.counters.refuse(error.code)
        connection.answer(error.status, error_headers(error), error.body())


class _CallClient:
    """Passes one Call's answer to its connection."""

    __slots__ = ("_connection", "_gateway", "_opened_ns", "_plan", "_typed", "call_id")

    def __init__(
        self, gateway: Gateway, connection: Answering, plan: WorkflowPlan, opened_ns: int, *, typed: bool
    ) -> None:
        self._gateway = gateway
        self._connection = connection
        self._plan = plan
        self._opened_ns = opened_ns
        self._typed = typed
        self.call_id = ""

    def on_stream(self, data: bytes) -> None:
        connection = self._connection
        if not connection.streaming:
            connection.begin_stream(b"x-request-id: %b\r\n" % self.call_id.encode())
        connection.send(data)

    def on_finished(self, result: CallResult) -> None:
        gateway, connection = self._gateway, self._connection
        took_us = (time.time_ns() - self._opened_ns) // 1000
        gateway.counters.running -= 1
        gateway.counters.count(self._plan.name, result, took_us)
        if result.status == "aborted" and (result.http_status != 200 or connection.streaming):
            # Nobody is there any more; only who takes the answer down for others hears this.
            connection.answer(CLIENT_LEFT, b"", b"")
            return
        if connection.streaming:
            connection.end_stream(result.tail)
            return
        headers = call_headers(result, took_us)
        if result.error is not None:
            connection.answer(result.http_status, failed_headers(result) + headers, result.body)
        elif result.tail:
            connection.begin_stream(headers)
            connection.end_stream(result.tail)
        else:
            body = typed_body(self._plan, result) if self._typed else result.body
            connection.answer(200, JSON_TYPE + headers, body)


def _same(known: bytes | None, given: bytes | None) -> bool:
    """In a time that says nothing of where they differ: others may share the connection behind a proxy."""
    return known is given or (known is not None and given is not None and compare_digest(known, given))


def _asked(headers: Mapping[bytes, bytes]) -> Asked:
    """What a request's headers ask of its Call. Raises: RequestError."""
    control, choice = headers.get(b"cache-control"), headers.get(b"x-drivetrain-cache")
    deadline = headers.get(b"x-request-timeout-ms")
    said = read_cache_control(control)
    if choice is not None and choice.strip().lower() not in (b"on", b"off"):
        raise bad_request("x-drivetrain-cache is `off` or `on`", param="x-drivetrain-cache")
    off = choice is not None and choice.strip().lower() == b"off"
    return Asked(
        cache_read=said.read and said.write and not off,
        cache_write=said.write and not off,
        cache_max_age_s=said.max_age_s,
        deadline_ms=_deadline_ms(deadline) if deadline is not None else None,
    )


def _deadline_ms(said: bytes) -> int:
    text = said.strip()
    if not text.isdigit() or not 0 < int(text[:12]) <= DEADLINE_MS_MAX:
        message = f"x-request-timeout-ms is a whole number of milliseconds from 1 to {DEADLINE_MS_MAX}"
        raise bad_request(message, param="x-request-timeout-ms")
    return int(text)


def _name(raw: bytes) -> str:
    from urllib.parse import unquote_to_bytes

    return unquote_to_bytes(raw).decode("utf-8", "replace")


def _model_object(plan: WorkflowPlan) -> dict[str, Any]:
    return {"id": plan.name, "object": "model", "created": 0, "owned_by": plan.workflow.owner or plan.workflow.team}
