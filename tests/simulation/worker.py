"""One worker process: everything that `embedded.runtime` wires, with the world's edges played, until it is killed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drivetrain.cache.answers import AnswerCache
from drivetrain.cache.flights import Flights
from drivetrain.execution.call import CallResult, Execution
from drivetrain.execution.environment import Asked, Environment
from drivetrain.ports.transport import UpstreamRequest, UpstreamSink
from drivetrain.routing.health import Health, Outcome

from . import providers
from .disk import Journal, Vault
from .kernel import SECOND, Killed
from .store import Door
from .upstream import Exchange

if TYPE_CHECKING:
    from .laws import CallStory
    from .world import World

CACHE_BYTES = 20_000
"""Little, so that answers are dropped."""


class Worker:
    """A process. `edge` is called between its steps: there it may be killed."""

    def __init__(self, world: World, name: str, kill_at: int) -> None:
        self.name = name
        self.dead = False
        self.edges = 0
        self.kill_at = kill_at
        """The step before which it is killed; 0: it is not."""
        self.exchanges: list[Exchange] = []
        self.stories: list[CallStory] = []
        self._world = world
        kernel = self._kernel = world.kernel
        self.edition = world.edition
        self.limits = world.limits if world.is_limited else []
        self.journal = Journal(kernel, world.disk, self, lambda record: world.laws.written(name, record))
        self.vault = Vault(world.disk)
        self.health = CountedHealth(self.edition.models, kernel.dice.random)
        self.cache = AnswerCache(now_ns=kernel.monotonic_ns, bytes_max=CACHE_BYTES)
        self.flights = Flights(lambda what: kernel.after(0, what, self))
        self.door = Door(kernel, self, world.store, self.limits, world.laws, world.disk.read)
        self.environment = Environment(
            transport=self,
            journal=self.journal,
            vault=self.vault,
            now_ns=kernel.wall_ns,
            monotonic_ns=kernel.monotonic_ns,
            call_later=self._call_later,
            random=kernel.dice.random,
            limits=self.door if world.is_limited else None,
            health=self.health,
            cache=self.cache,
            flights=self.flights,
        )

    def edge(self, where: str) -> None:
        """The end of a step. Raises: Killed."""
        self.edges += 1
        if self.edges == self.kill_at:
            self._kernel.note("killed", self.name, where)
            raise Killed

    def die(self) -> None:
        """It is gone: the kernel drops its lock, its connections break, its memory is lost."""
        self.dead = True
        self._kernel.note("died", self.name)
        self.door.handle.close()
        self._world.worker_died(self)

    def start(self, story: CallStory, raw: bytes, asked: Asked) -> None:
        """A request has come."""
        kernel, world = self._kernel, self._world
        plan = self.edition.plans.workflows[story.workflow]
        opened_ns = kernel.wall_ns()
        story.begins(self, plan, world.next_call_id(), opened_ns)
        self.stories.append(story)
        kernel.note("start", story.number, story.call_id, self.name, story.workflow, raw)
        story.execution = Execution(
            plan,
            plan.admit(story.door, raw),
            story.who,
            call_id=story.call_id,
            opened_ns=opened_ns,
            day="2026-03-29",
            door=story.door,
            env=self.environment,
            client=_Client(self, story),
            asked=asked,
        )
        story.execution.start()

    def reload(self) -> None:
        """Serve the world's present edition from now on."""
        world = self._world
        self.edition = world.edition
        self.health.use(self.edition.models)
        if world.is_limited:
            self.limits = world.limits
            self.door.book.use(self.limits)

    # ports.transport.Transport

    def send(self, request: UpstreamRequest, sink: UpstreamSink) -> Exchange:
        self.edge("send")
        world, kernel = self._world, self._kernel
        assert isinstance(sink, Execution)
        number = len(world.laws.exchanges)
        asked = providers.asked(number, request)
        script = world.script_for(asked)
        exchange = Exchange(kernel, self, request, sink, script, number)
        kernel.note("sent", sink.call_id, number, script.name, script.billed)
        self.exchanges.append(exchange)
        world.laws.sent(sink.call_id, exchange, asked)
        self.edge("sent")
        return exchange

    def _call_later(self, delay_s: float, what: Any) -> None:
        self._kernel.after(int(delay_s * SECOND), what, self)


class CountedHealth(Health):
    """Health that knows how many of the attempts that it granted are still to end."""

    granted = 0

    def may_send(self, name: str, now_ns: int) -> Any:
        denied = super().may_send(name, now_ns)
        self.granted += denied is None
        return denied

    def withdrawn(self, name: str, granted_ns: int) -> None:
        self.granted -= 1
        super().withdrawn(name, granted_ns)

    def ended(self, name: str, granted_ns: int, now_ns: int, outcome: Outcome, retry_after_ms: int = -1) -> None:
        self.granted -= 1
        super().ended(name, granted_ns, now_ns, outcome, retry_after_ms)


class _Client:
    """The worker's side of a client's connection."""

    def __init__(self, worker: Worker, story: CallStory) -> None:
        self._worker = worker
        self._story = story

    def on_stream(self, data: bytes) -> None:
        self._worker.edge("stream")
        self._story.hears(data)

    def on_finished(self, result: CallResult) -> None:
        self._worker.edge("finish")
        self._story.ends(result)
