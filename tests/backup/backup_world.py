"""Projects that record everything that there is to record, and what they say of themselves, for comparing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from drivetrain.cli.backup import backup_command, migrate_command, restore_command
from drivetrain.cli.main import application
from drivetrain.core.calls import AttemptV1, Attribution, ClosedV1, OpenedV1, OutcomeV1
from drivetrain.core.ids import call_ids
from drivetrain.embedded.asking import open_lake
from drivetrain.ledger.journal import FrameJournal
from support import books, wire
from support.projects import model, provider, settings, workflow
from support.served import START, Served, read_port, served
from support.tries import PATIENCE_S
from support.upstream import Upstream, completion, http

OURS = {"backup": backup_command, "restore": restore_command, "migrate": migrate_command}
CODE = """\
import drivetrain as dt

WHO = {"owner": "shop@acme.example", "team": "shop", "use_case": "refunds"}

customer = dt.Entity("customer")
clicks = dt.PushSource("clicks", schema=[dt.Field("page", str)])
click = dt.FeatureView("click", entities=[customer], source=clicks, schema=[dt.Field("page", str, default="none")])
seen = dt.FeatureService("seen", features=[click])


class Order(dt.Record):
    customer: str
    number: str
    text: str = ""


refund = dt.Workflow(
    "refund", input=Order, **WHO, features=seen, outcome_key="number", retention="full",
    route=[dt.Variant("small", model="up/m")],
)
"""
BUSY = "limits_unavailable"
"""The error of a Call for which the store of counters had no time."""
SCOPES = {"all": "project", "team": "team"}


class Said(RuntimeError):
    """A command that ended with an error, and what it said."""


def run(*given: str | Path) -> str:
    """What a command printed. Raises: Said where it failed."""
    words = [str(one) for one in given]
    if words[0] in OURS:
        app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
        app.command()(OURS[words[0]])
        words = words[1:]
    else:
        app = application(words)
    result = CliRunner().invoke(app, words, catch_exceptions=True)
    if result.exit_code:
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        raise Said(result.output)
    return result.stdout


def answered(*given: str | Path) -> Any:
    """As `run`, with --json."""
    return json.loads(run(*given, "--json"))


def files(url: str, *, code: bool = True, lake: str = "") -> dict[str, str]:
    """A project with budgets, and with features where it has code."""
    tables = (
        provider("up", f"{url}/v1") + model("up/m") + workflow("help", "up/m", more='retention = "full"\n')
        + books.limit("all", "project", usd="100") + books.limit("team", "each team", usd="100") + lake
    )  # fmt: skip
    found = {"drivetrain.toml": settings(tables=tables), "data/rows.csv": "id,city\n1,Ulm\n2,Jena\n3,Bern\n"}
    return {**found, "workflows/shop.py": CODE} if code else found


@contextmanager
def answering() -> Iterator[Upstream]:
    with Upstream() as upstream:
        upstream.on("/v1", http(completion()))
        yield upstream


@contextmanager
def serving(**more: Any) -> Iterator[Served]:
    with answering() as upstream, served(files(upstream.url, **more)) as gateway:
        yield gateway


def asked(port: int, request: bytes) -> wire.Answered:
    """The answer; as any client does, it tries again where a store of a busy machine did not answer in time."""
    deadline = time.monotonic() + PATIENCE_S
    while is_busy(answer := wire.one(port, request)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert answer.status == 200, answer
    return answer


def is_busy(answer: wire.Answered) -> bool:
    """Whether a store had no time to tell: nothing was sent, and nothing was spent."""
    return answer.status == 503 and answer.error["code"] in (BUSY, "idempotency_unavailable")


def chat(gateway: Served) -> str:
    """The id of an answered Call."""
    said = {"model": "help", "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]}
    return asked(gateway.port, wire.request(said)).headers["x-request-id"]


class Load:
    """Clients that call without a pause, and remember what was answered."""

    def __init__(self, gateway: Served, clients: int = 3) -> None:
        self.answered: list[str] = []
        self._gateway = gateway
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._call, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Load:
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for one in self._threads:
            one.join()

    def _call(self) -> None:
        while not self._ended.is_set():
            self.answered.append(chat(self._gateway))


def calls_of(root: Path) -> dict[str, tuple[str, int]]:
    """Call -> its status and its cost; each is there once."""
    rows = open_lake(root).query("SELECT call_id, status, cost_nano_usd FROM calls").rows
    found = {call_id: (status, cost) for call_id, status, cost in rows}
    assert len(found) == len(rows), "a Call is there twice"
    return found


def errors_of(root: Path) -> dict[str, str]:
    """Call -> its error, of those that were neither answered nor cut by the end of their process."""
    text = "SELECT call_id, error FROM calls WHERE status NOT IN ('answered', 'interrupted')"
    return dict(open_lake(root).query(text).rows)


def cost_of(root: Path) -> int:
    """What `drivetrain cost` says in total, nano-USD."""
    return int(answered("cost", "--project", root)["total"]["cost_nano_usd"])


def settled(root: Path) -> dict[str, int]:
    return books.settled(root / ".drivetrain" / "data", *SCOPES)


def state(root: Path) -> dict[str, Any]:
    """What a project says of itself."""
    return {
        "calls": calls_of(root),
        "cost": cost_of(root),
        "outcomes": sorted(
            map(str, open_lake(root).query("SELECT call_id, metric, source, value FROM outcomes_history").rows)
        ),
        "settled": settled(root),
        "audit": answered("audit", "verify", "--project", root)["findings"],
    }


def other_root(root: Path, to: Path) -> Path:
    """The project's own files elsewhere, as a repository has them."""
    for path in root.rglob("*"):
        if path.is_file() and ".drivetrain" not in path.parts and path.name != "stderr.txt":
            place = to / path.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    return to


