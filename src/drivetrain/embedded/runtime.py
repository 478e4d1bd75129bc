"""A Snapshot wired to this process: its plans, transport, journal and vault, on one event loop.

What a Snapshot alone decides is `Ready`, made in any thread; `Runtime.use` puts one in place of another on the loop,
and a second one beside it while a canary runs. Which ones is decided elsewhere: by `serving`, by a reload.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from drivetrain.adapters.files import FileVault
from drivetrain.adapters.http_pool import HttpPool
from drivetrain.adapters.sqlite_control_feed import open_control_feed
from drivetrain.adapters.sqlite_counters import SqliteCounters
from drivetrain.backup import layout
from drivetrain.cache.answers import AnswerCache
from drivetrain.cache.flights import Flights
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.ids import call_ids
from drivetrain.core.limits import Limit
from drivetrain.embedded.featuring import feature_reader, services_named
from drivetrain.embedded.inferring import models_door, models_named, whole_models
from drivetrain.embedded.limit_watch import LimitWatch
from drivetrain.embedded.limiting import limits_folder, make_limits
from drivetrain.execution.environment import Environment, FeaturesDoor
from drivetrain.execution.plan import Plans, VariantStep, WorkflowPlan, compile_plans
from drivetrain.ledger.journal import FrameJournal
from drivetrain.limits.leasing import Limits
from drivetrain.project.secrets import resolve
from drivetrain.project.snapshot import SecretRef, Snapshot
from drivetrain.routing.health import Health

if TYPE_CHECKING:
    from drivetrain.inference.door import ModelsDoor

DAY_NS = 86_400 * 1_000_000_000


LOOK_S = 1.0
"""Between two looks whether somebody asks this writer to leave its segment, or a person was forgotten."""
FORGOTTEN = "forgotten"
"""In the keys folder: it changes when a person is forgotten, and then no answer in memory may be given again."""
PURGE_S = 60.0
"""Between two looks for cached answers that are of no more use."""
KEPT_DAYS = 35
"""How long counters of past periods are kept: a month's, until its bill has come."""
LAST_FRAMES_S = 0.01
"""For the calls that a closing transport ends, to write how they ended."""
ENVIRONMENTS_MAX = 4
"""Of Snapshots that were served before: a Call that waited for its Idempotency-Key may begin with one of them."""


class Ready(msgspec.Struct, frozen=True, eq=False):
    """A Snapshot that can be served at once: compiled, its secrets looked up, its features open."""

    plans: Plans
    features: FeaturesDoor | None
    """None where no workflow names a FeatureService."""

    @property
    def snapshot(self) -> Snapshot:
        """What it was made of."""
        return self.plans.snapshot


