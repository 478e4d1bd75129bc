"""What a user declares: Workflow, Variant, Rule, Record, Budget, SLO and their parts. Data only.

A declaration never raises for a wrong value: it keeps what was written and where, so that
`drivetrain check` can report every mistake at once. Rooms below `cli` hold the behaviour.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, Generic, Never, TypeVar, dataclass_transform

import msgspec

DEFAULT_MAX_OUTPUT_TOKENS = 4096
DEFAULT_ATTEMPTS_MAX = 4
DEFAULT_TIMEOUT_MS = 60_000
DEFAULT_FIRST_BYTE_TIMEOUT_MS = 30_000

Retention = str
RETENTIONS = ("none", "hash", "sampled", "full")
DURABILITIES = ("write", "audit")
CHAT_INPUTS = ("last_user_message", "json", "conversation")
CONTEXT_STRATEGIES = ("refuse", "drop_oldest_turns", "keep_ends")
PRIORITIES = ("high", "normal", "low")
CACHE_WHEN = ("deterministic", "always")
FEATURES_MISSING = ("default", "refuse")


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Record(msgspec.Struct, frozen=True):
    """Base of a workflow's input and output types; fields are typed as in any msgspec Struct."""


class Conversation(Record, frozen=True):
    """The input of a plain chat workflow, as its rules and checks see it."""

    messages: tuple[dict[str, Any], ...]
    """The messages in OpenAI's shape, as admitted."""
    text: str
    """The text of the last user message; empty where there is none."""


class Place(msgspec.Struct, frozen=True):
    """Where a declaration was written."""

    file: str = ""
    line: int = 0


def caller_place() -> Place:
    """Where the user wrote the declaration; `Workflow[In, Out](...)` comes by way of `typing`."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") in ("typing", "contextlib"):
        frame = frame.f_back
    return Place(frame.f_code.co_filename, frame.f_lineno) if frame is not None else Place()


class Check(msgspec.Struct, frozen=True):
    """A named test of an answer: `test(output, input)` gives None to accept, else the reason to escalate."""

    name: str
    test: Callable[[Any, Any], str | None]
    field: str = ""
    """The output's field that it looks at, where it looks at one."""
    at_least: float | None = None
    """The share from 0 to 1 that it asks of `field`."""


def confidence(at_least: float, *, field: str = "confidence") -> Check:
    """Accept an output whose `field` is a number of at least `at_least`; without one it escalates."""

    def test(output: Any, _input: Any) -> str | None:
        value = getattr(output, field, None)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{field} is missing"
        if value >= at_least:
            return None
        return f"{field} {value:.4g} < {at_least:.4g}"

    return Check(f"{field}>={at_least:g}", test, field, at_least)


class Reject(Exception):
    """Raised by a validator or an `accept` function to escalate an answer, with the reason."""


class Rule:
    """A variant that answers by itself, at cost zero, when `when(input)` is true."""

    __slots__ = ("matches", "name", "place", "then", "unknown", "when")

    def __init__(
        self,
        name: str,
        *,
        when: Callable[[Any], bool],
        then: Any,
        place: Place | None = None,
        **unknown: Never,
    ) -> None:
        self.name = name
        self.when = when
        self.then = then
        """The output, or a function of the input that gives it."""
        self.place = place or caller_place()
        self.unknown: Mapping[str, Any] = unknown


