"""The one door to trained models for a gateway worker: small ones in its process, larger ones apart from its loop.

Owns which. A model is small where scoring one row takes at most `INLINE_US`; a larger one would keep the loop from
everybody else, and goes to the model workers, or to a thread where there is none. Called by whoever wires
`Environment.models`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from drivetrain.core.models import Pinned
from drivetrain.inference.local import LocalCounts, LocalModels
from drivetrain.inference.worker import PAST_MODELS_MAX, ModelCounts
from drivetrain.ports.inference import ModelRequest, Models
from drivetrain.ports.transport import Attempt, UpstreamSink

INLINE_US = 1000.0
"""One row of it delays other Calls of this process by at most so long: a fifth of what a tick may spend."""
LINGER_S = 60.0
"""Calls that began before a reload may ask for the models of then for so long; later, they are loaded anew."""


class Apart(Models, Protocol):
    """Where larger models are scored: `pool.WorkerModels` or `threaded.ThreadModels`."""

    async def prepare(self, models: Sequence[Pinned]) -> None:
        """Load these before traffic. Raises: DrivetrainError."""

    def keep(self, digests: frozenset[str]) -> None:
        """Let go of all other models; who waits for one is still scored."""

    def counts(self) -> dict[str, ModelCounts]:
        """What this process did with each, by model id."""

    async def close(self) -> None:
        """End what runs."""


class ModelsDoor:
    """Implements `ports.inference.Models`: each request goes where its model is."""

    def __init__(self, local: LocalModels, apart: Apart, inline: Callable[[Pinned], bool]) -> None:
        """inline: whether a model is small; asked in a thread, as it may have to load it. Raises DrivetrainError."""
        self._local = local
        self._apart = apart
        self._inline = inline
        self._small: set[str] = set()
        """Digests of the models that are scored here."""
        self._before: frozenset[str] = frozenset()
        """Digests that were prepared before: Calls that began then may still ask for them."""
        self._past: dict[str, ModelCounts] = {}
        """By model id, of small models that were let go of."""
        self._lingering: asyncio.TimerHandle | None = None

    async def prepare(self, models: Sequence[Pinned]) -> None:
        """Load these, so that no first Call is slow.

        Those of the time before are let go after `LINGER_S`, or by the next time; those of the time before that, now.

        Raises: DrivetrainError where one cannot be loaded.
        """
        larger = []
        for model in models:
            if model.digest in self._small or await asyncio.to_thread(self._inline, model):
                await asyncio.to_thread(self._local.prepare, model)
                self._small.add(model.digest)
            else:
                larger.append(model)
        if larger:
            await self._apart.prepare(larger)
        wanted = frozenset(model.digest for model in models)
        self._keep(wanted | self._before)
        self._before = wanted
        if self._lingering is not None:
            self._lingering.cancel()
        self._lingering = asyncio.get_running_loop().call_later(LINGER_S, self._keep, wanted)

    def send(self, request: ModelRequest, sink: UpstreamSink) -> Attempt:
        # What was not prepared is loaded where that keeps nobody waiting.
        door: Models = self._local if request.model.digest in self._small else self._apart
        return door.send(request, sink)

    def counts(self) -> dict[str, ModelCounts]:
        """What this process did with each model, by model id; model workers tell theirs themselves."""
        found = {id: msgspec.structs.replace(one) for id, one in self._past.items()}
        for id, one in self._local.counts().items():
            found.setdefault(id, ModelCounts()).add(_sums(one))
            found[id].loaded = True
            found[id].predicted_us = int(one.row_us)
        return {**found, **self._apart.counts()}

    async def close(self) -> None:
        """End what runs apart."""
        if self._lingering is not None:
            self._lingering.cancel()
        await self._apart.close()

    def _keep(self, digests: frozenset[str]) -> None:
        """Let go of all other models. Their sums are told still, as sums must not fall."""
        self._small &= digests
        known = self._local.counts()
        self._local.forget(digests)
        for id in known.keys() - self._local.counts().keys():
            self._past.setdefault(id, ModelCounts(loaded=False)).add(_sums(known[id]))
        while len(self._past) > PAST_MODELS_MAX:
            del self._past[next(iter(self._past))]
        self._apart.keep(digests)


def _sums(local: LocalCounts) -> ModelCounts:
    return ModelCounts(rows=local.rows, batches=local.batches, queue_us=local.queue_us, busy_us=local.busy_us)
