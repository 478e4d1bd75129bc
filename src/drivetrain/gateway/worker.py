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
from drivetrain.embedded.applying import apply
from drivetrain.embedded.runtime import Runtime
from drivetrain.gateway.application import Gateway
from drivetrain.gateway.http import Connections
from drivetrain.gateway.key_watch import key_watch
from drivetrain.gateway.metrics import publish
from drivetrain.project.load import load, unload
from drivetrain.project.snapshot import Snapshot

DRAIN_S = 30.0
"""How long calls may take to end after SIGTERM; then they are cut, and recorded as such."""
PUBLISH_S = 0.5
SUPERVISED_S = 0.5
"""How often a worker looks whether its supervisor lives."""
DAY_S = 86_400
OLD_SNAPSHOT_S = 600.0
"""How long the code of a replaced Snapshot stays importable for the calls that began with it."""
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
    snapshot: Snapshot,
    listening: socket.socket,
    *,
    name: str,
    ready: Callable[[], None],
    supervised: bool = False,
) -> None:
    """Serves until SIGTERM or SIGINT; SIGHUP loads the project anew, which a supervisor has stored and logged."""
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if sys.platform != "win32":
        import uvloop

        new_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_serve(snapshot, listening, name, ready, supervised=supervised))


async def _serve(
    snapshot: Snapshot, listening: socket.socket, name: str, ready: Callable[[], None], *, supervised: bool
) -> None:
    loop = asyncio.get_running_loop()
    runtime = Runtime(snapshot, loop)
    folder = run_folder(snapshot)
    keys = key_watch(snapshot, listening)
    gateway = Gateway(runtime, keys.ring, worker=name, run_folder=folder)
    connections = Connections(loop, gateway, snapshot.gateway)
    gateway.client_connections = lambda: len(connections.open)
    gateway.early_refusals = lambda: connections.refused
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: _reload(runtime, gateway, supervised=supervised))
    server = await loop.create_server(connections, sock=listening)
    gateway.started = True
    tasks = [
        loop.create_task(_publish(gateway, folder, name)),
        loop.create_task(_expire_daily(runtime)),
        loop.create_task(_end_with(os.getppid() if supervised else None, stop)),
        loop.create_task(keys.watch(gateway.reload)),
    ]
    # What start-up made stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
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
    (folder / f"{name}.metrics").unlink(missing_ok=True)


def run_folder(snapshot: Snapshot) -> Path:
    """Where workers leave what they tell each other; made where it is absent."""
    folder = snapshot.data_folder / "run"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def _end_with(supervisor: int | None, stop: asyncio.Event) -> None:
    """A worker without its supervisor would answer for ever, beside the next gateway on its port."""
    while supervisor is not None and not stop.is_set():
        if os.getppid() != supervisor:
            stop.set()
        await asyncio.sleep(SUPERVISED_S)


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


def reloaded(before: Snapshot) -> Snapshot:
    """The project of `before` as its folder is now, stored and logged. Raises: DrivetrainError, and nothing changed."""
    after = load(before.root, before.environment)
    if after.hash != before.hash:
        apply(after)
    return after


def _reload(runtime: Runtime, gateway: Gateway, *, supervised: bool) -> None:
    before = runtime.plans
    try:
        now = before.snapshot
        runtime.reload(load(now.root, now.environment) if supervised else reloaded(now))
        gateway.reload()
    except DrivetrainError as error:
        runtime.plans = before
        print(f"drivetrain: the project was not loaded, the old one is served on.\n{error}", file=sys.stderr)
        return
    print(f"drivetrain: serving snapshot {runtime.plans.snapshot.short_hash}", file=sys.stderr)
    # Its calls may still import what their functions import.
    runtime.loop.call_later(OLD_SNAPSHOT_S, unload, before.snapshot)
