"""One gateway worker: a socket, a loop, a runtime, a sign of life; ends when told, after its calls."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import Live
from drivetrain.embedded.applying import apply
from drivetrain.embedded.live_watch import live_watch
from drivetrain.embedded.runtime import Runtime, made_ready
from drivetrain.embedded.serving import SERVED_SUFFIX, Served, Serving, tell
from drivetrain.gateway.application import Gateway
from drivetrain.gateway.arms import Arms
from drivetrain.gateway.http import Connections
from drivetrain.gateway.key_watch import key_watch
from drivetrain.gateway.metrics import Published, count_served, publish
from drivetrain.gateway.modelling import socket_paths
from drivetrain.ports.counters import StoreUnavailable
from drivetrain.project.load import load
from drivetrain.project.snapshot import Snapshot

DRAIN_S = 30.0
"""How long calls may take to end after SIGTERM; then they are cut, and recorded as such."""
PUBLISH_S = 0.5
PUBLISH_PAUSES = 100
"""So many times as long as publishing took is waited before the next: thousands of workflows cost at most 1 %."""
BEAT_S = 0.25
"""Between two signs of life."""
WHERE_SIGNAL = signal.SIGUSR2
"""Lets a worker print the places in the code where it is, also from within a loop that never ends."""
MODEL_WORKERS_WANTED = "model-workers.wanted"
"""In the run folder: made by a gateway worker whose project has a model that is too large for its own process."""
DAY_S = 86_400
BACKLOG = 2048


class Heartbeat:
    """A worker's sign of life: a number in memory that its supervisor sees, another one every `BEAT_S`.

    0 before the worker is ready. Who watches blames no worker whose number is 0 or `STILL`.
    """

    STILL = -1

    def __init__(self, beats: memoryview[int], index: int) -> None:
        self._beats = beats
        self._index = index

    def beat(self) -> None:
        self._beats[self._index] = time.monotonic_ns()

    def rest(self) -> None:
        """From here on nobody is to wait for a beat."""
        self._beats[self._index] = self.STILL

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """While the worker does, on its loop, what may rightly take long."""
        self.rest()
        try:
            yield
        finally:
            self.beat()


def bound_socket(host: str, port: int, *, shared: bool) -> socket.socket:
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
    made.setblocking(False)
    return made


def run_worker(
    snapshot: Snapshot,
    live: Live,
    listening: socket.socket,
    *,
    name: str,
    heartbeat: Heartbeat,
    supervisor_fd: int,
    ready: Callable[[], None],
    follows: bool,
) -> None:
    """Serves until SIGTERM or SIGINT; follows what is live.

    SIGHUP loads the project anew, which the supervisor has stored and logged, where nothing was ever released.
    live: what `snapshot` was loaded for. supervisor_fd: readable once the supervisor is gone; then the worker ends too,
    after its calls. follows: whether it takes the place of one that served: then a model or a Release that is gone
    meanwhile is told, and costs its variants or the change, not the gateway.
    """
    faulthandler.register(WHERE_SIGNAL, all_threads=False)
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if sys.platform != "win32":
        import uvloop

        new_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        serving = _serve(
            snapshot, live, listening, name=name, heartbeat=heartbeat, supervisor_fd=supervisor_fd, ready=ready,
            follows=follows,
        )  # fmt: skip
        runner.run(serving)


async def _serve(
    snapshot: Snapshot,
    live: Live,
    listening: socket.socket,
    *,
    name: str,
    heartbeat: Heartbeat,
    supervisor_fd: int,
    ready: Callable[[], None],
    follows: bool,
) -> None:
    """Prepares, serves until it is told to stop, lets what runs end, and closes."""
    loop = asyncio.get_running_loop()
    folder = run_folder(snapshot)
    wanted = folder / MODEL_WORKERS_WANTED
    runtime = Runtime(snapshot, loop, model_workers=socket_paths(folder), wants_workers=wanted)
    for broken in await runtime.prepare(snapshot, serve_without=follows):
        print(f"drivetrain: served without a model, whose variants fail: {broken}", file=sys.stderr)
    worker = _Worker(runtime, snapshot, live, listening, name=name, heartbeat=heartbeat)
    await worker.serving.begin(must=not follows)
    stop = asyncio.Event()
    worker.hear(stop, supervisor_fd)
    server = await loop.create_server(worker.connections, sock=listening, backlog=BACKLOG)
    tasks = worker.attend()
    # What start-up made stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    beating = loop.create_task(_beat(heartbeat, runtime, stop))
    heartbeat.beat()
    ready()
    await stop.wait()
    await worker.drain(server)
    beating.cancel()
    heartbeat.rest()
    for task in tasks:
        task.cancel()
    await worker.close()


class _Worker:
    """The parts of a worker, wired to each other on the loop that runs."""

    def __init__(
        self, runtime: Runtime, snapshot: Snapshot, live: Live, listening: socket.socket, *, name: str,
        heartbeat: Heartbeat,
    ) -> None:  # fmt: skip
        self._loop = asyncio.get_running_loop()
        self._runtime = runtime
        self._name = name
        self._heartbeat = heartbeat
        self._folder = run_folder(snapshot)
        self._keys = key_watch(snapshot, listening)
        self._gateway = Gateway(runtime, self._keys.ring, worker=name, run_folder=self._folder)
        self.connections = Connections(self._loop, self._gateway, snapshot.gateway)
        watch = live_watch(snapshot.environment, snapshot.data_folder, self._folder)
        self.serving = Serving(runtime, watch, live, worker=name, swapped=self._swapped, tell=self._tell)
        self._gateway.client_connections = lambda: len(self.connections.open)
        self._gateway.early_refusals = lambda: self.connections.refused
        self._gateway.release_counts = self._count_releases
        self._one_by_one = asyncio.Lock()
        self._reloads: set[asyncio.Task[None]] = set()

    def hear(self, stop: asyncio.Event, supervisor_fd: int) -> None:
        """From here on signals count, and the supervisor's end."""

        def orphaned() -> None:
            """Without its supervisor it would answer for ever, beside the next gateway on its port."""
            self._loop.remove_reader(supervisor_fd)
            stop.set()

        for signum in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(signum, stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        self._loop.add_reader(supervisor_fd, orphaned)

    def attend(self) -> list[asyncio.Task[None]]:
        """What goes on beside the calls, now that they come in; whoever has it cancels it."""
        self._gateway.started = True
        return [
            self._loop.create_task(_publish(self._gateway, self._folder, self._name)),
            self._loop.create_task(_expire_daily(self._runtime, self._heartbeat)),
            self._loop.create_task(self._keys.watch(self._gateway.reload)),
        ]

    async def drain(self, server: asyncio.Server) -> None:
        """Takes nothing new, and waits until what runs has ended, for `DRAIN_S` at most."""
        self._gateway.draining = True
        server.close()
        self.connections.close_idle()
        deadline = self._loop.time() + DRAIN_S
        while (self._gateway.counters.running or self._gateway.idempotency.busy) and self._loop.time() < deadline:
            await asyncio.sleep(0.02)
            self.connections.close_idle()

    async def close(self) -> None:
        """Ends what runs still, lets every store go, and takes back what it told the others."""
        self.connections.stop()
        for connection in list(self.connections.open):
            connection.close_if_idle()
        self.serving.close()
        self._gateway.copies.close()
        await self._runtime.close()
        await self._gateway.idempotency.close()
        for suffix in (".metrics", SERVED_SUFFIX):
            (self._folder / f"{self._name}{suffix}").unlink(missing_ok=True)

    def _swapped(self) -> None:
        self._gateway.reload()
        self._gateway.arms = _arms(self.serving)
        self._gateway.copies.use(self.serving.live.active if self.serving.candidate is not None else None)

    def _tell(self, served: Served) -> None:
        with contextlib.suppress(OSError):  # a full disk is told by the ledger
            tell(self._folder, served)

    def _count_releases(self, own: Published) -> None:
        override = bool(self.serving.live.lacks)
        count_served(own, self.serving.served, override=override, failures=self.serving.failures)

    def _reload(self) -> None:
        task = self._loop.create_task(_reload(self._runtime, self.serving, self._heartbeat, self._one_by_one))
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)


