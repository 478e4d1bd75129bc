"""Releases: what is proposed, approved and live in one environment, as the control log keeps it.

A Release is a whole Snapshot that became live: code, prompts, policies, pins and settings of one environment under one
hash. It is numbered, immutable and cites what justified it. Stored types carry their version in their tag; a field may
be added at the end, with a default; defaults are left out when they are written, so hashes and signatures stay.

`Live` is what the gateway follows: it is computed from the control log by the room `promotion/`, which alone decides
whether a record counts.
"""

from __future__ import annotations

import hashlib

import msgspec

PROPOSED, APPROVED, WITHDRAWN = "release.proposed", "release.approved", "release.withdrawn"
PROMOTED = "release.promoted"
ROLLOUT = "rollout"
"""The control log's kinds. The subject of each is `ENVIRONMENT/NUMBER`."""
EVAL_RAN = "eval.ran"
"""The control log's kind of an eval's run that has a Report; the subject is `report:eval@ID`. It is of no environment:
the keys that the Report is for tell where it holds."""
RELEASE_KINDS = (PROPOSED, APPROVED, WITHDRAWN, PROMOTED, ROLLOUT)
WAYS = ("promote", "rollback", "override")
ROLLOUT_EVENTS = ("stage", "paused", "resumed", "aborted", "completed")
ASPECTS = (
    "workflow",
    "variants",
    "prompts",
    "order",
    "checks",
    "policy",
    "budget",
    "evals",
    "rollout",
    "settings",
    "rules",
)
"""What a change may touch, as approvals name it."""
WHOLE = 1_000_000
"""Shares are kept in parts per million."""


class PersonV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Somebody who may propose, approve or override."""

    name: str
    roles: tuple[str, ...] = ()
    key: str = ""
    """Their Ed25519 public key, base64; then what they do counts only where it is signed with it."""


class ApprovalRuleV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How many people of which roles must approve a kind of change."""

    aspect: str
    """One of `ASPECTS`, or `any`."""
    number: int = 1
    roles: tuple[str, ...] = ()
    """Any of these; empty: anybody who may approve."""
    workflows: tuple[str, ...] = ()
    """Only of these; empty: of all."""


class RulesV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who may do what, as the environment's settings declared it when a Snapshot was made."""

    people: tuple[PersonV1, ...] = ()
    approvals: tuple[ApprovalRuleV1, ...] = ()
    override_roles: tuple[str, ...] = ()
    """Roles that may make a Release without what it lacks, in an emergency; empty: nobody may."""
    gates: bool = True
    """Whether every eval with gates must have passed for each workflow that a change touches."""


class ChangeV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One difference between what is live and what is proposed."""

    workflow: str = ""
    """Empty: of the project's settings."""
    aspect: str
    """One of `ASPECTS`."""
    what: str
    """In words, one line: `variant small: model openai/a became openai/b`."""


class EvidenceV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A gate that must be passed, and the Report that says so."""

    eval: str
    workflow: str
    key: str
    """The workflow's key: 16 hex digits over all that decides how it answers, policy included."""
    eval_key: str
    """16 hex digits over the eval's declaration: its Dataset, scorers and gates."""
    report: str = ""
    """Id of a Report that passed for exactly these two keys; empty while there is none."""


class EvalRanV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="eval-ran.1"):
    """A run of an eval ended, and what it is of: without it no Report proves that gates were passed."""

    report: str
    """Id of its Report."""
    eval: str
    workflow: str
    passed: bool
    rows: str
    """SHA-256 over its rows, 64 hex digits."""
    baseline: str = ""
    """The same over the rows that it was compared with; empty where there are none but its own."""


class ProposalV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="proposal.1"):
    """What somebody wants live."""

    number: int
    """Of its environment: 1, 2, 3 ..."""
    environment: str
    snapshot: str
    """The whole hash of a stored Snapshot."""
    base: int
    """The Release that was live when it was made; 0: none. Another one live meanwhile makes the proposal stale."""
    base_snapshot: str = ""
    by: str
    reason: str = ""
    changes: tuple[ChangeV1, ...] = ()
    keys: dict[str, str] = {}
    """Each workflow that changes -> its key; what left has an empty one."""
    evidence: tuple[EvidenceV1, ...] = ()
    rules: RulesV1 = RulesV1()
    """As the proposed Snapshot declares them; they hold once it is live."""
    signature: str = ""
    """Of `hash` by the person's key, base64, where they have one."""

    @property
    def hash(self) -> str:
        """What approvals bind to: 64 hex digits over everything but the signature."""
        unsigned = msgspec.structs.replace(self, signature="")
        return hashlib.sha256(msgspec.json.encode(unsigned, order="deterministic")).hexdigest()


