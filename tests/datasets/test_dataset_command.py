"""`drivetrain dataset` on a project with Calls, Outcomes and files: what people type, and what they get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from drivetrain.adapters.files import FileVault
from drivetrain.adapters.sqlite import open_control_log
from drivetrain.cli import dataset
from drivetrain.core.calls import Answers, AttemptV1, Attribution, ClosedV1, OpenedV1, OutcomeV1, Stored
from drivetrain.core.codec import MSGPACK
from drivetrain.ledger.journal import FrameJournal

pytestmark = pytest.mark.slow

T0_NS = 1_767_225_600_000_000_000
ANSWERS = (
    b'{"object": "chat.completion", "choices": [{"message": {"role": "assistant", "content": "billing"}}]}',
    b'data: {"choices": [{"delta": {"content": "can"}}]}\n\ndata: {"choices": [{"delta": {"content": "cel"}}]}\n\n'
    b"data: [DONE]\n\n",
    b'{"type": "message", "content": [{"type": "text", "text": "technical"}]}',
)


def call_id(number: int) -> str:
    return f"call_{T0_NS // 1_000_000 + number:012x}0123456789{number:08x}"


def records(vault: FileVault) -> list[Stored]:
    """Three Calls that kept their payloads, one that kept none, and what turned out to be true."""
    found: list[Stored] = []
    for number in range(4):
        retained = 2 if number < 3 else 0
        request = json.dumps({"messages": [{"role": "user", "content": f"ticket {number}"}]}).encode()
        answers = MSGPACK.encode(Answers((ANSWERS[number % 3],), None))
        one, opened_ns = call_id(number), T0_NS + number * 1_000_000
        found.append(
            OpenedV1(
                one, opened_ns, "0123456789abcdef", "triage", "chat", False, Attribution(team="support", user="ann"),
                retained=retained, payload=vault.seal("ann", one, "request", request) if retained else b"",
            )
        )  # fmt: skip
        found.append(
            ClosedV1(
                one, opened_ns + 5_000_000, "answered", 200, "small", 1_500,
                (AttemptV1("small", "sim/small", "answer", "accepted", cost_nano_usd=1_500),),
                retained=retained, payload=vault.seal("ann", one, "answers", answers) if retained else b"",
            )
        )  # fmt: skip
    values: list[tuple[int, str, str, Any]] = [(0, "intent", "agent", "billing"), (1, "intent", "agent", "cancel"),
              (1, "solved", "agent", True), (2, "stars", "agent", 4.0), (2, "stars", "boss", 2.0)]  # fmt: skip
    for at, (number, metric, source, value) in enumerate(values):
        found.append(OutcomeV1(call_id(number), metric, source, value, T0_NS, T0_NS + at))
    return found


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "drivetrain.toml").write_text('[project]\nname = "shop"\n')
    vault = FileVault(tmp_path / ".drivetrain" / "keys")
    journal = FrameJournal(tmp_path / ".drivetrain" / "data")
    written: list[bool] = []
    for record in records(vault):
        journal.append(record, written.append)
    journal.flush()
    journal.close()
    vault.close()
    assert all(written)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(dataset.app, list(arguments))


def done(*arguments: str) -> str:
    ran = run(*arguments)
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def rows_of(project: Path, reference: str) -> list[dict[str, Any]]:
    out = project / "rows.jsonl"
    out.unlink(missing_ok=True)
    done("export", reference, "--format", "jsonl", "--to", str(out))
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_calls_become_rows_with_what_was_asked_answered_and_true(project: Path) -> None:
    said = done(
        "create", "golden", "--from-calls", "workflow = 'triage' and day >= '2026-01-01'",
        "--with-outcomes", "intent", "--with-outcomes", "solved", "--with-outcomes", "stars",
    )  # fmt: skip
    assert said.startswith("golden@1: 4 rows, content ")
    rows = rows_of(project, "golden")
    assert [row["call_id"] for row in rows] == [call_id(number) for number in range(4)]
    assert [row["input"] for row in rows] == ["ticket 0", "ticket 1", "ticket 2", None]
    assert [row["answer"] for row in rows] == ["billing", "cancel", "technical", None]
    assert [row["outcome_intent"] for row in rows] == ["billing", "cancel", None, None]
    assert [row["outcome_solved"] for row in rows] == [None, True, None, None]
    assert [row["outcome_stars"] for row in rows] == [None, None, 2.0, None]
    assert rows[0]["opened"] == "2026-01-01T00:00:00.000000Z"
    assert (rows[0]["variant"], rows[0]["cost_nano_usd"], rows[0]["team"]) == ("small", 1_500, "support")
    shown = json.loads(done("show", "golden", "--json"))
    assert [one.partition("@")[0] for one in shown["inputs"]] == ["table:calls", "table:outcomes"]
    personal = {column["name"] for column in shown["schema"]["columns"] if column.get("personal")}
    assert personal == {"user", "business_key", "input", "answer"}
    done("export", "golden", "--without-personal", "--to", "public.csv")
    public = (project / "public.csv").read_text()
    assert "ticket" not in public
    assert "billing" in public
    assert done("verify", "golden").startswith("whole: dataset:golden@1, 4 rows")


def test_what_was_forgotten_is_not_in_a_new_dataset(project: Path) -> None:
    vault = FileVault(project / ".drivetrain" / "keys")
    vault.forget("ann")
    vault.close()
    done("create", "golden", "--from-calls", "workflow = 'triage'")
    assert {row["input"] for row in rows_of(project, "golden")} == {None}


def test_a_query_reads_calls_and_other_datasets_and_says_so(project: Path) -> None:
    (project / "labels.csv").write_text("variant,team\nsmall,A\nlarge,B\n")
    done("create", "labels", "--from-file", "labels.csv")
    query = (
        "with mine as (select variant, opened, cost_nano_usd, tags from calls) "
        "select l.team, count(*) as n, sum(cost_nano_usd) as spent, max(opened) as latest, first(tags) as tags "
        "from mine join dataset.labels l using (variant) group by 1"
    )
    made = json.loads(done("create", "spend", "--from", query, "--json"))
    assert made["inputs"][0] == "dataset:labels@1"
    assert made["inputs"][1].partition("@")[0] == "table:calls"
    assert len(made["inputs"]) == 2
    assert {one["name"]: one["type"] for one in made["schema"]["columns"]} == {
        "team": "string", "n": "int64", "spent": "int64", "latest": "timestamp", "tags": "json",
    }  # fmt: skip
    assert rows_of(project, "spend") == [
        {"team": "A", "n": 4, "spent": 6_000, "latest": "2026-01-01T00:00:00.003000Z", "tags": []}
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--from", "select 1; select 2"), "2 statements"),
        (("--from", "select * from read_csv('/etc/passwd')"), "read_csv"),
        (("--from", "select * from callz"), "calls"),
        (("--from", "select 1 as a where false"), "no row"),
        (("--from", "select 1 as a, 2 as a"), "same name"),
        (("--from", "drop table calls"), "no SELECT"),
        (("--from", "select 'x'::blob as b"), "Column `b` is BLOB"),
        (("--from-calls", "workflow = 'none'"), "no Call where"),
        (("--from-calls", "true", "--with-outcomes", "intend"), "Did you mean `intent`"),
        (("--from-file", "/etc/passwd"), "outside the project"),
        (("--from-file", "x.csv", "--from", "select 1"), "one place"),
        ((), "one place"),
        (("--from", "select 1 as a", "--split", "train=2"), "add up to 1"),
        (("--from", "select 1 as a", "--group-by", "a"), "Say --split"),
        (("--from", "select 1 as a", "--by", "a"), "Say --sample"),
        (("--from", "select 1 as a", "--with-outcomes", "x"), "goes with --from-calls"),
        (("--from", "select 1 as a", "--schema", "absent.toml"), "cannot be read"),
    ],
)
def test_what_cannot_be_made_says_why_and_makes_nothing(project: Path, arguments: tuple[str, ...], said: str) -> None:
    ran = run("create", "golden", *arguments)
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert said in ran.stderr
    assert done("list").startswith("There is no Dataset")


def test_what_is_near_is_told(project: Path) -> None:
    (project / "tickets.csv").write_text("id,team\n1,biling\n")
    assert "Did you mean `tickets.csv`?" in run("create", "tickets", "--from-file", "tikets.csv").stderr
    teams = ", ".join(f'"t{number}"' for number in range(30))
    (project / "schema.toml").write_text(
        f'others = "infer"\n[columns.team]\ntype = "string"\nvalues = ["billing", {teams}]\n'
    )
    said = run("create", "tickets", "--from-file", "tickets.csv", "--schema", "schema.toml").stderr
    assert "1 violation in 1 row." in said
    assert "row 1, column team: 'biling' is none of 'billing', 't0', " in said
    assert "'t8' and 21 more" in said
    assert "tickets@1: 1 row, content" in done("create", "tickets", "--from-file", "tickets.csv")
    assert "It has no splits" in run("export", "tickets", "--split", "test").stderr
    done("create", "tickets", "--from-file", "tickets.csv", "--split", "train=0.5,test=0.5")
    said = done("diff", "tickets@1", "tickets@2")
    assert "+ column split\n" in said
    assert "+ column split_group\n" in said


def test_a_file_through_schema_split_diff_and_verify(project: Path) -> None:
    (project / "tickets.csv").write_text(
        "id,text,mail\n" + "".join(f"{n},ticket number {n},m{n}@x\n" for n in range(60))
    )
    (project / "schema.toml").write_text(
        '[columns.id]\ntype = "int64"\nunique = true\n[columns.text]\ntype = "string"\n'
        '[columns.mail]\ntype = "string"\npersonal = true\n'
    )
    options = ("--from-file", "tickets.csv", "--schema", "schema.toml", "--split", "train=0.8,test=0.2", "--key", "id")
    said = done("create", "tickets", *options)
    assert "train: " in said
    assert "test: " in said
    with (project / "tickets.csv").open("a") as file:
        file.write("60,new,m@x\n60,again,\x1b[31m@x\n")
    ran = run("create", "tickets", *options)
    assert ran.exit_code == 1
    assert "2 violations in 2 rows" in ran.stderr
    assert "row 61, column id: '60' violates unique" in ran.stderr
    assert "\x1b" not in ran.stderr
    assert "left out, in quarantine: 2 rows, 2 violations" in done("create", "tickets", *options, "--allow-quarantine")
    assert done("diff", "tickets@1", "tickets@2").startswith("tickets@1 and tickets@2 are the same: 60 rows.")
    shown = done("show", "tickets")
    for part in ("tickets@2 of 1, 2", "train=0.8, test=0.2 by id", "2 rows, 2 violations", "unique", "personal  mail"):
        assert part in shown
    assert "tickets@2" in done("list")
    assert done("export", "tickets", "--split", "test") == (
        f"tickets@2.test.csv: {json.loads(done('show', 'tickets', '--json'))['split_rows']['test']} rows\n"
    )
    assert "holds personal columns: mail; --without-personal leaves them out" in run("export", "tickets@1").stderr
    ran = run("export", "tickets@1", "--without-personal", "--to", "open.csv")
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert (project / "open.csv").read_text().startswith("id,text,split\n")
    ran = run("export", "tickets", "--split", "dev", "--to", "dev.csv")
    assert "Known: `test`, `train`." in ran.stderr
    (manifest,) = (project / ".drivetrain").rglob("tickets/1/manifest.json")
    manifest.write_bytes(manifest.read_bytes().replace(b'"rows": 60', b'"rows": 61'))
    ran = run("verify", "tickets@1")
    assert (ran.exit_code, ran.stderr) == (1, "It has 60 rows, and had 61.\n")
    log = open_control_log(project / ".drivetrain/data", project / ".drivetrain/keys")
    assert [(one.kind, one.subject) for one in log.records()] == [
        ("made", "dataset:tickets@1"), ("made", "dataset:tickets@2"), ("exported", "dataset:tickets@2"),
        ("exported", "dataset:tickets@1"), ("exported", "dataset:tickets@1"),
    ]  # fmt: skip