def run_folder(snapshot: Snapshot) -> Path:
    """Where workers leave what they tell each other; made where it is absent."""
    folder = snapshot.data_folder / "run"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def _beat(heartbeat: Heartbeat, runtime: Runtime, stop: asyncio.Event) -> None:
    while True:
        heartbeat.beat()
        if runtime.limits is not None and runtime.limits.fenced and not stop.is_set():
            print("drivetrain: others have resolved what this worker had reserved; it ends", file=sys.stderr)
            stop.set()
        await asyncio.sleep(BEAT_S)


async def _publish(gateway: Gateway, run_folder: Path, name: str) -> None:
    while True:
        began_s = time.monotonic()
        with contextlib.suppress(OSError):  # a full disk is told by the ledger
            publish(run_folder, name, gateway.published())
        await asyncio.sleep(max(PUBLISH_S, PUBLISH_PAUSES * (time.monotonic() - began_s)))


async def _expire_daily(runtime: Runtime, heartbeat: Heartbeat) -> None:
    while True:
        with contextlib.suppress(OSError), heartbeat.still():
            # Tried again tomorrow; payloads past their days are refused all the same.
            runtime.expire_payloads()
        if runtime.limits is not None:
            with contextlib.suppress(OSError, StoreUnavailable):
                await asyncio.to_thread(runtime.sweep)
        await asyncio.sleep(DAY_S)


def reloaded(before: Snapshot) -> Snapshot:
    """The project of `before` as its folder is now, stored and logged. Raises: DrivetrainError, and nothing changed."""
    after = load(before.root, before.environment)
    if after.hash != before.hash:
        apply(after)
    return after


async def _reload(runtime: Runtime, serving: Serving, heartbeat: Heartbeat, one_by_one: asyncio.Lock) -> None:
    async with one_by_one:
        now = runtime.ready.snapshot
        if serving.live.release:
            return  # the folder is not served; the supervisor has told so
        try:
            with heartbeat.still():  # its modules may take long to import
                after = load(now.root, now.environment)
            await runtime.prepare(after)
            if serving.live.release:
                return  # released meanwhile
            with heartbeat.still():
                serving.replace(made_ready(after))
        except DrivetrainError as error:
            print(f"drivetrain: the project was not loaded, the old one is served on.\n{error}", file=sys.stderr)


def _arms(serving: Serving) -> Arms | None:
    """Who is answered by the candidate; None: nobody."""
    active, candidate = serving.live.active, serving.candidate
    if active is None or candidate is None or not serving.share_ppm:
        return None
    return Arms(active, candidate.plans, serving.share_ppm)