class ApprovalV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="approval.1"):
    """Somebody stands for a proposal."""

    environment: str
    proposal: int
    proposal_hash: str
    by: str
    reason: str = ""
    signature: str = ""


class WithdrawalV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="withdrawal.1"):
    """A proposal that is not to be released any more."""

    environment: str
    proposal: int
    proposal_hash: str
    by: str
    reason: str = ""
    signature: str = ""


class ReleaseV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="release.1"):
    """A Release, as it was made."""

    number: int
    """Of its environment: 1, 2, 3 ..."""
    environment: str
    way: str
    """One of `WAYS`."""
    snapshot: str
    previous: int
    """The Release that was live; 0: none."""
    by: str
    proposal: int = 0
    proposal_hash: str = ""
    restores: int = 0
    """Of a rollback: the Release whose Snapshot it brings back."""
    workflows: tuple[str, ...] = ()
    """What changes against `previous`; a canary has arms for these."""
    evidence: tuple[EvidenceV1, ...] = ()
    lacks: tuple[str, ...] = ()
    """Of an override: what it lacked, in words."""
    rollout: RolloutV1 | None = None
    """How it reaches its callers; None: at once."""
    reason: str = ""
    signature: str = ""


class GuardV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A guard as a rollout keeps it; see `core.rollouts.Guard`."""

    watch: str
    margin: float = 0.0
    metric: str = ""
    higher_is_better: bool = True
    slow_ms: int = 0


class StageV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stage as a rollout keeps it."""

    share_ppm: int
    """Of the units, in parts per million; 0: a shadow."""
    minutes: float
    units: int = 0
    shadow_ppm: int = 0
    """Of the Calls that are copied to the shadow."""
    shadow_nano_usd_per_day: int = 0


class RolloutV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Stages and guards of one Release."""

    id: str
    """16 hex digits; units are assigned by a hash of it."""
    stages: tuple[StageV1, ...]
    guards: tuple[GuardV1, ...] = ()
    level: float = 0.95


class RolloutEventV1(msgspec.Struct, frozen=True, kw_only=True, tag="rollout.1"):
    """What happened to a rollout."""

    environment: str
    release: int
    event: str
    """One of `ROLLOUT_EVENTS`."""
    stage: int = 0
    """The stage that begins, or that it is in: 0, 1, 2 ..."""
    by: str = ""
    """A person, or `guards`."""
    guard: str = ""
    """Of `aborted` by a guard: which one, such as `errors`."""
    verdict: str = ""
    """In one sentence: which guard, on which evidence."""
    evidence: dict[str, float] = {}
    """Figures: each arm's units, Calls and mean, the difference and its interval, the level."""
    rollout: str = ""
    """Id of the rollout that a signature is about."""
    signature: str = ""
    """Of a person who has a key; guards sign nothing."""


class ActiveRollout(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout that is under way."""

    release: int
    snapshot: str
    """The candidate's."""
    workflows: tuple[str, ...]
    rollout: RolloutV1
    stage: int
    stage_ns: int
    """When the stage began."""
    started_ns: int
    paused: bool = False

    @property
    def share_ppm(self) -> int:
        """Of the units that the candidate answers now; a pause keeps it as it is."""
        return self.rollout.stages[self.stage].share_ppm

    @property
    def shadow_ppm(self) -> int:
        """Of the Calls that are copied to the shadow now."""
        return 0 if self.paused else self.rollout.stages[self.stage].shadow_ppm


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be served in one environment, as the control log has it at one moment."""

    environment: str
    release: int = 0
    """0: nothing was ever released; the project's folder is served."""
    snapshot: str = ""
    since_ns: int = 0
    way: str = ""
    by: str = ""
    lacks: tuple[str, ...] = ()
    """Of an override: what it lacked."""
    rules: RulesV1 = RulesV1()
    """In force."""
    active: ActiveRollout | None = None
    refused: tuple[str, ...] = ()
    """Records that do not count, and why: somebody wrote what nobody may."""
