"""The demo's traffic: messages through the route, the same to single models, a few chats, then the truth as Outcomes.

Then the two trials of `demo_trials`.

Owns who asks what, and what the clients themselves counted: it is compared with the ledger afterwards, never shown in
its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from drivetrain.cli.demo_http import HttpConnection, connections, unexpected
from drivetrain.cli.demo_texts import Texts
from drivetrain.cli.demo_trials import Told, send_trials

ROUTE = "intent"
BASELINE_FRONTIER, BASELINE_EFFICIENT = "intent-frontier", "intent-efficient"
UNTRAINED = "intent-untrained"
"""The route without the trained model; asked only where there is one."""
CHAT = "assistant"
CHAT_TEXTS = ("Hello!", "I lost my card. What now?", "Where do I see my PIN?", "How do I close my account?")
CHATS = 20
CONCURRENCY = 16
E_MAILS_OF_TEN = 3
"""Of ten messages so many come by e-mail; the others from the web chat."""
OUTCOMES_PER_POST = 1_000
CORRECT, LABEL, SOURCE = "correct", "label", "demo"
"""The metrics: whether the answer was right, and the true intent; and who says so."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One request to send."""

    workflow: str
    key: str
    path: str
    body: bytes
    truth: str = ""
    """The true intent; empty where there is none."""


class Seen(msgspec.Struct, kw_only=True):
    """What the clients counted by themselves; in the end with evals, the upgrade and the canary's clients."""

    calls: int = 0
    cost_nano_usd: int = 0
    """As the answers' headers say."""
    outcomes: int = 0
    told: Told | None = None
    """What the last one that a budget refused was told."""


def message_id(place: int) -> str:
    """What the calls with the same message share: the key under which the ledger pairs them."""
    return f"m{place}"


def send_all(
    port: int, keys: dict[str, str], texts: Texts, say: Callable[[str], None], *, trained: bool = False
) -> Seen:
    """Sends everything and waits for it. Raises: DrivetrainError at the first answer that is none.

    trained: whether the route has a trained model, so that the route without it is asked as well.
    """
    try:
        return asyncio.run(_send_all(port, keys, texts, say, trained))
    except ExceptionGroup as several:
        raise several.exceptions[0] from None


async def _send_all(port: int, keys: dict[str, str], texts: Texts, say: Callable[[str], None], trained: bool) -> Seen:
    seen = Seen()
    outcomes: list[dict[str, Any]] = []
    async with connections("127.0.0.1", port, CONCURRENCY) as opened:
        for what, orders in _orders(texts, trained):
            say(f"sending {len(orders):,} {what}")
            waiting = iter(orders)
            async with asyncio.TaskGroup() as group:
                for connection in opened:
                    group.create_task(_send(connection, waiting, keys, seen, outcomes))
        say(f"posting {len(outcomes):,} outcomes")
        for start in range(0, len(outcomes), OUTCOMES_PER_POST):
            batch = outcomes[start : start + OUTCOMES_PER_POST]
            answer = await opened[0].post("/v1/outcomes", keys["evaluation"], msgspec.json.encode({"outcomes": batch}))
            if answer.status != 200:
                raise unexpected("the outcomes", answer)
            seen.outcomes += len(batch)
        say("spending a budget to its end, then calling a provider that fails")
        tried = await send_trials(opened, keys, texts)
    seen.calls += tried.calls
    seen.cost_nano_usd += tried.cost_nano_usd
    seen.told = tried.told
    return seen


async def _send(
    connection: HttpConnection,
    waiting: Iterator[Order],
    keys: dict[str, str],
    seen: Seen,
    outcomes: list[dict[str, Any]],
) -> None:
    """Sends what still waits, one by one; the connections share the iterator."""
    for order in waiting:
        answer = await connection.post(order.path, keys[order.key], order.body)
        if answer.status != 200:
            raise unexpected(f"a call of `{order.workflow}`", answer)
        seen.calls += 1
        seen.cost_nano_usd += int(answer.headers["x-drivetrain-cost-nano-usd"])
        if order.truth:
            said = msgspec.json.decode(answer.body)["output"]["intent"]
            truth = {"call_id": answer.headers["x-request-id"], "source": SOURCE}
            outcomes.append({**truth, "metric": CORRECT, "value": said == order.truth})
            outcomes.append({**truth, "metric": LABEL, "value": order.truth})


def _orders(texts: Texts, trained: bool) -> Sequence[tuple[str, list[Order]]]:
    """What is sent, in this order, with what people call it."""
    bodies = [
        msgspec.json.encode({"text": one.text, "id": message_id(place)}) for place, one in enumerate(texts.examples)
    ]
    channels = ["e-mail" if place % 10 < E_MAILS_OF_TEN else "web-chat" for place in range(len(bodies))]
    chats = [
        msgspec.json.encode({"model": CHAT, "messages": [{"role": "user", "content": CHAT_TEXTS[n % len(CHAT_TEXTS)]}]})
        for n in range(CHATS)
    ]

    def messages(workflow: str, keys: Sequence[str]) -> list[Order]:
        return [
            Order(workflow=workflow, key=key, path=f"/v1/workflows/{workflow}", body=body, truth=example.intent)
            for key, body, example in zip(keys, bodies, texts.examples, strict=True)
        ]

    evaluation = ["evaluation"] * len(bodies)
    untrained = [("of the same messages to the route without the trained model", messages(UNTRAINED, evaluation))]
    return (
        (f"messages through the route of `{ROUTE}`", messages(ROUTE, channels)),
        (
            f"chats to `{CHAT}`",
            [Order(workflow=CHAT, key="web-chat", path="/v1/chat/completions", body=body) for body in chats],
        ),
        ("of the same messages to the frontier model only", messages(BASELINE_FRONTIER, evaluation)),
        ("of the same messages to the efficient model only", messages(BASELINE_EFFICIENT, evaluation)),
        *(untrained if trained else ()),
    )