class Variant:
    """One pinned way to fulfil a workflow with a model: `provider/model-snapshot`, prompt and parameters, or a trained
    model: `models:/NAME@ALIAS` or `models:/NAME/NUMBER`."""

    __slots__ = (
        "accept",
        "first_byte_timeout_ms",
        "max_output_tokens",
        "model",
        "name",
        "parameters",
        "place",
        "prompt",
        "system",
        "timeout_ms",
        "unknown",
    )

    def __init__(
        self,
        name: str,
        *,
        model: str,
        prompt: str | None = None,
        system: str | None = None,
        accept: Check | Callable[..., Any] | Sequence[Check | Callable[..., Any]] | None = None,
        max_output_tokens: int = DEFAULT_MAX_OUTPUT_TOKENS,
        parameters: Mapping[str, Any] | None = None,
        timeout_ms: int = DEFAULT_TIMEOUT_MS,
        first_byte_timeout_ms: int = DEFAULT_FIRST_BYTE_TIMEOUT_MS,
        place: Place | None = None,
        **unknown: Never,
    ) -> None:
        self.name = name
        self.model = model
        self.prompt = prompt
        """File of the template that renders the user message; input fields are its variables."""
        self.system = system
        """File of the template that renders the system message."""
        self.accept = accept
        self.max_output_tokens = max_output_tokens
        """The most output tokens we ask for; a client's lower limit wins, a higher one does not."""
        self.parameters: Mapping[str, Any] = parameters or {}
        """Parameters sent as they are, for example `{"temperature": 0}`; they win over the client's."""
        self.timeout_ms = timeout_ms
        """From sending the attempt to its last byte."""
        self.first_byte_timeout_ms = first_byte_timeout_ms
        """From sending the attempt to its first byte; then the route falls back."""
        self.place = place or caller_place()
        self.unknown: Mapping[str, Any] = unknown


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What a workflow may spend. Amounts are USD as exact decimals: write them as strings or whole numbers."""

    usd_per_call: str | int | None = None
    """A call whose worst case is dearer is refused before anything is sent."""
    usd_per_day: str | int | None = None
    usd_per_month: str | int | None = None
    mode: str = "hard"
    """Of the amounts per day and month: `hard` refuses, `soft` only counts, `downgrade` closes what does not fit."""
    alerts: tuple[int, ...] = ()
    """Shares of the amounts per day and month in percent; passing one is announced once."""


class Cache(msgspec.Struct, frozen=True, kw_only=True):
    """Identical requests of one tenant to one variant are answered once, then from memory, at no cost."""

    ttl_s: int
    """How long an answer counts as fresh."""
    when: str = "deterministic"
    """`deterministic`: only requests with temperature 0; `always`: whatever the temperature."""
    tool_calls: bool = False
    """Whether an answer that calls tools may be given again."""


class Stale(msgspec.Struct, frozen=True, kw_only=True):
    """Where no variant answers: the cached answer to the same request, marked as stale."""

    max_age_s: int
    """Older answers are not given."""


class Static(msgspec.Struct, frozen=True):
    """Where no variant answers: always this, marked as degraded."""

    answer: Any
    """The output type's instance; a text where the workflow declares no output type."""


class SLO(msgspec.Struct, frozen=True, kw_only=True):
    """What a workflow promises its callers."""

    p99_ms: int | None = None
    availability: float | None = None


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """Which of a client's chat parameters a workflow honours, fixes or refuses; unnamed ones follow `others`."""

    honour: tuple[str, ...] = ()
    """Passed on to the model as the client sent them."""
    fix: dict[str, Any] = {}
    """Always sent with this value, whatever the client sent."""
    ignore: tuple[str, ...] = ()
    """Accepted and dropped."""
    refuse: tuple[str, ...] = ()
    """Answered with a 400 that names the parameter."""
    others: str | None = None
    """`refuse` or `honour` for parameters named nowhere; by default chat workflows honour and typed ones refuse."""


In = TypeVar("In")
Out = TypeVar("Out")


