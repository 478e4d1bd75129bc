"""A project with a workflow that declares a business key, Calls in its ledger, and the commands over it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from typer.testing import CliRunner, Result

from drivetrain.cli.outcomes import app
from drivetrain.core.calls import Attribution, ClosedV1, OpenedV1, OutcomeV1
from drivetrain.ledger.frames import segments
from drivetrain.ledger.journal import FrameJournal
from drivetrain.ledger.reader import outcome_records

T0_NS = 1_767_225_600_000_000_000
"""2026-01-01T00:00:00Z."""
S = 1_000_000_000

FILES = {
    "drivetrain.toml": """\
[project]
name = "shop"

[providers.openai]
dialect = "openai"
base_url = "http://127.0.0.1:9/v1"
""",
    "workflows/refund.py": """\
import drivetrain as dt


class Order(dt.Record):
    number: str
    text: str


refund = dt.Workflow(
    "refund", input=Order, owner="shop@acme.example", team="shop", use_case="refunds", outcome_key="number",
    route=[dt.Rule("all", when=lambda order: len(order.text) >= 0, then="ok")],
)
plain = dt.Workflow(
    "plain", owner="shop@acme.example", team="shop", use_case="refunds",
    route=[dt.Rule("all", when=lambda talk: len(talk.text) >= 0, then="ok")],
)
""",
}


def call_id(number: int) -> str:
    return f"call_{T0_NS // 1_000_000 + number:012x}0123456789{number:08x}"


class World:
    """The project, and what its ledger says."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, text in FILES.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    @property
    def data_folder(self) -> Path:
        return self.root / ".drivetrain" / "data"

    def calls(
        self, numbers: Iterable[int], *, workflow: str = "refund", key: str = "", status: str = "answered"
    ) -> None:
        """Calls in the ledger, `number` seconds after T0; key: their business key, else `order-NUMBER`."""
        journal = FrameJournal(self.data_folder)
        for number in numbers:
            at_ns = T0_NS + number * S
            business = key or f"order-{number}"
            opened = OpenedV1(call_id(number), at_ns, "0123456789abcdef", workflow, "chat", False, Attribution())
            journal.append(msgspec.structs.replace(opened, business_key=business))
            journal.append(ClosedV1(call_id(number), at_ns + S, status, 200, "all", 0))
        journal.flush()
        journal.close()

    def say(self, *outcomes: OutcomeV1) -> None:
        """Outcomes in the ledger, as they are."""
        journal = FrameJournal(self.data_folder)
        for one in outcomes:
            journal.append(one)
        journal.flush()
        journal.close()

    def outcomes(self) -> list[OutcomeV1]:
        """Every Outcome that ever arrived, in that order."""
        found = [one for segment in segments(self.data_folder) for one in outcome_records(segment)]
        return sorted(found, key=lambda one: one.arrived_ns)

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--project", str(self.root)])

    def answer(self, *arguments: str) -> dict[str, Any]:
        """What a command prints as JSON."""
        ran = self.run(*arguments, "--json")
        assert ran.exit_code == 0, ran.output
        found: dict[str, Any] = json.loads(ran.stdout)
        return found

    def file(self, name: str, content: str | bytes) -> str:
        """A file beside the project."""
        path = self.root.parent / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)
