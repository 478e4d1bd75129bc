"""A Snapshot wired to this process: its plans, transport, journal and vault, on one event loop."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from drivetrain.adapters.files import FileVault
from drivetrain.adapters.http_pool import HttpPool
from drivetrain.adapters.sqlite_control_feed import SqliteControlFeed
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
from drivetrain.execution.environment import Environment
from drivetrain.execution.plan import Plans, VariantStep, compile_plans
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
        self.plans = compiled(snapshot)
        layout.opened(snapshot.data_folder)
        ledger = snapshot.ledger
        self.transport = HttpPool(loop)
        self.journal = FrameJournal(snapshot.data_folder, segment_bytes_max=ledger.segment_bytes_max, loop=loop)
        self.vault = FileVault(snapshot.keys_folder, payload_days=ledger.payload_days) if _retains(snapshot) else None
        self._random = random.SystemRandom().random
        self.health = Health(_models(self.plans), self._random)
        self.cache = AnswerCache(now_ns=time.monotonic_ns, bytes_max=snapshot.gateway.cache_bytes_max)
        self.flights = Flights(loop.call_soon)
        self._features = feature_reader(snapshot)
        self._limit_watch = LimitWatch(snapshot.limits, SqliteControlFeed(snapshot.data_folder / "control.db"))
        self._limit_watch.start(self._use_limits, loop)
        self.limits: Limits | None = self._limits(snapshot)
        """None while the project declares none."""
        self._purging = loop.call_later(PURGE_S, self._purge)
        self._forgotten = _state(snapshot.keys_folder / FORGOTTEN)
        self._looking = loop.call_later(LOOK_S, self._look)
        self.next_call_id = call_ids(time.time_ns)
        self.environment = self._environment()
        self._day_number = -1
        self._day = ""

    async def prepare(self, snapshot: Snapshot, *, serve_without: bool = False) -> list[DrivetrainError]:
        """Load the trained models that its routes name, before it is served.

        serve_without: leave out those whose files are damaged or gone; their variants fail, and routes fall back.
        Returns what is wrong with them. Raises: DrivetrainError.
        """
        models = models_named(snapshot)
        broken: list[DrivetrainError] = []
        if serve_without:
            models, broken = whole_models(snapshot.data_folder, models)
        if (models or broken) and self.models is None:
            self.models = models_door(
                snapshot.data_folder, self.loop, sockets=self._model_workers, wanted=self._wants_workers
            )
            self.environment = self._environment()
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

    def reload(self, snapshot: Snapshot) -> Plans:
        """Serve `snapshot`, which was prepared, from now on; running calls keep what they began with.

        Returns the plans that it replaces. Raises: DrivetrainError, and keeps the old one, where the new one cannot be
        served.
        """
        plans = compiled(snapshot)
        features = feature_reader(snapshot)
        if self.vault is None and _retains(snapshot):
            self.vault = FileVault(snapshot.keys_folder, payload_days=snapshot.ledger.payload_days)
        self._limit_watch.declare(snapshot.limits)
        if self.limits is None:
            self.limits = self._limits(snapshot)
        self.health.use(_models(plans))
        self.cache.resize(snapshot.gateway.cache_bytes_max)
        self._features = features
        self.environment = self._environment()
        before, self.plans = self.plans, plans
        return before

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

    def _environment(self) -> Environment:
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
            features=self._features,
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


def _models(plans: Plans) -> list[str]:
    """Every `provider/model` that a route asks; each has a health of its own, since one model of a provider may fail
    or be rate-limited while its others answer."""
    steps = (step for plan in plans.workflows.values() for step in plan.steps)
    return sorted({step.target.reference for step in steps if type(step) is VariantStep})


def _retains(snapshot: Snapshot) -> bool:
    """Whether any payload, any Call's features, or what a Decision was made from may be kept."""
    if services_named(snapshot) or any(one.policy is not None for one in snapshot.workflows.values()):
        return True
    retentions = {workflow.retention or snapshot.ledger.retention for workflow in snapshot.workflows.values()}
    return retentions != {"none"}
