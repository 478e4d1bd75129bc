"""A builder of project folders, and one small project that is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

SETTINGS = """\
[project]
name = "shop"

[providers.openai]
dialect = "openai"
base_url = "https://api.openai.com/v1"
key = "env:OPENAI_API_KEY"
"""

TRIAGE = """\
import drivetrain as dt


class Ticket(dt.Record):
    text: str


class Route(dt.Record):
    intent: str


triage = dt.Workflow(
    "triage", input=Ticket, output=Route,
    owner="support@acme.example", team="support", use_case="ticket-routing",
    route=[
        dt.Rule("empty", when=lambda t: not t.text.strip(), then=Route(intent="spam")),
        dt.Variant("small", model="openai/gpt-5-mini-2025-08-07", prompt="triage.j2", max_output_tokens=64),
    ],
)
"""

SMALL = {
    "drivetrain.toml": SETTINGS,
    "workflows/triage.py": TRIAGE,
    "workflows/triage.j2": "Which queue? {{ text }}\n",
}

Make = Callable[[Mapping[str, str]], Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes files into a project folder; an empty text removes one."""

    def write(files: Mapping[str, str], folder: str = "shop") -> Path:
        root = tmp_path / folder
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root

    return write


@pytest.fixture
def small() -> dict[str, str]:
    """The files of a project with one typed workflow."""
    return dict(SMALL)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRIVETRAIN_ENV", raising=False)
