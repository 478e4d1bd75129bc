"""`drivetrain features serve`: online features over HTTP, in the shape of Feast's feature server.

Owns the routes and who may ask for what. Reads are answered on the loop, from mapped memory; pushes and
materializations wait their turn in one thread, so that no read waits for them. Keys are the gateway's: one that is
limited to workflows reads the services of those and writes nothing.

    POST /get-online-features   {"feature_service": NAME | "features": ["VIEW:FEATURE"], "entities": {KEY: [...]}}
    POST /push                  {"push_source_name": NAME, "df": {COLUMN: [...]}, "to": "online_and_offline"}
    POST /materialize           {"start_ts": TIME, "end_ts": TIME, "feature_views": [NAME]}
    POST /materialize-incremental   {"end_ts": TIME, "feature_views": [NAME]}
    GET  /health
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import msgspec

from drivetrain.core.codec import JSON, MalformedJson
from drivetrain.core.errors import DrivetrainError, RequestError, report_fault
from drivetrain.embedded.feature_store import feature_store
from drivetrain.execution.plan import Plans
from drivetrain.features.dtypes import coerce
from drivetrain.features.online import EPOCH
from drivetrain.features.store import FeatureStore
from drivetrain.gateway.http import Connection, Connections, Exchange, Request
from drivetrain.gateway.identity import Identity, KeyRing
from drivetrain.gateway.key_watch import KeyWatch, has_keys, key_watch
from drivetrain.gateway.worker import bound_socket
from drivetrain.project.snapshot import Snapshot

WAITING_MAX = 32
"""Pushes and materializations that may wait; further ones are told to come back."""
RETRY_AFTER_S = 2
BACKLOG = 1024
DRAIN_S = 30.0
"""How long a shutdown waits for what was accepted."""
JSON_HEADERS = b"content-type: application/json\r\n"


class OnlineQuestion(msgspec.Struct, forbid_unknown_fields=True):
    """Body of /get-online-features."""

    entities: dict[str, list[Any]]
    feature_service: str | None = None
    features: list[str] | None = None
    full_feature_names: bool = False


class PushQuestion(msgspec.Struct, forbid_unknown_fields=True):
    """Body of /push."""

    push_source_name: str
    df: dict[str, list[Any]]
    to: str = "online_and_offline"
    allow_registry_cache: bool = True
    """Feast's clients send it; there is no registry here."""


class MaterializeQuestion(msgspec.Struct, forbid_unknown_fields=True):
    """Body of /materialize and /materialize-incremental."""

    end_ts: str | None = None
    start_ts: str | None = None
    feature_views: list[str] | None = None


class FeatureDoor:
    """The Application of the feature server.

    read, write: two stores of one project, of which `write` is only used in the writing thread.
    """

    def __init__(
        self,
        read: FeatureStore,
        write: FeatureStore,
        keys: Callable[[], KeyRing],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.draining = False
        self.waiting = 0
        """Pushes and materializations that are not done."""
        self._read = read
        self._write = write
        self._keys = keys
        self._loop = loop
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="features")
        self._services = {
            name: workflow.features if isinstance(workflow.features, str) else workflow.features.name
            for name, workflow in read.snapshot.workflows.items()
            if workflow.features is not None
        }
        self._handlers: dict[tuple[bytes, bytes], Callable[[Request, Identity, Connection], None]] = {
            (b"POST", b"/get-online-features"): self._online,
            (b"POST", b"/push"): self._push,
            (b"POST", b"/materialize"): self._materialize,
            (b"POST", b"/materialize-incremental"): self._materialize,
        }

    def handle(self, request: Request, connection: Connection) -> Exchange | None:
        """See gateway.http.Application."""
        path = request.path.split(b"?", 1)[0]
        try:
            if path == b"/health" and request.method in (b"GET", b"HEAD"):
                connection.answer(503 if self.draining else 200, JSON_HEADERS, b"{}")
                return None
            handler = self._handlers.get((request.method, path))
            if handler is None:
                known = path == b"/health" or any(path == one for _, one in self._handlers)
                code, status = ("method_not_allowed", 405) if known else ("unknown_path", 404)
                raise RequestError(status, f"nothing answers {request.method.decode('latin-1')} here", code=code)
            handler(request, self._keys().identify(request.headers.get(b"authorization")), connection)
        except Exception as error:  # noqa: BLE001  whatever it was, this request has an answer and the next is served
            _refuse(connection, error)
        return None

    async def close(self) -> None:
        """What was accepted is done first."""
        deadline = self._loop.time() + DRAIN_S
        while self.waiting and self._loop.time() < deadline:
            await asyncio.sleep(0.02)
        self._writer.shutdown(wait=False, cancel_futures=True)

    def _online(self, request: Request, identity: Identity, connection: Connection) -> None:
        asked = _body(request, OnlineQuestion)
        if (asked.feature_service is None) == (asked.features is None):
            raise _bad("name either `feature_service` or `features`")
        self._may_read(identity, asked.feature_service)
        features: Any = asked.feature_service if asked.feature_service is not None else asked.features
        answer = self._read.get_online_features(features, asked.entities, full_feature_names=asked.full_feature_names)
        columns = answer.to_dict()
        statuses, times = answer.statuses(), answer.event_timestamps()
        results = [
            {
                "values": values,
                "statuses": statuses.get(name) or ["PRESENT"] * len(values),
                "event_timestamps": [one or EPOCH for one in times.get(name) or [None] * len(values)],
            }
            for name, values in columns.items()
        ]
        connection.answer(
            200, JSON_HEADERS, JSON.encode({"metadata": {"feature_names": list(columns)}, "results": results})
        )

    def _push(self, request: Request, identity: Identity, connection: Connection) -> None:
        asked = _body(request, PushQuestion)
        self._may_write(identity)
        lengths = {len(values) for values in asked.df.values()}
        if len(lengths) > 1:
            raise _bad("the columns of `df` have different lengths")
        rows = [dict(zip(asked.df, values, strict=True)) for values in zip(*asked.df.values(), strict=True)]

        def work() -> dict[str, Any]:
            made = self._write.push(asked.push_source_name, rows, to=asked.to)
            return {"rows": made.rows, "online": made.online, "offline": made.offline}

        self._later(work, connection)

    def _materialize(self, request: Request, identity: Identity, connection: Connection) -> None:
        asked = _body(request, MaterializeQuestion)
        self._may_write(identity)
        start, end = _moment("start_ts", asked.start_ts), _moment("end_ts", asked.end_ts)
        if request.path.split(b"?", 1)[0] == b"/materialize" and (start is None or end is None):
            raise _bad("`start_ts` and `end_ts` are needed")

        def work() -> dict[str, Any]:
            made = (
                self._write.materialize_incremental(end, asked.feature_views)
                if start is None or end is None
                else self._write.materialize(start, end, asked.feature_views)
            )
            return {"as_of_us": made.as_of_us, "tables": dict(made.tables)}

        self._later(work, connection)

    def _later(self, work: Callable[[], Mapping[str, Any]], connection: Connection) -> None:
        """Answer when the writing thread has done it. A client that leaves does not undo it."""
        if self.waiting >= WAITING_MAX or self.draining:
            raise RequestError(
                503, "too much is being written; try again", code="busy", kind="server_error",
                retry_after_s=RETRY_AFTER_S,
            )  # fmt: skip
        self.waiting += 1

        def done(future: asyncio.Future[Mapping[str, Any]]) -> None:
            self.waiting -= 1
            if future.cancelled():
                return
            error = future.exception()
            if error is not None:
                _refuse(connection, error)
            else:
                connection.answer(200, JSON_HEADERS, JSON.encode(future.result()))

        self._loop.run_in_executor(self._writer, work).add_done_callback(done)

    def _may_read(self, identity: Identity, service: str | None) -> None:
        if identity.workflows is None:
            return
        allowed = {self._services[name] for name in identity.workflows if name in self._services}
        if service not in allowed:
            raise RequestError(
                403, "this key reads the FeatureServices of its workflows only", code="not_allowed", kind="forbidden"
            )

    def _may_write(self, identity: Identity) -> None:
        if identity.workflows is not None:
            raise RequestError(403, "a key that is limited to workflows writes no features", code="not_allowed")


