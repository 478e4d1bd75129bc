"""The one door to trained models for a gateway worker: small ones in its process, larger ones apart from its loop.

Owns which. A model is small where scoring one row takes at most `INLINE_US`; a larger one would keep the loop from
everybody else, and goes to the model workers, or to a thread where there is none. Called by whoever wires
`Environment.models`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from drivetrain.core.models import Pinned
from drivetrain.inference.local import LocalModels
from drivetrain.ports.inference import ModelRequest, Models
from drivetrain.ports.transport import Attempt, UpstreamSink

INLINE_US = 1000.0
"""One row of it delays other Calls of this process by at most so long: a fifth of what a tick may spend."""


class Apart(Models, Protocol):
    """Where larger models are scored: `pool.WorkerModels` or `threaded.ThreadModels`."""

    async def prepare(self, models: Sequence[Pinned]) -> None:
        """Load these before traffic, and let go of others. Raises: DrivetrainError."""

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
        self._before: set[str] = set()
        """Digests that were prepared before: Calls that began then may still ask for them."""

    async def prepare(self, models: Sequence[Pinned]) -> None:
        """Load these, so that no first Call is slow; those of the time before last are let go.

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
        wanted = {model.digest for model in models}
        self._small &= wanted | self._before
        self._local.forget(frozenset(wanted | self._before))
        self._before = wanted

    def send(self, request: ModelRequest, sink: UpstreamSink) -> Attempt:
        # What was not prepared is loaded where that keeps nobody waiting.
        door: Models = self._local if request.model.digest in self._small else self._apart
        return door.send(request, sink)

    async def close(self) -> None:
        """End what runs apart."""
        await self._apart.close()
