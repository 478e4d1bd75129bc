"""A project that knows two persons everywhere it can know anybody, and a search of every byte that it keeps."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from drivetrain.core.datasets import ColumnV1, SchemaV1
from drivetrain.datasets import Datasets
from drivetrain.datasets.schema import Declared
from drivetrain.datasets.sources import FromCalls, FromFile
from drivetrain.embedded.asking import lake_for
from drivetrain.embedded.feature_store import feature_store
from drivetrain.lake.lake import Lake
from drivetrain.ledger.frames import frames, segments
from drivetrain.lineage.lineage import Lineage
from drivetrain.project import load
from drivetrain.project.snapshot import Snapshot
from support import wire
from support.books import limit
from support.busy import IDEMPOTENCY, LIMITS, Patience
from support.projects import model, provider, settings, workflow
from support.served import Served, served
from support.upstream import Upstream, completion, http

ERASE = (
    "import typer; from drivetrain.cli.erase import erase_command; app = typer.Typer(); "
    "app.command()(erase_command); app()"
)
HER, HIM = "mary.o'hara%_4711", "bob-4712"
"""Ids of the one who is erased and of the one who stays."""
CODE = """\
import drivetrain as dt

WHO = {"owner": "shop@acme.example", "team": "shop", "use_case": "refunds"}

customer = dt.Entity("customer", subject=True)
product = dt.Entity("product")
clicks = dt.PushSource("clicks", schema=[dt.Field("page", str)])
click = dt.FeatureView("click", entities=[customer], source=clicks, schema=[dt.Field("page", str, default="none")])
bought = dt.PushSource("bought", schema=[dt.Field("note", str)])
both = dt.FeatureView("both", entities=[customer, product], source=bought, schema=[dt.Field("note", str)])
files = dt.FileSource("data/stats.csv", name="stats_rows")
stats = dt.FeatureView("stats", entities=[customer], source=files, schema=[dt.Field("city", str, default="none")])
seen = dt.FeatureService("seen", features=[click, stats])
crm = dt.Source("crm", owner="crm@acme.example", location="https://crm.acme.example")


class Order(dt.Record):
    customer: str
    number: str
    text: str = ""


def judged(output, given):
    return f"too odd: {given.text}" if "odd" in given.text else None


refund = dt.Workflow(
    "refund", input=Order, **WHO, features=seen, outcome_key="number", retention="full",
    route=[
        dt.Variant("small", model="raw/m", accept=judged),
        dt.Variant("large", model="raw/m"),
    ],
)
"""


def planted(id_: str) -> dict[str, str]:
    """Place -> a text that stands nowhere else, of one person."""
    word = base64.b32encode(id_.encode()).decode().strip("=").lower()
    return {
        place: f"{place}-{word}"
        for place in (
            "prompt", "answer", "order", "label", "late", "tag", "page", "note", "city", "mail", "badmail", "request",
        )
    }  # fmt: skip


def needles(id_: str) -> list[str]:
    """All that must not be found of somebody."""
    return [id_, *planted(id_).values()]


def forms(text: str) -> list[bytes]:
    """How a text may stand in a file."""
    plain = text.encode()
    escaped = json.dumps(text)[1:-1]
    found = [plain, text.encode("utf-16-le"), text.encode("utf-16-be"), escaped.encode()]
    found += ["".join(f"\\u{ord(one):04x}" for one in text).encode(), plain.hex().encode()]
    for shift in range(3):
        # The middle of what base64 makes of it, wherever in the encoded bytes it begins.
        coded = base64.b64encode(b"\0" * shift + plain)
        found.append(coded[-(-shift * 8 // 6) : len(plain) * 8 // 6 - 1])
        found.append(base64.urlsafe_b64encode(b"\0" * shift + plain)[-(-shift * 8 // 6) : len(plain) * 8 // 6 - 1])
    return list(dict.fromkeys(one for one in found if len(one) >= 6))


def files_with(folder: Path, texts: Iterable[str]) -> dict[str, list[str]]:
    """File -> which of the texts stand in it, in any form; Parquet files and compressed frames are read as well."""
    wanted = {text: forms(text) for text in texts}
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        content = b"\0".join(contents(path))
        hits = [text for text, coded in wanted.items() if any(one in content for one in coded)]
        if hits:
            found[str(path.relative_to(folder))] = hits
    return found


def contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and what they unpack to."""
    try:
        yield path.read_bytes()
        yield str(path).encode()
        if path.suffix == ".parquet":
            with duckdb.connect() as connection:
                for said in ("read_parquet", "parquet_metadata"):
                    rows = connection.execute(f"SELECT CAST(COLUMNS(*) AS VARCHAR) FROM {said}(?)", [str(path)])
                    yield "\0".join(cell or "" for row in rows.fetchall() for cell in row).encode()
    except (FileNotFoundError, duckdb.IOException):
        return  # replaced while we look
    if path.suffix == ".seg":
        for segment in segments(path.parent.parent):
            if segment.path == path:
                yield from (bytes(frame.body) for frame in frames(segment, []))


