"""Where frames go before anything else happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from drivetrain.core.calls import Stored


class JournalFull(Exception):
    """A frame could not be written: no space, read-only, or an I/O error."""


class Journal(Protocol):
    """Takes frames and runs what must wait for them."""

    @property
    def failed(self) -> str:
        """Why frames cannot be written at present; empty while they can."""

    def append(self, record: Stored, then: Callable[[bool], None] | None = None, *, sync: bool = False) -> None:
        """Write `record` with the others of this loop tick, then call `then(written)`.

        sync: also wait for the disk. `then(False)` means that it was not written, and nothing may be promised.
        """

    def append_late(self, record: Stored, then: Callable[[], None]) -> None:
        """Keep `record` until it can be written, then call `then`: for what must be known though nobody waits for it.

        It is lost with the process, as what was never written is.
        """


class Vault(Protocol):
    """Encrypts payloads under a key per subject."""

    def seal(self, subject: str, call_id: str, kind: str, payload: bytes) -> bytes:
        """`payload` sealed for `subject`; `call_id` and `kind` are bound to it."""

    def digest(self, payload: bytes) -> bytes:
        """32 bytes that tell whether two payloads are the same; short texts cannot be guessed from them."""

    def open(self, call_id: str, kind: str, sealed: bytes) -> bytes | None:
        """The payload; None where its subject was erased or its time is over.

        Raises: ValueError where it was altered.
        """