@contextmanager
def served_again(root: Path) -> Iterator[int]:
    """A gateway of a project that is there already; its port."""
    command = [sys.executable, "-c", START, "serve", "--project", str(root), "--port", "0"]
    stderr = root / "stderr.txt"
    with stderr.open("w") as said:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
    try:
        yield read_port(child, stderr)
    finally:
        child.terminate()
        child.wait(PATIENCE_S)
        assert child.stdout is not None
        child.stdout.close()


TOML = '[project]\nname = "tests"\n'


def project(root: Path, toml: str = TOML) -> Path:
    """A project with settings only."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "drivetrain.toml").write_text(toml)
    return root


def data_of(root: Path) -> Path:
    return root / ".drivetrain" / "data"


def record(root: Path, count: int, *, open_calls: int = 0, outcomes: int = 0) -> list[str]:
    """So many answered Calls of a writer that has left; their ids. Some more are never closed."""
    journal = FrameJournal(data_of(root))
    make = call_ids(time.time_ns)
    ids = []
    for number in range(count + open_calls):
        call_id, now_ns = make(), time.time_ns()
        ids.append(call_id)
        who = Attribution("", "support", "", "", "", ())
        journal.append(OpenedV1(call_id, now_ns, "0123456789abcdef", "help", "chat", False, who))
        if number < count:
            attempt = AttemptV1("v", "up/m", "answer", "accepted", status=200, cost_nano_usd=7)
            journal.append(ClosedV1(call_id, now_ns + 1, "answered", 200, "v", 7, (attempt,)))
        if number < outcomes:
            journal.append(OutcomeV1(call_id, "ok", "test", True, now_ns, now_ns + number))
    journal.close()
    return ids[:count]


def begin(root: Path) -> Callable[[], None]:
    """A Call of a living writer; what is returned ends both, once."""
    journal = FrameJournal(data_of(root))
    call_id, now_ns = call_ids(time.time_ns)(), time.time_ns()
    who = Attribution("", "support", "", "", "", ())
    journal.append(OpenedV1(call_id, now_ns, "0123456789abcdef", "help", "chat", False, who))
    journal.flush()

    def end() -> None:
        journal.append(ClosedV1(call_id, now_ns + 1, "answered", 200, "v", 7))
        journal.close()

    return end


def content(folder: Path) -> dict[str, bytes]:
    """Path -> content of every file."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def may_mount() -> bool:
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return os.geteuid() == 0 and subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except OSError:
        return False
