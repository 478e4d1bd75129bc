"""After an erasure nothing that runs of evals keep quotes the person, or can be matched with the id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from erasure_world import files_with
from kept_world import Halted, erasure, loaded
from typer.testing import CliRunner

from drivetrain.adapters.files import FileVault
from drivetrain.cli.eval import app as eval_app
from drivetrain.core.datasets import ColumnV1, SchemaV1
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.evals import Score
from drivetrain.datasets.schema import Declared
from drivetrain.datasets.sources import FromFile
from drivetrain.embedded.asking import lake_for
from drivetrain.embedded.erasing import stores_of
from drivetrain.embedded.eval_reports import compare_reports, find_report
from drivetrain.embedded.eval_runs import EvalResult, run_eval
from drivetrain.embedded.training import datasets_in
from drivetrain.erasure.erasing import Erasure
from drivetrain.evals.cases import group_of
from drivetrain.evals.rejudged import rows_digest
from drivetrain.evals.rows import RowV1, Run
from drivetrain.evals.run_erasing import RunErasing
from drivetrain.evals.run_files import AnsweredV1, Kept, RunFiles
from drivetrain.evals.run_texts import with_notes, without_notes
from drivetrain.project.load import load
from support.projects import model, provider, settings
from support.upstream import Upstream, completion, http

pytestmark = pytest.mark.slow

HER, HIM = "mary-4711", "bob-4712"
SAID = {HER: "my-leg-hurts-since-monday", HIM: "my-card-was-charged-twice"}
NAMES = ("", "golden", "must")
EACH = 3
CODE = """\
import drivetrain as dt


class Ticket(dt.Record):
    text: str


class Route(dt.Record):
    said: str


def quoting(output, expected, row):
    return dt.Score(value=0.5, cause="tone", note=f"{row['who']} said {row['text']}, and was told {output.said}")


triage = dt.Workflow(
    "triage", input=Ticket, output=Route, owner="a@b.example", team="support", use_case="tests", retention="RETENTION",
    route=[dt.Variant("model", model="raw/m", prompt="triage.j2", max_output_tokens=64)],
)
golden = dt.Eval("golden", workflow="triage", dataset="golden", suites={"must": "must"}, scorers=[quoting])
"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as found:
        found.on("/v1", lambda asked, wire: wire.send(http(completion(_answer(asked.body)))))
        yield found


def _answer(body: bytes) -> str:
    (said,) = [one for one in SAID.values() if one.encode() in body]
    return json.dumps({"said": f"{said}-indeed"})


@pytest.fixture
def root(tmp_path: Path, upstream: Upstream) -> Path:
    return project(tmp_path, upstream)


