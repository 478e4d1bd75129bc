"""A Call and its Attempts: as frames in the ledger (versioned, readable for ever) and as one joined record.

Stored types carry their version in their tag. A field may be added at the end, with a default, so that older records
read as before and older readers skip it; any other change is a new version, and the old one stays readable. Times are
UTC nanoseconds, offsets microseconds since the Call opened.
"""

from __future__ import annotations

import msgspec

from drivetrain.core.features import FeaturesSeenV1
from drivetrain.core.money import NO_USAGE, Usage
from drivetrain.core.policies import DecisionV1

RETAINED_NONE, RETAINED_HASH, RETAINED_FULL = 0, 1, 2
EVAL, JUDGE = "eval", "judge"
"""The doors of Calls that evals, upgrades and probes ask, and of those that judge their answers."""
INTERRUPTED = "interrupted"
"""The status of a Call whose process ended before it did."""
SHADOW = "shadow"
"""The door of a candidate's Calls on copies of traffic."""
DOORS_ASIDE = frozenset({EVAL, JUDGE, SHADOW})
"""Doors of Calls whose answers no caller gets: no Outcome is the truth about them, whatever their input's key."""
CHAT_DOORS = frozenset({"chat", "direct"})
"""Doors by which requests come in OpenAI's shape."""


