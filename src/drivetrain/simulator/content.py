"""What a simulated model says, and the pieces in which it says it. Made by `answers`, written by the doors."""

import msgspec

PROSE_PIECE = (
    "The model is the engine and everything around it turns its power into motion: routes, budgets, records, "
    "checks and the patience to measure before believing. A cheap answer that is right is worth more than a dear "
    "one that is right, and both are worth more than a fast one that is wrong. So we write down what was asked, "
    "what was answered, what it cost and what became of it, and next month we know more than today. "
)

_encode = msgspec.json.encode


def tokens_of(text: str) -> int:
    """The simulator's count of tokens: UTF-8 bytes / 4, rounded up."""
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return (size + 3) >> 2


def prose(size: int) -> str:
    """`size` bytes of plain ASCII prose without anything that JSON escapes; always the same."""
    return (PROSE_PIECE * (size // len(PROSE_PIECE) + 1))[:size]


class Content:
    """One answer's text, encoded once however often it is sent."""

    __slots__ = ("_deltas", "text", "text_json", "tokens")

    def __init__(self, text: str) -> None:
        self.text = text
        self.text_json: bytes = _encode(text)
        """The text as a JSON string, quotes included."""
        self.tokens = tokens_of(text)
        self._deltas: tuple[bytes, ...] = ()

    def deltas(self, count: int) -> tuple[bytes, ...]:
        """The text in `count` pieces of even length, each as a JSON string; some are empty where the text is shorter
        than `count`."""
        if len(self._deltas) != count:
            size = len(self.text)
            edges = [size * number // count for number in range(count + 1)]
            self._deltas = tuple(_encode(self.text[edges[n] : edges[n + 1]]) for n in range(count))
        return self._deltas

    def shortened(self, tokens: int) -> "Content":
        """The first `tokens` tokens of the text."""
        return Content(self.text.encode("utf-8", "surrogatepass")[: tokens * 4].decode("utf-8", "ignore"))