def project(root: Path, upstream: Upstream, *, retention: str = "full") -> Path:
    """A project with Datasets of rows of both, and nothing asked yet."""
    files = {
        "drivetrain.toml": settings(tables=provider("raw", f"{upstream.url}/v1") + model("raw/m")),
        "workflows/triage.py": CODE.replace("RETENTION", retention),
        "workflows/triage.j2": "{{ text }}",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    schema = SchemaV1(columns=(ColumnV1(name="who", type="string", subject=True, personal=True),))
    for name in ("golden", "must"):
        file = root / f"{name}.jsonl"
        rows = [{"who": who, "text": f"{said} {name} {n}"} for who, said in SAID.items() for n in range(EACH)]
        file.write_text("".join(json.dumps(one) + "\n" for one in rows))
        datasets_in(load(root)).create(name, FromFile(file.name), declared=Declared(schema=schema))
        file.unlink()
    return root


def of(run: Run, who: str, suite: str = "") -> list[RowV1]:
    """A person's rows: the first half of each Dataset is hers."""
    rows = [one for one in run.rows if one.suite == suite]
    return rows[:EACH] if who == HER else rows[EACH:]


def groups(run: Run, who: str, suite: str = "") -> set[str]:
    return {one.group for one in of(run, who, suite)}


def kept(root: Path) -> bytes:
    """Every byte that evals and Reports keep."""
    data = root / ".drivetrain" / "data"
    return b"\0".join(
        one.read_bytes() for name in ("evals", "reports") for one in (data / name).rglob("*") if one.is_file()
    )


def hashes(who: str) -> set[bytes]:
    """What somebody who knows an id, and how Datasets are called, would look for: 8 bytes of it, as hex."""
    found = set()
    for text in (who, *(f"{name}\0{who}" for name in NAMES)):
        for how in (hashlib.sha256, hashlib.md5, hashlib.blake2b, hashlib.blake2s, _blake_8, hashlib.sha1):
            found.add(how(text.encode()).hexdigest()[:16].encode())
    return found


def _blake_8(text: bytes) -> Any:
    return hashlib.blake2b(text, digest_size=8)


def two_runs(root: Path) -> tuple[EvalResult, EvalResult]:
    first = run_eval("golden", root)
    (root / "workflows" / "triage.j2").write_text("Well: {{ text }}")
    return first, run_eval("golden", root)


def test_nothing_of_who_was_erased_is_in_evals_and_runs_compare_as_before(root: Path) -> None:
    first, second = two_runs(root)
    assert not [one for one in (*hashes(HER), *hashes(HIM)) if one in kept(root)], "not before an erasure either"
    (hers,), (his,), (at_must,) = groups(first.run, HER), groups(first.run, HIM), groups(first.run, HER, "must")
    assert len({hers, his, at_must}) == 3, "what is in two Datasets cannot be told to be one person's"
    assert (groups(second.run, HER), groups(second.run, HIM)) == ({hers}, {his}), "the same in every run"
    before = compare_reports(first.report_id, second.report_id, root).report.body
    reports = {one: one.read_bytes() for one in (root / ".drivetrain/data/reports").glob("*.json")}
    written = {one: one.stat().st_mtime_ns for one in (root / ".drivetrain/data/evals").rglob("*.jso*")}
    written |= {one: one.stat().st_mtime_ns for one in (root / ".drivetrain/data/evals").rglob("*.journal")}
    with loaded(root) as snapshot:
        with erasure(snapshot) as work:
            assert work.look(HER)[0].eval_rows == 4 * EACH * 2, "rows of both runs, and their answers"
            receipt = work.erase(HER)
            assert receipt is not None
            assert receipt.places.eval_rows == 4 * EACH * 2
            assert work.erase(HER) is None, "nothing is left that is hers"
        assert files_with(snapshot.data_folder, [HER, SAID[HER]]) == {}
        vault = FileVault(snapshot.keys_folder)
        files = RunFiles(snapshot.data_folder)
        runs = [files.run(one.report_id) for one in (first, second)]
        for run, was in zip(runs, (first.run, second.run), strict=True):
            assert of(run, HIM) == [without_notes(one) for one in of(was, HIM)]
            assert [_unnamed(one) for one in run.rows] == [_unnamed(one) for one in was.rows]
            assert rows_digest(run) == rows_digest(was), "what the control log says of a run still holds"
            assert not any(one.notes for one in of(run, HER))
            notes = [with_notes(one, vault).scores["quoting"].note for one in (*of(run, HER), *of(run, HIM))]
            assert notes[:EACH] == [""] * EACH
            assert all(SAID[HIM] in one for one in notes[EACH:])
        (token,) = groups(runs[0], HER)
        assert token.startswith("erased-")
        assert groups(runs[1], HER) == {token}, "runs still tell that it was one person"
        assert hers.encode() not in kept(root)
        assert at_must.encode() not in kept(root)
        vault.close()
    assert all(path.read_bytes() == content for path, content in reports.items())
    assert {one: one.stat().st_mtime_ns for one in written} == written, "what is oldest is so still"
    assert find_report("golden", root).id == second.report_id
    assert compare_reports(first.report_id, second.report_id, root).report.body == before
    asked = _calls(root)
    again = run_eval("golden", root)
    assert len(again.run.rows) == 2 * EACH
    assert _calls(root) == asked, "his answers are still kept"
    assert {one.group for one in again.run.rows if not one.suite} == {his}


def _unnamed(row: RowV1) -> RowV1:
    return without_notes(msgspec.structs.replace(row, group="", notes=b""))


def _calls(root: Path) -> int:
    with loaded(root) as snapshot:
        return int(lake_for(snapshot).query("SELECT count(*) FROM calls").rows[0][0])


@pytest.mark.parametrize("retention", ["full", "none", "hash"])
def test_a_note_is_kept_as_the_calls_texts_are(tmp_path: Path, upstream: Upstream, retention: str) -> None:
    root = project(tmp_path, upstream, retention=retention)
    result = run_eval("golden", root)
    assert {score.cause for row in result.run.rows for score in row.scores.values()} == {"tone"}
    said = f"{HER} said {SAID[HER]} golden 0, and was told {SAID[HER]}-indeed"
    assert of(result.run, HER)[0].scores["quoting"].note == said, "whoever ran it is told"
    shown = CliRunner().invoke(eval_app, ["show", "golden", "--notes", "--project", str(root), "--json"])
    assert shown.exit_code == 0, shown.output
    told = [one["note"] for one in json.loads(shown.stdout)["notes"]]
    assert (said in told, len(told)) == ((True, 4 * EACH) if retention == "full" else (False, 0))
    printed = CliRunner().invoke(eval_app, ["show", "golden", "--notes", "--project", str(root)]).stdout
    assert (said in printed) == (retention == "full")
    assert ("Nothing that was kept" in printed) == (retention != "full")
    assert said not in CliRunner().invoke(eval_app, ["show", "golden", "--project", str(root)]).stdout
    assert not [one for one in (*SAID, *SAID.values()) if one.encode() in kept(root)]
    with loaded(root) as snapshot:
        vault = FileVault(snapshot.keys_folder)
        row = of(RunFiles(snapshot.data_folder).run(result.report_id), HER)[0]
        noted = with_notes(row, vault).scores["quoting"].note
        assert noted == (said if retention == "full" else "")
        if row.notes:
            with pytest.raises(DrivetrainError, match="altered"):
                with_notes(msgspec.structs.replace(row, notes=row.notes[:-1] + b"\0"), vault)
            vault.forget(HER)
            assert with_notes(row, vault).scores["quoting"].note == ""
        vault.close()


def test_rows_of_an_earlier_version_are_read_and_erased(root: Path) -> None:
    """They have a hash of the id as their group, and notes in plain; their Calls may be gone."""

    def row(who: str, number: int) -> RowV1:
        note = f"{who} said {SAID[who]}"
        return RowV1(
            row=f"{number:016x}", group=group_of("golden", who), call_id=f"call_{number:028x}",
            scores={"quoting": Score(value=0.5, note=note)},
        )  # fmt: skip

    rows = (row(HER, 1), row(HIM, 2), row(HER, 3))
    run = Run(
        eval="golden", workflow="triage", workflow_key="a" * 16, eval_key="b" * 16, dataset="golden@1", rows=rows,
        report="c" * 16,
    )  # fmt: skip
    with loaded(root) as snapshot:
        files = RunFiles(snapshot.data_folder)
        for kind in ("runs", "baselines"):
            folder = snapshot.data_folder / "evals" / "golden" / kind
            folder.mkdir(parents=True)
            (folder / f"{run.report}.json").write_bytes(msgspec.json.encode(run))
        with files.answers("golden", "a" * 16) as journal:
            for number, one in enumerate(rows):
                journal.add(AnsweredV1(asked=f"asked-{number}", repeat=0, row=_unscored(one), sealed=b"answer"))
        assert [one for one in hashes(HER) if one in kept(root)]
        assert files.run("c" * 16) == run
        with erasure(snapshot) as work:
            receipt = work.erase(HER)
        assert receipt is not None
        assert receipt.places.eval_rows == 2 * 3
        content = kept(root)
        assert not [one for one in (*hashes(HER), HER.encode(), SAID[HER].encode()) if one in content]
        assert SAID[HIM].encode() not in content, "nobody can tell whom a note quotes"
        for kind in ("runs", "baselines"):
            left = files.run("c" * 16, kind)
            assert [one.row for one in left.rows] == [one.row for one in rows]
            assert [one.scores["quoting"].value for one in left.rows] == [0.5] * 3
            first, other, third = (one.group for one in left.rows)
            assert first == third != other == group_of("golden", HIM)
        with files.answers("golden", "a" * 16) as journal:
            assert [(asked, one.sealed) for (asked, _), one in journal.answers.items()] == [("asked-1", b"answer")]


def _unscored(row: RowV1) -> RowV1:
    return msgspec.structs.replace(row, scores={})


def test_a_run_under_way_is_waited_for_and_the_erasure_goes_on_later(root: Path) -> None:
    run_eval("golden", root)
    with loaded(root) as snapshot, stores_of(snapshot) as stores:
        work = Erasure(stores, actor="tests", running_s=0.2)
        with RunFiles(snapshot.data_folder).alone("golden"), pytest.raises(DrivetrainError, match="is being run"):
            work.erase(HER)
        assert work.resume() is not None
        assert files_with(snapshot.data_folder, [HER, SAID[HER]]) == {}


def test_cut_off_anywhere_it_ends_with_one_token_for_one_person(tmp_path: Path) -> None:
    """Also where a split puts more into a group than one person's rows."""
    files = RunFiles(tmp_path)
    together = (RowV1(row="1", group="g" * 16, call_id="hers"), RowV1(row="2", group="g" * 16, call_id="his"))
    for number, name in enumerate(("one", "two", "three")):
        files.keep(
            Run(
                eval=name, workflow="w", workflow_key="k", eval_key="e", dataset="d@1", rows=together,
                report=f"{number:04x}",
            )
        )  # fmt: skip
    for cut in (1, 3, 3, None):  # before the first file, and before the last ones
        made = 0

        def pseudonym(group: str, cut: int | None = cut) -> str:
            nonlocal made
            made += 1
            if made == cut:
                raise Halted
            return hashlib.blake2b(group.encode(), key=b"of this erasure", digest_size=8).hexdigest()

        work = RunErasing(tmp_path, HER, call_ids=["hers"], datasets=[], digest=_never, pseudonym=pseudonym)
        if cut is None:
            work.erase(timeout_s=1)
            break
        with pytest.raises(Halted):
            work.erase(timeout_s=1)
    found = {one.group for number in range(3) for one in files.run(f"{number:04x}").rows}
    assert len(found) == 1
    assert found.pop().startswith("erased-")


def _never(payload: bytes) -> bytes:
    return hashlib.sha256(b"a key\0" + payload).digest()


def test_what_nobody_can_read_any_more_goes(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    files.keep(Run(eval="e", workflow="w", workflow_key="k", eval_key="e", dataset="d@1", rows=(), report="aaaa"))
    path = tmp_path / "evals" / "e" / "runs" / "aaaa.json"
    path.write_bytes(path.read_bytes()[:-2] + HER.encode())
    half = path.with_name(".bbbb.json.0123456789abcdef.new")
    half.write_text(HER)
    with files.answers("e", "k") as journal:
        assert isinstance(journal, Kept)
    journal_path = tmp_path / "evals" / "e" / "answers-k.journal"
    journal_path.write_bytes(journal_path.read_bytes() + HER.encode() * 3)
    work = RunErasing(tmp_path, HER, call_ids=[], datasets=[], digest=_never, pseudonym=lambda group: group)
    work.erase(timeout_s=1)
    assert files_with(tmp_path, [HER]) == {}
