"""How long an answer takes. Called by `served`; pure."""

from math import exp, log

from drivetrain.simulator.dice import Dice, normal
from drivetrain.simulator.settings import Milliseconds, TokenRange

_P99 = 2.3263478740408408
"""The standard normal value below which 99 % lie."""


def is_fixed(time: Milliseconds) -> bool:
    """Whether the time needs no dice."""
    return time.median_ms == time.p99_ms


def drawn_ms(time: Milliseconds, dice: Dice | None, purpose: bytes) -> float:
    """A lognormal time with this median and p99; the fixed one without dice."""
    if dice is None or is_fixed(time):
        return time.median_ms
    middle = log(time.median_ms)
    return exp(middle + (log(time.p99_ms) - middle) / _P99 * normal(dice.unit(purpose)))


def drawn_tokens(tokens: TokenRange, dice: Dice | None) -> int:
    """A number of tokens in the range, each as likely."""
    span = tokens.tokens_max - tokens.tokens_min + 1
    return tokens.tokens_min if dice is None or span == 1 else tokens.tokens_min + int(dice.unit(b"tokens") * span)
