"""Who calls: keys to identities, and what their headers may say about attribution."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

import msgspec

from drivetrain.core.calls import Attribution
from drivetrain.core.declarations import Workflow
from drivetrain.core.errors import DrivetrainError, RequestError, did_you_mean
from drivetrain.core.keys import IssuedKey, is_well_formed, key_digest, looks_issued
from drivetrain.core.times import iso
from drivetrain.ports.keys import IssuedKeys
from drivetrain.project.snapshot import Key, SecretRef, Snapshot

VALUE_CHARS_MAX = 256
TAGS_MAX = 16
ATTRIBUTIONS_MAX = 10_000
"""Attributions remembered per worker; they are built anew beyond it."""
ENDED_MAX = 10_000
"""Keys that ended of which a worker can say so; further ones are merely unknown."""
NONE_ISSUED = IssuedKeys()
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
"""Where no key was declared or issued, whoever reaches the loopback interface."""


class KeyRing:
    """The keys of a Snapshot and those that were issued, by a keyed hash: no key stays in memory.

    A look-up is one keyed hash and one look into a dict, whose time says nothing about any key: who does not know the
    hash's key cannot choose what is compared. A ring never changes: another key, or the end of one, is another ring.
    """

    __slots__ = ("_attributions", "_by_digest", "_declared", "_ended", "_pepper", "_snapshot", "closed", "open",
                 "problem", "until_ns")  # fmt: skip

    def __init__(
        self,
        snapshot: Snapshot,
        resolve: Callable[[SecretRef], str],
        issued: IssuedKeys = NONE_ISSUED,
        *,
        now_ns: int = 0,
        problem: str = "",
        closed: bool = False,
        before: KeyRing | None = None,
    ) -> None:
        """problem: why `issued` may be out of date. closed: accept none of them. before: a ring whose declared keys are
        taken over where they are the same, instead of looking up their secrets again. Raises: what `resolve` raises.
        """
        self._snapshot = snapshot
        self._pepper: bytes = issued.pepper or (before._pepper if before is not None else secrets.token_bytes(32))
        self._declared: Mapping[bytes, Identity]
        if before is not None and before._snapshot is snapshot and before._pepper == self._pepper:
            self._declared = before._declared
        else:
            keys = snapshot.keys.values()
            self._declared = {key_digest(self._pepper, resolve(key.secret).encode()): _identity(key) for key in keys}
        self._by_digest: dict[bytes, Identity] = dict(self._declared)
        self._ended: dict[bytes, IssuedKey] = {}
        self._attributions: dict[tuple[str, str], Attribution] = {}
        self.open = not (snapshot.keys or issued.keys or closed)
        """Whether no key is asked for: none was declared, and none was ever issued."""
        self.closed = closed
        """Whether issued keys are refused because the store cannot be asked."""
        self.until_ns: int | None = None
        """When the first of these keys expires, and another ring is due."""
        doubled = sorted({key.name for key in issued.keys if key.name in snapshot.keys and key.usable(now_ns)})
        for key in issued.keys:
            if not key.usable(now_ns):
                if len(self._ended) < ENDED_MAX:
                    self._ended[key.digest] = key
            elif not closed and key.name not in snapshot.keys:
                self._by_digest[key.digest] = _identity(key)
                if key.expires_ns is not None:
                    self.until_ns = min(key.expires_ns, self.until_ns or key.expires_ns)
        said = [problem, *issued.problems, *(_declared_too(name) for name in doubled)]
        self.problem = " ".join(one for one in said if one)
        """What is wrong with the issued keys, for the person who runs the gateway; empty where nothing is."""

    def identify(self, authorization: bytes | None) -> Identity:
        """Raises: RequestError (401) where no key, or none of ours, is given; 503 where it cannot be told."""
        if self.open:
            return ANYBODY
        if authorization is None:
            message = "no key was given; send it as `Authorization: Bearer KEY`"
            raise RequestError(401, message, code="invalid_api_key")
        if authorization[:7].lower() != b"bearer ":
            raise RequestError(401, "the key is not known to this gateway", code="invalid_api_key")
        found = self._by_digest.get(key_digest(self._pepper, authorization[7:]))
        if found is None:
            raise self._refusal(authorization[7:])
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

    def _refusal(self, key: bytes) -> RequestError:
        """Why a key is refused: that it ended is said to who has it; that it is malformed says nothing of our keys."""
        ended = self._ended.get(key_digest(self._pepper, key))
        if ended is not None and ended.revoked_ns is not None:
            message = f"the key `{ended.name}` was revoked"
        elif ended is not None:
            message = f"the key `{ended.name}` expired on {iso(ended.expires_ns or 0)}"
        elif not looks_issued(key):
            message = "the key is not known to this gateway"
        elif not is_well_formed(key):
            message = "the key is malformed: it was cut or mistyped"
        elif self.closed:
            message = "this gateway cannot check issued keys at the moment; send the request again"
            return RequestError(503, message, code="keys_unavailable", kind="server_error", retry_after_s=1)
        else:
            message = "the key is not known to this gateway"
        return RequestError(401, message, code="invalid_api_key")


def check_names(snapshot: Snapshot, issued: IssuedKeys, now_ns: int) -> None:
    """Raises: DrivetrainError where a declared key has the name of an issued one that is accepted."""
    doubled = sorted({key.name for key in issued.keys if key.name in snapshot.keys and key.usable(now_ns)})
    if doubled:
        raise DrivetrainError(
            " ".join(map(_declared_too, doubled)),
            looked=[f"drivetrain.toml:{snapshot.keys[name].line}" for name in doubled],
            do="Give the declared one another name, or run `drivetrain keys revoke` for the issued one.",
        )


def _declared_too(name: str) -> str:
    return f"The key `{name}` was issued, and is declared in drivetrain.toml too."


def _identity(key: Key | IssuedKey) -> Identity:
    return Identity(
        key=key.name,
        tenant=key.tenant,
        team=key.team,
        use_case=key.use_case,
        workflows=frozenset(key.workflows) if key.workflows is not None else None,
        may_override=frozenset(key.may_override),
    )


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