@contextmanager
def project() -> Iterator[World]:
    """The project behind a gateway that serves."""
    with Upstream() as upstream:
        upstream.on("/v1", lambda asked, wire_: wire_.send(http(completion(_answer(asked.body)))))
        tables = provider("raw", f"{upstream.url}/v1") + model("raw/m")
        tables += workflow("help", "raw/m", more='cache = { ttl_s = 600, when = "always" }\n')
        tables += limit("person", "each user", usd="900") + limit("tagged", "each tag:customer", usd="900")
        tables += limit("shop", "team:shop", usd="900")
        files = {
            "drivetrain.toml": settings(ledger='retention = "full"\n', tables=tables),
            "workflows/shop.py": CODE,
            "data/people.csv": csv_file(HER, HIM),
            "data/stats.csv": stats_file(HER, HIM),
        }
        with served(files) as gateway:
            yield World(gateway)


class World:
    """What tests ask of it."""

    def __init__(self, gateway: Served) -> None:
        self.gateway = gateway
        self.root = gateway.root
        self.data_folder = gateway.data_folder
        self.snapshot: Snapshot = load(self.root)
        self.patience = Patience(LIMITS, IDEMPOTENCY)
        """Of who asks this gateway."""
        self.refused: Counter[str] = Counter()
        """Person -> Calls that were refused though nothing was wrong with them."""

    @property
    def lake(self) -> Lake:
        return lake_for(self.snapshot)

    def fill(self, *people: str, rolled: bool = False) -> None:
        """Everything that can know somebody knows these."""
        for id_ in people:
            said = planted(id_)
            self.call(id_, said)
        self.push(*people)
        if rolled:
            self.command("lake", "roll")
            self.datasets(*people)

    def call(self, id_: str, said: Mapping[str, str]) -> str:
        """Calls of one person through both doors, with Outcomes; the id of the last."""
        headers = f"x-drivetrain-user: {id_}\r\nx-drivetrain-tags: customer={id_},{said['tag']}-of-{id_},plan=pro\r\n"
        body = {"model": "help", "messages": [{"role": "user", "content": said["prompt"]}]}
        keyed = headers + f"idempotency-key: {said['request']}\r\n"
        for more in (headers, keyed):
            self._answered(id_, wire.request(body, headers=more))
        order = {"customer": id_, "number": said["order"], "text": f"odd {said['prompt']}"}
        answer = self._answered(id_, wire.request(order, path="/v1/workflows/refund", headers=headers))
        call_id = answer.headers["x-request-id"]
        outcomes = [
            {"call_id": call_id, "metric": "label", "value": said["label"]},
            {"call_id": call_id, "metric": "stars", "value": 4},
            {"workflow": "refund", "key": said["order"], "metric": "said", "value": said["late"]},
            {"workflow": "refund", "key": said["order"], "metric": "ok", "value": True},
        ]
        sent = wire.one(self.gateway.port, wire.request(json.dumps(outcomes), path="/v1/outcomes"))
        assert sent.status == 200, sent
        return str(call_id)

    def _answered(self, id_: str, request: bytes) -> wire.Answered:
        """The answer; as any client does, it tries again where a busy machine's stores had no time."""

        def once() -> wire.Answered:
            answer = wire.one(self.gateway.port, request)
            # Without its key's store no Call is begun; without the limits' it is, and refused.
            self.refused[id_] += answer.status == 503 and answer.error["code"] == LIMITS
            return answer

        answer = self.patience.answer(once)
        assert answer.status == 200, answer
        return answer

    def push(self, *people: str) -> None:
        store = feature_store(self.root)
        store.push("clicks", [{"customer": id_, "page": planted(id_)["page"]} for id_ in people])
        store.push("bought", [{"customer": id_, "product": "p", "note": planted(id_)["note"]} for id_ in people])
        store.materialize_incremental()
        store.push("clicks", [{"customer": id_, "page": planted(id_)["page"] + "-again"} for id_ in people])

    def datasets(self, *people: str) -> None:
        schema = SchemaV1(
            columns=(
                ColumnV1(name="customer", type="string", subject=True, personal=True),
                ColumnV1(name="mail", type="string", pattern=r"mail-.*", personal=True),
                ColumnV1(name="age", type="int64"),
            )
        )
        made = self._datasets()
        people_csv = FromFile("data/people.csv")
        for _ in range(2):
            made.create("people", people_csv, declared=Declared(schema=schema), allow_quarantine=True)
        made.create("asked", FromCalls("workflow = 'refund'", outcomes=("label",)))
        Lineage(self.control, self.snapshot).made("model:triage@14", inputs=["dataset:people@1"])

    def _datasets(self) -> Datasets:
        from drivetrain.adapters.files import FileVault

        place = self.lake
        assert place.objects is not None
        return Datasets(place, place.objects, self.control, vault=FileVault(self.snapshot.keys_folder), root=self.root)

    @property
    def control(self) -> Any:
        from drivetrain.adapters.sqlite import open_control_log

        return open_control_log(self.data_folder, self.snapshot.keys_folder)

    def verified(self, reference: str) -> tuple[str, ...]:
        return self._datasets().verify(reference).findings

    def totals(self) -> dict[str, Any]:
        """What must not change, whoever is erased."""
        asked = {
            "calls": "SELECT count(*), sum(cost_nano_usd), sum(output_tokens), sum(attempt_count) FROM calls",
            "by": "SELECT workflow, variant, status, team, count(*), sum(cost_nano_usd) FROM calls GROUP BY ALL "
            "ORDER BY ALL",
            "spend": "SELECT workflow, variant, sum(calls), sum(attempts), sum(cost_nano_usd) FROM spend GROUP BY ALL "
            "ORDER BY ALL",
            "history": "SELECT metric, source, kind, count(*), sum(number) FROM outcomes_history GROUP BY ALL "
            "ORDER BY ALL",
            "outcomes": "SELECT metric, kind, count(*), count(DISTINCT call_id), sum(number) FROM outcomes "
            "GROUP BY ALL ORDER BY ALL",
        }
        lake = self.lake
        found: dict[str, Any] = {name: lake.query(sql).rows for name, sql in asked.items()}
        found["cost"] = json.loads(self.command("cost", "--json"))
        return found

    def command(self, *arguments: str) -> str:
        started = [sys.executable, "-c", "from drivetrain.cli.main import main; main()", *arguments]
        ended = subprocess.run([*started, "--project", str(self.root)], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def erase(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """`drivetrain erase` as its own process."""
        ended = subprocess.run(
            [sys.executable, "-c", ERASE, *arguments, "--project", str(self.root)],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert ended.returncode == code, (ended.returncode, ended.stdout, ended.stderr)
        return ended

    def left(self, texts: Sequence[str]) -> dict[str, list[str]]:
        """Files of the data folder that still have any of them; segments of living writers are let settle."""
        return files_with(self.data_folder, texts)


def _answer(body: bytes) -> str:
    for id_ in (HER, HIM):
        if planted(id_)["prompt"] in body.decode():
            return planted(id_)["answer"] + " " + os.urandom(4).hex()
    return "nothing"


def csv_file(*people: str) -> str:
    lines = ["customer,mail,age"]
    for number in range(20):
        lines.append(f"other-{number},mail-{number},{number}")
    for id_ in people:
        said = planted(id_)
        lines.append(f"{id_},{said['mail']},40")
        lines.append(f"{id_},{said['badmail']},41")  # violates the pattern: it goes into the quarantine
    return "\n".join(lines) + "\n"


def stats_file(*people: str) -> str:
    rows = [f"{id_},2026-01-01T00:00:00Z,{planted(id_)['city']}" for id_ in people]
    return "\n".join(["customer,event_timestamp,city", *rows]) + "\n"