class Workflow(Generic[In, Out]):
    """A named contract that somebody owns: types, owner, route, budget, SLO and retention.

    Called as a function it answers without any server: `triage(Ticket(text="..."))`.
    """

    __slots__ = (
        "attempts_max",
        "budget",
        "cache",
        "chat_field",
        "chat_input",
        "context",
        "deadline_ms",
        "degrade",
        "durability",
        "entity_keys",
        "features",
        "features_missing",
        "input",
        "keep_days",
        "max_input_tokens",
        "name",
        "outcome_key",
        "output",
        "owner",
        "parameters",
        "place",
        "policy",
        "priority",
        "project",
        "retention",
        "rollout",
        "route",
        "slo",
        "team",
        "unknown",
        "use_case",
        "validators",
    )

    def __init__(
        self,
        name: str,
        *,
        input: type[In] | None = None,
        output: type[Out] | None = None,
        owner: str = "",
        team: str = "",
        use_case: str = "",
        route: Sequence[Rule | Variant] = (),
        budget: Budget | None = None,
        slo: SLO | None = None,
        retention: Retention | None = None,
        durability: str = "write",
        parameters: Parameters | None = None,
        chat_input: str = "last_user_message",
        chat_field: str | None = None,
        validators: Sequence[Callable[..., Any]] = (),
        attempts_max: int = DEFAULT_ATTEMPTS_MAX,
        max_input_tokens: int | None = None,
        context: str = "refuse",
        cache: Cache | None = None,
        degrade: Sequence[Stale | Static] = (),
        deadline_ms: int | None = None,
        priority: str = "normal",
        features: Any = None,
        features_missing: str = "default",
        entity_keys: Mapping[str, str] | None = None,
        outcome_key: str | None = None,
        keep_days: int | None = None,
        policy: Any = None,
        rollout: Any = None,
        place: Place | None = None,
        **unknown: Never,
    ) -> None:
        self.name = name
        self.input = input
        """The input type, a Record; None makes a plain chat workflow, whose input is the conversation."""
        self.output = output
        """The output type, a Record; None means the answer is the model's text."""
        self.owner = owner
        """Who answers for it: an e-mail address."""
        self.team = team
        self.use_case = use_case
        self.route = tuple(route)
        """Rules and variants, cheapest first."""
        self.budget = budget
        self.slo = slo
        self.retention = retention
        """What is kept of prompts and answers: `none`, `hash`, `sampled` (1 call in 100) or `full`."""
        self.durability = durability
        """`write`: survives `kill -9`; `audit`: also synced to the disk before the answer."""
        self.parameters = parameters or Parameters()
        self.chat_input = chat_input
        """How a chat request becomes the input: `last_user_message`, `json` (that message is the input as JSON),
        or `conversation` (all messages as one text)."""
        self.chat_field = chat_field
        """The input's field that takes the text; by default its first `str` field."""
        self.validators = tuple(validators)
        """Functions of (output) or (output, input) that every variant's answer must pass."""
        self.attempts_max = attempts_max
        """The most attempts one call may make, over all variants and retries."""
        self.max_input_tokens = max_input_tokens
        """The most input tokens of an attempt, by estimate; None: whatever the model takes."""
        self.context = context
        """What happens to a longer input: `refuse`, `drop_oldest_turns` or `keep_ends` (of the longest text)."""
        self.cache = cache
        self.degrade = tuple(degrade)
        """What answers where no variant does, in order: `Stale`, then `Static`."""
        self.deadline_ms = deadline_ms
        """The longest a call may take over all its attempts; a client may ask for less. None: no bound of its own."""
        self.priority = priority
        """Who waits and who is refused first under overload: `high`, `normal` or `low`."""
        self.features = features
        """A FeatureService or its name: rules, checks and prompts see its features."""
        self.features_missing = features_missing
        """What happens to an entity without a row: `default` (each feature's own) or `refuse`."""
        self.entity_keys: Mapping[str, str] = entity_keys or {}
        """Join key or request column -> the input's field that holds it, where their names differ."""
        self.outcome_key = outcome_key
        """The input's field that Outcomes may name instead of the Call's id, such as an order's number."""
        self.keep_days = keep_days
        """How long its Calls and their Outcomes stay in the lake; None: as long as the project says."""
        self.policy = policy
        """A Policy, or the file of its table in `policies/`: what is done with the answer."""
        self.rollout = rollout
        """A Rollout: how its Releases reach its callers; None: at once, unless `promote --canary` asks for stages."""
        self.place = place or caller_place()
        self.unknown: Mapping[str, Any] = unknown
        self.project: str | None = None
        """Folder of the project it was loaded from; None: found upwards from the file that declares it."""

    def __call__(self, input: In) -> Out:
        """The answer to one input, through the whole route, recorded like any Call.

        Raises: RequestError where the call is refused or no variant answers.
        """
        # By name: the room that wires a call stands above this one, and importing a project loads no machinery.
        embedded = importlib.import_module("drivetrain.embedded.calls")
        return embedded.answer(self, input)  # type: ignore[no-any-return]

    def decide(self, input: In) -> Any:
        """The answer to one input with what the workflow's policy decides: a `core.policies.Decided`.

        Raises: RequestError where the call is refused, no variant answers, or the policy fails;
        DrivetrainError where the workflow has no policy.
        """
        embedded = importlib.import_module("drivetrain.embedded.calls")
        return embedded.decide(self, input)

    def __repr__(self) -> str:
        return f"Workflow({self.name!r})"
