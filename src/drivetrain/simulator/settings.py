"""What a simulator's TOML says, once it is known to be right.

Owns the records only; `config` reads and checks the file, the other modules act on these records. Nothing here is
mutable and nothing is checked again.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

Dialect = Literal["openai", "anthropic", "both"]
StreamWrites = Literal["each", "together"]
CutWith = Literal["fin", "rst"]


class Milliseconds(msgspec.Struct, frozen=True, kw_only=True):
    """A time drawn from a lognormal distribution; fixed when both numbers are equal."""

    median_ms: float
    p99_ms: float


class TokenRange(msgspec.Struct, frozen=True, kw_only=True):
    """A number of tokens drawn evenly from `tokens_min` to `tokens_max`, both included."""

    tokens_min: int
    tokens_max: int


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """The declared price of a model, in nano-USD per million tokens."""

    input_nano_usd_per_million: int = 0
    input_cached_nano_usd_per_million: int = 0
    output_nano_usd_per_million: int = 0


class TextQuality(msgspec.Struct, frozen=True, kw_only=True):
    """Plain prose, as long as `output_tokens` or `answer_bytes` say; JSON that fits the schema when one is sent."""


class EchoQuality(msgspec.Struct, frozen=True, kw_only=True):
    """The last user message, word for word."""


class LabelQuality(msgspec.Struct, frozen=True, kw_only=True):
    """A classifier that is right as often as it was told to be."""

    labels: tuple[str, ...]
    truth: Mapping[str, str]
    """The true label of each known text."""
    accuracy: float
    accuracy_by_label: Mapping[str, float]
    shared_difficulty: float = 0.0
    """How much of a text's difficulty all models share: 0 none (errors are independent), 1 all (the better model's
    errors are a subset)."""
    confidence: bool = False
    answer_field: str | None = None
    unmatched: str | None = None


class TableQuality(msgspec.Struct, frozen=True, kw_only=True):
    """Recorded answers, by prompt."""

    answers: Mapping[str, str]
    unmatched: str
    answer_field: str | None = None


Quality = TextQuality | EchoQuality | LabelQuality | TableQuality


class RateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """A token bucket; what does not fit is answered 429."""

    requests_per_s: float
    burst: int


class FailureShare(msgspec.Struct, frozen=True, kw_only=True):
    """How often one kind of failure happens."""

    kind: str
    argument: float
    share: float


class Failures(msgspec.Struct, frozen=True, kw_only=True):
    """What goes wrong, how often. At most one failure happens to a request, so the shares sum to at most 1."""

    shares: tuple[FailureShare, ...] = ()
    stall_s: float = 30.0
    cut_at_byte: int = -1
    """Where a cut answer ends, head included; -1 draws a byte for each."""
    cut_with: CutWith = "fin"
    oversized_bytes: int = 20_000_000
    retry_after_s: int = 1
    rate_limit: RateLimit | None = None


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One simulated model."""

    name: str
    dialect: Dialect = "both"
    latency: Milliseconds
    first_token: Milliseconds
    tokens_per_s: float = 0.0
    output_tokens: TokenRange | None = None
    reasoning_tokens: int = 0
    cached_input_share: float = 0.0
    price: Price = Price()
    answer: str | None = None
    stream_events: int | None = None
    stream_writes: StreamWrites = "each"
    answer_bytes: int | None = None
    quality: Quality = TextQuality()
    failures: Failures = Failures()


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the simulator listens, whom it lets in, and what it remembers."""

    host: str = "127.0.0.1"
    port: int = 0
    keys: tuple[str, ...] = ()
    record_requests: int = 0
    allow_overrides: bool = False


class SimulatorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A whole simulator: its seed, its server and its models by name."""

    seed: int = 0
    server: ServerSettings = ServerSettings()
    models: Mapping[str, ModelSettings]
