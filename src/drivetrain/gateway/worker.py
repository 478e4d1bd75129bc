"""One gateway worker: a socket, a loop, a runtime; ends when told, after its calls."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from drivetrain.core.errors import DrivetrainError
from drivetrain.embedded.runtime import Runtime
from drivetrain.execution.plan import Plans
from drivetrain.gateway.application import Gateway
from drivetrain.gateway.http import Connections
from drivetrain.gateway.identity import KeyRing
from drivetrain.gateway.metrics import publish
from drivetrain.project.load import load
from drivetrain.project.secrets import resolve
from drivetrain.project.snapshot import SecretRef, Snapshot

DRAIN_S = 30.0
"""How long calls may take to end after SIGTERM; then they are cut, and recorded as such."""
PUBLISH_S = 0.5
DAY_S = 86_400
BACKLOG = 2048


def listening_socket(host: str, port: int, *, shared: bool) -> socket.socket:
    """shared: several workers listen on the same port (SO_REUSEPORT). Raises: DrivetrainError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise DrivetrainError(
            f"The gateway cannot listen on {host}:{port}: {error.strerror}.",
            do="Choose another with `--port`, or end what listens there.",
        ) from error
    made.listen(BACKLOG)
    made.setblocking(False)
    return made


def run_worker(
    snapshot: Snapshot, listening: socket.socket, *, name: str, ready: Callable[[], None] | None = None
) -> None:
    """Serves until SIGTERM or SIGINT; SIGHUP loads the project anew."""
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if sys.platform != "win32":
        import uvloop

        new_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_serve(snapshot, listening, name, ready))


async def _serve(snapshot: Snapshot, listening: socket.socket, name: str, ready: Callable[[], None] | None) -> None:
    loop = asyncio.get_running_loop()
    runtime = Runtime(snapshot, loop)
    run_folder = snapshot.data_folder / "run"
    run_folder.mkdir(parents=True, exist_ok=True)
    gateway = Gateway(runtime, key_ring, worker=name, run_folder=run_folder)
    connections = Connections(loop, gateway, snapshot.gateway)
    gateway.client_connections = lambda: len(connections.open)
    gateway.early_refusals = lambda: connections.refused
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    loop.add_signal_handler(signal.SIGHUP, _reload, runtime, gateway, snapshot.root, snapshot.environment)
    server = await loop.create_server(connections, sock=listening)
    gateway.started = True
    tasks = [loop.create_task(_publish(gateway, run_folder, name)), loop.create_task(_expire_daily(runtime))]
    # What start-up made stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    if ready is not None:
        ready()
    await stop.wait()
    gateway.draining = True
    server.close()
    connections.close_idle()
    deadline = loop.time() + DRAIN_S
    while gateway.counters.running and loop.time() < deadline:
        await asyncio.sleep(0.02)
        connections.close_idle()
    for task in tasks:
        task.cancel()
    connections.stop()
    for connection in list(connections.open):
        connection.close_if_idle()
    await runtime.close()
    (run_folder / f"{name}.metrics").unlink(missing_ok=True)


async def _publish(gateway: Gateway, run_folder: Path, name: str) -> None:
    while True:
        with contextlib.suppress(OSError):  # a full disk is told by the ledger
            publish(run_folder, name, gateway.published())
        await asyncio.sleep(PUBLISH_S)


async def _expire_daily(runtime: Runtime) -> None:
    while True:
        with contextlib.suppress(OSError):  # tried again tomorrow; payloads past their days are refused all the same
            runtime.expire_payloads()
        await asyncio.sleep(DAY_S)


def key_ring(plans: Plans) -> KeyRing:
    """The keys of a Snapshot, with their secrets looked up here."""
    snapshot = plans.snapshot

    def secret(reference: SecretRef) -> str:
        return resolve(reference, snapshot.root, os.environ, used_by="keys")

    return KeyRing(snapshot, secret)


def _reload(runtime: Runtime, gateway: Gateway, root: Path, environment: str) -> None:
    before = runtime.plans
    try:
        runtime.reload(load(root, environment))
        gateway.reload()
    except DrivetrainError as error:
        runtime.plans = before
        print(f"drivetrain: the project was not loaded, the old one is served on.\n{error}", file=sys.stderr)
    else:
        print(f"drivetrain: serving snapshot {runtime.plans.snapshot.short_hash}", file=sys.stderr)
