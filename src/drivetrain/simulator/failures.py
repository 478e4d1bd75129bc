"""Which failure happens to a request, and what it does to the answer's text.

Owns the list of failures and the draw. Failures of transport (stalls, cuts, endless lines) are carried out by
`playback`, statuses by `desk`.
"""

from collections.abc import Callable

import msgspec

from drivetrain.simulator.settings import Failures, RateLimit

STATUS_KIND = "status"

FAILURE_KINDS: dict[str, str] = {
    "stall_before_first_byte": "nothing comes for `stall_s`, then the answer",
    "stall_mid_stream": "half of the answer comes, nothing for `stall_s`, then the rest",
    "cut": "the connection closes after `cut_at_byte` bytes",
    "error_mid_stream": "half of a stream comes, then the provider's error event; a plain answer is a 500",
    "malformed": "the text is not JSON: a quote is missing",
    "fenced": "the text is wrapped in a markdown fence",
    "trailing_comma": "the text has a comma too many",
    "truncated_json": "the text ends halfway, though the answer claims to be complete",
    "empty": "the text is empty",
    "malformed_body": "the HTTP body, or one event of the stream, is not JSON",
    "oversized": "the text has `oversized_bytes` bytes",
    "endless_line": "the answer's last line never ends",
    "bad_utf8": "the text contains bytes that are not UTF-8",
    "negative_usage": "the reported tokens are negative",
    "no_usage": "no tokens are reported",
    "explicit_zero_usage": "zero tokens are reported, and charged",
    "overrun": "the answer ignores the limit on output tokens",
}
"""What each failure does, by its name in TOML and in overrides."""


class Failure(msgspec.Struct, frozen=True):
    """One failure that happens to one request."""

    kind: str
    argument: float = -1
    """The status, the byte of a cut, the seconds of a stall, the bytes of an oversized answer; -1 where the TOML
    decides."""


def drawn(failures: Failures, at: float) -> Failure | None:
    """The failure that `at` in [0, 1) hits; each has its own share of the line."""
    edge = 0.0
    for each in failures.shares:
        edge += each.share
        if at < edge:
            return Failure(each.kind, each.argument)
    return None


def spoiled_text(kind: str, text: str, oversized_bytes: int) -> str | None:
    """The answer's text after a failure of this kind; None where the kind leaves the text alone."""
    spoil = _SPOILERS.get(kind)
    if spoil is not None:
        return spoil(text)
    return "x" * oversized_bytes if kind == "oversized" else None


def _malformed(text: str) -> str:
    return text.replace('"', "", 1) if '"' in text else '{"' + text


def _trailing_comma(text: str) -> str:
    stripped = text.rstrip()
    return f"{stripped[:-1]},{stripped[-1]}" if stripped.endswith(("}", "]")) else text + ","


_SPOILERS: dict[str, Callable[[str], str]] = {
    "malformed": _malformed,
    "fenced": lambda text: f"```json\n{text}\n```",
    "trailing_comma": _trailing_comma,
    "truncated_json": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
}


class TokenBucket:
    """A rate limit: `burst` requests at once, `requests_per_s` in the long run."""

    __slots__ = ("_at_s", "_left", "limit")

    def __init__(self, limit: RateLimit) -> None:
        self.limit = limit
        self._left = float(limit.burst)
        self._at_s = 0.0

    def take(self, now_s: float) -> bool:
        """Whether one more request fits at `now_s`."""
        limit = self.limit
        self._left = min(limit.burst, self._left + (now_s - self._at_s) * limit.requests_per_s)
        self._at_s = now_s
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

    @property
    def remaining(self) -> int:
        return int(self._left)

    @property
    def next_s(self) -> float:
        """Seconds until the next request fits."""
        return max(0.0, (1.0 - self._left) / self.limit.requests_per_s)
