"""A loop whose first connection is lost before who asked for it goes on, as uvloop's may be."""

from __future__ import annotations

import asyncio
from typing import Any, cast

TURNS = 3
"""Of the loop, until the protocol has been told that its connection is lost."""


class LosingLoop:
    """The running loop, but for its connections."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.made = 0
        """Connections."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(self, *arguments: Any, **named: Any) -> Any:
        """As the loop's."""
        return await self._first_lost(await self._loop.create_connection(*arguments, **named))

    async def create_unix_connection(self, *arguments: Any, **named: Any) -> Any:
        """As the loop's."""
        return await self._first_lost(await self._loop.create_unix_connection(*arguments, **named))

    async def _first_lost(self, made: Any) -> Any:
        self.made += 1
        if self.made == 1:
            made[0].abort()
            for _ in range(TURNS):
                await asyncio.sleep(0)
        return made


def losing_loop() -> tuple[asyncio.AbstractEventLoop, LosingLoop]:
    """It, as a loop and as what counts."""
    made = LosingLoop()
    return cast("asyncio.AbstractEventLoop", made), made