def serve_features(snapshot: Snapshot, *, host: str, port: int, announce: Callable[[str, int], None]) -> None:
    """Serves until SIGTERM or SIGINT. announce: told where it listens. Raises: DrivetrainError."""
    listening = bound_socket(host, port, shared=False)
    address: tuple[str, int] = listening.getsockname()[:2]
    try:
        if not _loopback(address[0]) and not has_keys(snapshot):
            raise DrivetrainError(
                f"Features would be open to whoever reaches {host}: no key is declared or issued.",
                do="Issue one with `drivetrain keys issue NAME`, or serve on 127.0.0.1.",
            )
        new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
        if sys.platform != "win32":
            import uvloop

            new_loop = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(_serve(snapshot, listening, lambda: announce(*address)))
    finally:
        listening.close()


async def _serve(snapshot: Snapshot, listening: Any, ready: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    keys = key_watch(snapshot, listening)
    ring = [_ring(keys, snapshot)]

    def renewed() -> None:
        ring[0] = _ring(keys, snapshot)

    door = FeatureDoor(feature_store(snapshot), feature_store(snapshot), lambda: ring[0], loop)
    connections = Connections(loop, door, snapshot.gateway)
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    server = await loop.create_server(connections, sock=listening, backlog=BACKLOG)
    watching = loop.create_task(keys.watch(renewed))
    ready()
    await stop.wait()
    door.draining = True
    server.close()
    connections.close_idle()
    await door.close()
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    connections.stop()
    for connection in list(connections.open):
        connection.close_if_idle()


def _ring(keys: KeyWatch, snapshot: Snapshot) -> KeyRing:
    """The keys that hold now; they belong to a Snapshot, and need none of its routes."""
    return keys.ring(Plans(snapshot, {}, {}))


def _loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def _body(request: Request, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(request.body, type=kind)
    except (msgspec.MsgspecError, UnicodeError, ValueError, RecursionError) as error:
        raise _bad(f"the body is not as it must be: {error}") from None


def _moment(name: str, text: str | None) -> datetime | None:
    try:
        found: datetime | None = coerce("timestamp", text)
    except ValueError:
        raise _bad(f"`{name}` is no ISO 8601 time") from None
    return found


def _bad(message: str) -> RequestError:
    return RequestError(400, message, code="invalid_request")


def _refuse(connection: Connection, error: BaseException) -> None:
    if isinstance(error, RequestError):
        refused = error
    elif isinstance(error, DrivetrainError):
        refused = RequestError(400, str(error), code="invalid_request")
    elif isinstance(error, MalformedJson):
        refused = _bad(str(error))
    else:
        report_fault("features", error)
        refused = RequestError(500, "the feature server failed at this", code="internal_error", kind="server_error")
    headers = JSON_HEADERS
    if refused.retry_after_s is not None:
        headers += b"retry-after: %d\r\n" % refused.retry_after_s
    connection.answer(refused.status, headers, refused.body())