class Attribution(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who a Call is for; every cent is attributed to each of these."""

    tenant: str = ""
    team: str = ""
    use_case: str = ""
    key: str = ""
    """Name of the key, never the key."""
    user: str = ""
    tags: tuple[str, ...] = ()
    """`name` or `name=value`, sorted."""

    @property
    def unit(self) -> str:
        """Who stays in one arm of a canary, and is counted once: the user, else the key, else the tenant."""
        return self.user or self.key or self.tenant


class AttemptV1(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One try of one variant."""

    variant: str
    model: str
    """`provider/model`; empty for a rule."""
    purpose: str
    """`answer`, `escalation`, `fallback` or `retry`."""
    verdict: str
    """`accepted`, `escalated`, `failed`, `aborted`, or `sent` where the process ended before the attempt did."""
    reason: str = ""
    """Why it was not accepted, or what was mended."""
    sent_us: int = 0
    first_byte_us: int = 0
    ended_us: int = 0
    status: int = 0
    """HTTP status; 0 where none came."""
    usage: Usage = NO_USAGE
    cost_nano_usd: int = 0
    price_source: str = ""
    provider_request_id: str = ""
    repaired: bool = False
    failure: str = ""
    """The transport's word for what went wrong (`connect`, `cut`, ...); empty where a whole answer came."""
    retry_after_ms: int = -1
    """The pause the provider asked for; -1 where it named none."""
    streamed: bool = False
    """Whether the provider answered with an event stream."""
    cached: bool = False
    """Whether the answer came from the cache; then no token was used and nothing was spent."""
    saved_nano_usd: int = 0
    """What a cached answer cost when the provider gave it."""


class OpenedV1(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="opened.1"):
    """Written before the first upstream byte."""

    call_id: str
    opened_ns: int
    snapshot: str
    """First 16 hex digits of the Snapshot's hash."""
    workflow: str
    door: str
    """`chat`, `workflow`, `python` or `direct`; one of `DOORS_ASIDE` where no caller gets the answer."""
    stream: bool
    attribution: Attribution
    prices_date: str = ""
    """The date whose prices hold for this Call, `YYYY-MM-DD`."""
    retained: int = RETAINED_NONE
    payload: bytes = b""
    """The request: nothing, a hash, or encrypted under the subject's key."""
    reserved_number: int = 0
    """The first attempt's reservation stands here, so that most Calls need no frame for it; 0: it has none."""
    reserved_accounts: tuple[str, ...] = ()
    reserved_nano_usd: int = 0
    features: FeaturesSeenV1 | None = None
    """What the Call's features were; None where its workflow names no FeatureService."""
    business_key: str = ""
    """What the workflow's `outcome_key` held: Outcomes may name it instead of the Call. Empty behind `DOORS_ASIDE`."""

    @property
    def reservation(self) -> ReservedV1 | None:
        """Of the first attempt, where it has one."""
        if not self.reserved_number:
            return None
        return ReservedV1(self.call_id, self.reserved_number, self.reserved_accounts, self.reserved_nano_usd)


class ReservedV1(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="reserved.1"):
    """Money is reserved for a further attempt of a Call; written before it is sent, so what has none was never sent."""

    call_id: str
    number: int
    """Of the reservation, counted per writer; the same for all attempts of a Call."""
    accounts: tuple[str, ...]
    """Every budget account that this Call is charged to, each in full."""
    amount_nano_usd: int
    """The worst case of the attempt that is about to be sent."""
    charged_nano_usd: int = 0
    """What earlier attempts of this Call have cost."""

    @property
    def open_cost_nano_usd(self) -> int:
        """What a Call costs whose end nobody saw: known cost of earlier attempts, and the reservation of the last."""
        return self.charged_nano_usd + self.amount_nano_usd


class ClosedV1(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="closed.1"):
    """Written before the last byte to the client."""

    call_id: str
    closed_ns: int
    status: str
    """`answered`, `failed`, `refused` or `aborted` (the client left)."""
    http_status: int
    variant: str
    """The variant that answered; empty where none did."""
    cost_nano_usd: int
    attempts: tuple[AttemptV1, ...] = ()
    error: str = ""
    """Error code where it did not end well."""
    finish_reason: str = ""
    retained: int = RETAINED_NONE
    payload: bytes = b""
    """The providers' answers and ours: nothing, a hash, or encrypted under the subject's key."""
    degraded: str = ""
    """`stale` or `static` where no variant answered and the workflow's ladder did; else empty."""
    notes: tuple[str, ...] = ()
    """What was done to the request before the route, such as turns dropped to fit `max_input_tokens`."""
    decision: DecisionV1 | None = None
    """What the workflow's policy did with the answer; None where it has none, or where nothing was answered."""


class OutcomeV1(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="outcome.1"):
    """The truth about a Call, arriving later. The latest arrival per (call, metric, source) holds."""

    call_id: str
    """Empty where the Outcome names its Calls by `workflow` and `business_key`."""
    metric: str
    source: str
    value: str | float | bool
    event_ns: int
    arrived_ns: int
    key: str = ""
    """Name of the API key that it came with."""
    workflow: str = ""
    business_key: str = ""
    """It is the truth about every Call of `workflow` whose `outcome_key` held this."""


class SegmentV1(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="segment.1"):
    """First frame of each segment."""

    writer: str
    opened_ns: int
    version: str
    """The package's version."""


Stored = SegmentV1 | OpenedV1 | ReservedV1 | ClosedV1 | OutcomeV1


class BlockV1(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="block.1"):
    """Many records written together, as one frame; it holds records and is none itself, so no reader meets it."""

    raw_size: int
    """Bytes of what `content` decompresses to."""
    content: bytes
    """A count, each body's length, and the bodies, compressed with zstd."""


class Answers(msgspec.Struct, frozen=True, array_like=True, tag="answers.1"):
    """What the encrypted payload of a closed frame holds."""

    attempts: tuple[bytes, ...]
    """The provider's body of each attempt, in order; empty for rules and failures without one."""
    answer: bytes | None
    """The body the client got, where it is not the last attempt's."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One truth about one Call, as it holds now."""

    metric: str
    source: str
    value: str | float | bool
    event_ns: int
    arrived_ns: int


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request through a workflow, with every Attempt, as the ledger knows it."""

    call_id: str
    opened_ns: int
    closed_ns: int = 0
    """0 while it runs or where it was interrupted."""
    snapshot: str
    workflow: str
    door: str
    stream: bool
    attribution: Attribution
    prices_date: str = ""
    status: str
    """`answered`, `failed`, `refused`, `aborted`, `running` or `interrupted` (its process ended before it did)."""
    http_status: int = 0
    variant: str = ""
    cost_nano_usd: int = 0
    attempts: tuple[AttemptV1, ...] = ()
    error: str = ""
    finish_reason: str = ""
    degraded: str = ""
    """`stale` or `static` where the workflow's ladder answered."""
    notes: tuple[str, ...] = ()
    """What was done to the request before the route."""
    retained: int = RETAINED_NONE
    request: bytes = b""
    """As stored: hash or encrypted."""
    answers: bytes = b""
    """As stored: hash or encrypted."""
    outcomes: tuple[Outcome, ...] = ()
    features: FeaturesSeenV1 | None = None
    business_key: str = ""
    decision: DecisionV1 | None = None


STORED_DECODER = msgspec.msgpack.Decoder(Stored)
BLOCK_DECODER = msgspec.msgpack.Decoder(BlockV1)
