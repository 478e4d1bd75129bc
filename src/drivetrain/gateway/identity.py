"""Who calls: keys to identities, and what their headers may say about attribution."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping

import msgspec

from drivetrain.core.calls import Attribution
from drivetrain.core.declarations import Workflow
from drivetrain.core.errors import RequestError, did_you_mean
from drivetrain.project.snapshot import SecretRef, Snapshot

VALUE_CHARS_MAX = 256
TAGS_MAX = 16
ATTRIBUTIONS_MAX = 10_000
"""Attributions remembered per worker; they are built anew beyond it."""
OVERRIDES: Mapping[bytes, str] = {
    b"x-drivetrain-team": "team",
    b"x-drivetrain-use-case": "use_case",
    b"x-drivetrain-user": "user",
    b"x-drivetrain-tags": "tags",
}


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a key stands for."""

    key: str
    tenant: str = ""
    team: str = ""
    use_case: str = ""
    workflows: frozenset[str] | None = None
    """None: all."""
    may_override: frozenset[str] = frozenset()

    def may_call(self, workflow: str) -> bool:
        """Whether it may call `workflow`."""
        return self.workflows is None or workflow in self.workflows


ANYBODY = Identity(key="", may_override=frozenset({"team", "use_case", "user", "tags"}))
"""Without any key in the project, whoever reaches the loopback interface."""


class KeyRing:
    """The keys of a Snapshot, by a keyed hash: neither the keys nor a fast way to guess them stay in memory."""

    __slots__ = ("_attributions", "_by_hash", "_pepper", "_snapshot", "open")

    def __init__(self, snapshot: Snapshot, resolve: Callable[[SecretRef], str]) -> None:
        self._snapshot = snapshot
        self._pepper = secrets.token_bytes(32)
        self._by_hash: dict[bytes, Identity] = {}
        self._attributions: dict[tuple[str, str], Attribution] = {}
        self.open = not snapshot.keys
        """Whether no key is asked for."""
        for key in snapshot.keys.values():
            identity = Identity(
                key=key.name,
                tenant=key.tenant,
                team=key.team,
                use_case=key.use_case,
                workflows=frozenset(key.workflows) if key.workflows is not None else None,
                may_override=frozenset(key.may_override),
            )
            self._by_hash[self._hash(resolve(key.secret).encode())] = identity

    def identify(self, authorization: bytes | None) -> Identity:
        """Raises: RequestError (401) where no key, or none of ours, is given."""
        if self.open:
            return ANYBODY
        if authorization is None:
            message = "no key was given; send it as `Authorization: Bearer KEY`"
            raise RequestError(401, message, code="invalid_api_key")
        found = self._by_hash.get(self._hash(authorization[7:])) if authorization[:7].lower() == b"bearer " else None
        if found is None:
            raise RequestError(401, "the key is not known to this gateway", code="invalid_api_key")
        return found

    def attribution(
        self, identity: Identity, workflow: Workflow[object, object], headers: Mapping[bytes, bytes], user: str
    ) -> Attribution:
        """Key over workflow, and headers over both where the key may. Raises: RequestError."""
        known = self._attributions.get((identity.key, workflow.name))
        if known is None:
            known = Attribution(
                identity.tenant,
                identity.team or workflow.team,
                identity.use_case or workflow.use_case,
                identity.key,
            )
            if len(self._attributions) < ATTRIBUTIONS_MAX:
                self._attributions[(identity.key, workflow.name)] = known
        if user and "user" in identity.may_override:
            known = msgspec.structs.replace(known, user=user)
        if headers.keys().isdisjoint(OVERRIDES):
            return known
        return self._overridden(known, identity, headers)

    def _overridden(self, known: Attribution, identity: Identity, headers: Mapping[bytes, bytes]) -> Attribution:
        said: dict[str, str] = {}
        for header, field in OVERRIDES.items():
            raw = headers.get(header)
            if raw is None:
                continue
            name = header.decode()
            if field not in identity.may_override:
                message = f"the key `{identity.key}` may not set `{name}`; its owner can add it to may_override"
                raise RequestError(403, message, code="attribution_not_allowed", param=name)
            said[field] = _text(raw, name)
        teams = self._snapshot.teams
        if said.get("team") and teams and said["team"] not in teams:
            message = f"`x-drivetrain-team` names no team of this project. {did_you_mean(said['team'], teams)}"
            raise RequestError(400, message, code="unknown_team", param="x-drivetrain-team")
        return Attribution(
            known.tenant,
            said.get("team") or known.team,
            said.get("use_case") or known.use_case,
            known.key,
            said.get("user") or known.user,
            _tags(said["tags"]) if "tags" in said else known.tags,
        )

    def _hash(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, key=self._pepper, digest_size=16).digest()


def _text(raw: bytes, name: str) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(400, f"`{name}` is no UTF-8 text", code="invalid_value", param=name) from error
    if len(text) > VALUE_CHARS_MAX or not text.isprintable():
        message = f"`{name}` must be at most {VALUE_CHARS_MAX} printable characters"
        raise RequestError(400, message, code="invalid_value", param=name)
    return text.strip()


def _tags(text: str) -> tuple[str, ...]:
    tags = sorted({tag.strip() for tag in text.split(",") if tag.strip()})
    if len(tags) > TAGS_MAX:
        message = f"`x-drivetrain-tags` names {len(tags)} tags; at most {TAGS_MAX} are kept"
        raise RequestError(400, message, code="invalid_value", param="x-drivetrain-tags")
    return tuple(tags)