class Runtime:
    """Everything that running calls need, made once per process."""

    def __init__(
        self,
        snapshot: Snapshot,
        loop: asyncio.AbstractEventLoop,
        *,
        model_workers: Sequence[Path] = (),
        wants_workers: Path | None = None,
    ) -> None:
        """Ready once `prepare` has ended. model_workers, wants_workers: see `inferring.models_door`.

        Raises: DrivetrainError where a secret is missing or the ledger's folder cannot be written.
        """
        self.loop = loop
        self._model_workers, self._wants_workers = model_workers, wants_workers
        self.models: ModelsDoor | None = None
        """None while no route names a trained model."""
        self.ready = made_ready(snapshot)
        """What is served."""
        self.plans = self.ready.plans
        self.candidate: Ready | None = None
        """What is served beside it to some, while a canary runs."""
        layout.opened(snapshot.data_folder)
        ledger = snapshot.ledger
        self.transport = HttpPool(loop)
        self.journal = FrameJournal(snapshot.data_folder, segment_bytes_max=ledger.segment_bytes_max, loop=loop)
        self.vault = FileVault(snapshot.keys_folder, payload_days=ledger.payload_days) if _retains(snapshot) else None
        self._random = random.SystemRandom().random
        self.health = Health(_models([self.ready]), self._random)
        self.cache = AnswerCache(now_ns=time.monotonic_ns, bytes_max=snapshot.gateway.cache_bytes_max)
        self.flights = Flights(loop.call_soon)
        self._limit_watch = LimitWatch(snapshot.limits, open_control_feed(snapshot.data_folder))
        self._limit_watch.start(self._use_limits, loop)
        self.limits: Limits | None = self._limits(snapshot)
        """None while the project declares none."""
        self._purging = loop.call_later(PURGE_S, self._purge)
        self._forgotten = _state(snapshot.keys_folder / FORGOTTEN)
        self._looking = loop.call_later(LOOK_S, self._look)
        self.next_call_id = call_ids(time.time_ns)
        self.environment = self._environment(self.ready)
        """What Calls of the served Snapshot need of the world."""
        self._environments = {snapshot.short_hash: self.environment}
        self._day_number = -1
        self._day = ""

    async def prepare(
        self, snapshot: Snapshot, *others: Snapshot, serve_without: bool = False
    ) -> list[DrivetrainError]:
        """Load the trained models that its routes name, before it is served; those of `others` stay loaded.

        serve_without: leave out those whose files are damaged or gone; their variants fail, and routes fall back.
        Returns what is wrong with them. Raises: DrivetrainError.
        """
        named = [model for one in (snapshot, *others) for model in models_named(one)]
        models = list({one.digest: one for one in named}.values())
        broken: list[DrivetrainError] = []
        if serve_without:
            models, broken = whole_models(snapshot.data_folder, models)
        if (models or broken) and self.models is None:
            self.models = models_door(
                snapshot.data_folder, self.loop, sockets=self._model_workers, wanted=self._wants_workers
            )
            self._wire()
        if self.models is not None:
            await self.models.prepare(models)
        return broken

    def day(self, now_ns: int) -> str:
        """The UTC date of `now_ns`, whose prices hold."""
        number = now_ns // DAY_NS
        if number != self._day_number:
            self._day_number = number
            self._day = datetime.fromtimestamp(number * 86_400, tz=UTC).date().isoformat()
        return self._day

    def use(self, ready: Ready, candidate: Ready | None = None) -> None:
        """Serve `ready` from now on, and `candidate` beside it; running calls keep what they began with.

        What models they name was prepared. Limits, health and the cache's size follow `ready`.
        Raises: DrivetrainError, and nothing changed, where a vault or the counters of limits cannot be opened.
        """
        snapshot = ready.snapshot
        if self.vault is None and any(_retains(one.snapshot) for one in (ready, candidate) if one is not None):
            self.vault = FileVault(snapshot.keys_folder, payload_days=snapshot.ledger.payload_days)
        self._limit_watch.declare(snapshot.limits)
        if self.limits is None:
            self.limits = self._limits(snapshot)
        self.health.use(_models([ready, candidate]))
        self.cache.resize(snapshot.gateway.cache_bytes_max)
        self.ready, self.plans, self.candidate = ready, ready.plans, candidate
        self._wire()

    def environment_of(self, plan: WorkflowPlan) -> Environment:
        """What a Call of this plan needs of the world, also where its Snapshot is not the served one."""
        return self._environments.get(plan.snapshot, self.environment)

    def expire_payloads(self) -> None:
        """Destroy the keys of payloads whose time is over; blocks for as long as the key files take."""
        if self.vault is not None:
            self.vault.expire(time.time_ns())

    def sweep(self) -> None:
        """Forget counters of periods that are long over; blocks for as long as the store takes."""
        if self.limits is not None:
            store = SqliteCounters(limits_folder(self.plans.snapshot.data_folder))
            try:
                store.sweep(time.time_ns() - KEPT_DAYS * DAY_NS)
            finally:
                store.close()

    async def close(self) -> None:
        """Ends running exchanges and writes what is buffered."""
        self._purging.cancel()
        self._looking.cancel()
        self._limit_watch.close()
        await self.transport.close()
        if self.models is not None:
            await self.models.close()
        await asyncio.sleep(LAST_FRAMES_S)
        if self.limits is not None:
            await self.limits.close()
        self.journal.close()
        if self.vault is not None:
            self.vault.close()

    def _wire(self) -> None:
        """Environments of what is served now, beside those of before."""
        for one in (self.candidate, self.ready):
            if one is not None:
                self._environments.pop(one.snapshot.short_hash, None)
                self._environments[one.snapshot.short_hash] = self._environment(one)
        self.environment = self._environments[self.ready.snapshot.short_hash]
        while len(self._environments) > ENVIRONMENTS_MAX:
            del self._environments[next(iter(self._environments))]

    def _environment(self, ready: Ready) -> Environment:
        return Environment(
            transport=self.transport,
            journal=self.journal,
            vault=self.vault,
            now_ns=time.time_ns,
            monotonic_ns=time.monotonic_ns,
            call_later=self.loop.call_later,
            random=self._random,
            limits=self.limits,
            health=self.health,
            cache=self.cache,
            flights=self.flights,
            features=ready.features,
            models=self.models,
        )

    def _limits(self, snapshot: Snapshot) -> Limits | None:
        if not snapshot.limits:
            return None
        return make_limits(self._limit_watch.limits, snapshot.data_folder, self.journal, self.loop)

    def _use_limits(self, limits: tuple[Limit, ...]) -> None:
        """Somebody changed an amount: it holds from now on."""
        if self.limits is not None:
            self.limits.use(limits)

    def _look(self) -> None:
        self._looking = self.loop.call_later(LOOK_S, self._look)
        self.journal.look()
        forgotten = _state(self.plans.snapshot.keys_folder / FORGOTTEN)
        if forgotten != self._forgotten:
            self._forgotten = forgotten
            self.cache.clear()

    def _purge(self) -> None:
        self._purging = self.loop.call_later(PURGE_S, self._purge)
        self.cache.purge()


def made_ready(snapshot: Snapshot) -> Ready:
    """The Snapshot, ready to be served; in any thread. Raises: DrivetrainError."""
    return Ready(compiled(snapshot), feature_reader(snapshot))


def compiled(snapshot: Snapshot) -> Plans:
    """The plans of a Snapshot, with its secrets looked up here."""

    def secret(reference: SecretRef) -> str:
        return resolve(reference, snapshot.root, os.environ, used_by="providers")

    return compile_plans(snapshot, secret)


def _state(path: Path) -> tuple[int, int]:
    """Size and time; zeros where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _models(served: Sequence[Ready | None]) -> list[str]:
    """Every `provider/model` that a route asks; each has a health of its own, since one model of a provider may fail
    or be rate-limited while its others answer."""
    plans = (plan for one in served if one is not None for plan in one.plans.workflows.values())
    return sorted({step.target.reference for one in plans for step in one.steps if type(step) is VariantStep})


def _retains(snapshot: Snapshot) -> bool:
    """Whether any payload, any Call's features, or what a Decision was made from may be kept."""
    if services_named(snapshot) or any(one.policy is not None for one in snapshot.workflows.values()):
        return True
    retentions = {workflow.retention or snapshot.ledger.retention for workflow in snapshot.workflows.values()}
    return retentions != {"none"}
