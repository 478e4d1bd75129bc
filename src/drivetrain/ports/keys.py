"""Where issued keys are kept: changed by people through commands, read by every gateway worker."""

from __future__ import annotations

from typing import Protocol

import msgspec

from drivetrain.core.keys import IssuedKey


class KeyTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a key shall stand for."""

    name: str
    tenant: str = ""
    team: str = ""
    use_case: str = ""
    workflows: tuple[str, ...] | None = None
    may_override: tuple[str, ...] = ()
    expires_ns: int | None = None


class IssuedKeys(msgspec.Struct, frozen=True, kw_only=True):
    """Every key that was ever issued, as one look at the store found them."""

    pepper: bytes = b""
    """What digests are keyed with; empty where no key was ever issued."""
    keys: tuple[IssuedKey, ...] = ()
    """By name and generation; those that ended too. None is ever deleted."""
    problems: tuple[str, ...] = ()
    """Keys that are left out because somebody altered them, in words."""

    def __repr__(self) -> str:
        return f"IssuedKeys({len(self.keys)} keys, {len(self.problems)} problems)"


class KeyStore(Protocol):
    """Issues and ends keys. Every change is in the control log: kind `key`, subject the key's name, and no secret.

    What lets a key in is logged before it takes effect, and what ends one takes effect before it is logged, so that a
    crash at any point leaves no key that is accepted and not logged.
    """

    def issue(self, terms: KeyTerms, key: str, actor: str) -> IssuedKey:
        """The key as kept. Raises: DrivetrainError where the name was ever used."""

    def rotate(self, name: str, key: str, actor: str, *, overlap_ns: int, expires_ns: int | None) -> IssuedKey:
        """The next generation; those before it are accepted for `overlap_ns` more, at most.

        Raises: DrivetrainError where there is no such key, or it was revoked.
        """

    def revoke(self, name: str, actor: str) -> tuple[IssuedKey, ...]:
        """The generations that this ended, which may be none.

        Raises: DrivetrainError where there is no such key, or where it is revoked and the log could not be told.
        """


class KeySource(Protocol):
    """Issued keys for one reader that looks again and again."""

    def changed(self) -> bool:
        """Whether `read` may answer otherwise than when this was asked before. Takes microseconds."""

    def read(self) -> IssuedKeys:
        """All of them; may take milliseconds, and be called from any thread. Raises: DrivetrainError."""

    def close(self) -> None:
        """Let the store go."""
