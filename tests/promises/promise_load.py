"""Clients that call until they are told to stop, and remember everything they were told."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field

from support import wire
from support.busy import MOMENT_S, MOMENTS_MAX, Patience
from support.tries import Spoiled

INPUT_NANO, OUTPUT_NANO = 1_000, 2_000
"""Per token, as `support.projects.PRICES` says."""


@dataclass
class Told:
    """One request, and what its client saw of the answer."""

    text: str
    stream: bool
    call_id: str = ""
    whole: bool = False
    """Status 200 and a whole body, or a stream that reached [DONE]."""
    status: int = 0
    cost_nano_usd: int = -1
    """As the answer said; of a stream by its usage."""


@dataclass
class Load:
    """`clients` threads, each on a connection of its own, that send one request after the other."""

    port: int
    name: str
    clients: int = 4
    patience: Patience | None = None
    """Only where budgets are enforced may a client be told to come back; too often, and the try is spoiled."""
    told: list[Told] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        for number in range(self.clients):
            thread = threading.Thread(target=self._client, args=(number,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a client hangs"
        if kind is None and self.patience is not None and not self.patience.hardly_tried:
            raise Spoiled(f"{self.patience.refused} of {self.patience.asked} requests were refused")

    def _client(self, number: int) -> None:
        sent = 0
        while not self._stop.is_set():
            try:
                with wire.connect(self.port) as connection:
                    while not self._stop.is_set():
                        sent += 1
                        one = Told(f"{self.name}.{number}.{sent}", stream=(number + sent) % 2 == 0)
                        self.told.append(one)
                        if not ask(connection, one, self.patience):
                            break
            except OSError:
                time.sleep(0.01)  # it is down


def ask(connection: object, one: Told, patience: Patience | None = None) -> bool:
    """Sends one request and notes what comes; whether the connection is still good.

    A client with patience that is told to come back, since the store of limits had no time, does so a few times.
    """
    body = {
        "model": "help",
        "messages": [{"role": "user", "content": one.text}],
        **({"stream": True, "stream_options": {"include_usage": True}} if one.stream else {}),
    }
    if patience is not None:
        patience.ask()
    for turn in range(MOMENTS_MAX + 1):
        try:
            connection.sendall(wire.request(body))  # type: ignore[attr-defined]
            heard = wire.hear(connection)  # type: ignore[arg-type]
        except OSError:
            return False
        if not heard.answers:
            return False
        answer = heard.answers[0]
        if patience is None or not patience.is_refusal(answer):
            break
        patience.refuse()
        time.sleep(MOMENT_S * 2**turn)
    one.status = answer.status
    one.call_id = answer.headers.get("x-request-id", "")
    if one.stream and answer.status == 200:
        done = answer.body.endswith(b"data: [DONE]\n\n")
        one.whole = answer.whole and done
        if done:
            usage = next(event["usage"] for event in answer.events if isinstance(event, dict) and event.get("usage"))
            one.cost_nano_usd = usage["prompt_tokens"] * INPUT_NANO + usage["completion_tokens"] * OUTPUT_NANO
    elif answer.whole and answer.status == 200:
        with contextlib.suppress(ValueError):
            one.whole = bool(answer.json["choices"])
        one.cost_nano_usd = int(answer.headers["x-drivetrain-cost-nano-usd"])
    return answer.whole and heard.end == "open"
