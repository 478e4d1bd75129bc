"""Where Idempotency-Keys are kept: who runs the call of a key, and how it ended.

A key is known here by a hash, and an answer is sealed: a store holds nothing that it could read. Each worker of a
gateway has a store of its own on what they share. Whoever claims a key holds it until it settles it, or until it is
dead, as the store finds out without a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

import msgspec

YOURS: Literal["yours"] = "yours"
"""The claimant holds the key now, and runs the call."""
RUNNING: Literal["running"] = "running"
"""Somebody alive holds it."""
OTHER_BODY: Literal["other_body"] = "other_body"
"""It was used with another body."""
ANSWERED: Literal["answered"] = "answered"
"""Its call has ended."""
SETTLED: Literal["settled"] = "settled"
"""A Keep or a Release was heard; one for a key that its sender does not hold changes nothing."""


class IdempotencyUnavailable(Exception):
    """The store cannot be used at present; its words are for the person who runs the gateway. Nothing was changed."""


class Claim(msgspec.Struct, frozen=True):
    """Ask for a key."""

    id: bytes
    """Hash of the key and its scope."""
    body: bytes
    """Hash of the request's body."""


class Keep(msgspec.Struct, frozen=True):
    """The call of a held key has ended; its answer holds from now on for the time that the store keeps keys."""

    id: bytes
    sealed: bytes | None
    """None: it was answered, and the answer is not kept."""


class Release(msgspec.Struct, frozen=True):
    """The call of a held key came to nothing; whoever claims the key next may run it."""

    id: bytes


Ask: TypeAlias = Claim | Keep | Release


class Found(msgspec.Struct, frozen=True):
    """What came of one Ask."""

    outcome: Literal["yours", "running", "other_body", "answered", "settled"]
    sealed: bytes | None = None
    """With ANSWERED: the answer; None where it was not kept, or was dropped because the store was full."""


class IdempotencyStore(Protocol):
    """One worker's store. All methods belong to one thread, and may block for as long as a disk does."""

    def visit(self, asks: Sequence[Ask]) -> tuple[Found, ...]:
        """What came of each Ask, in their order; all of them are done, or none.

        Raises: IdempotencyUnavailable.
        """

    def drop_answers(self) -> int:
        """Every answer that is kept is gone, from the disk too, and every key stays known; how many.

        Whoever repeats a request hears that it was answered, and no request is sent twice. Raises:
        IdempotencyUnavailable; then some may be gone.
        """

    def close(self) -> None:
        """Leave; what is still held may be claimed by others."""
