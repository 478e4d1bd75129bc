"""Reports: kept under the hash of their content, found by its beginning, and never taken for what they are not."""

from __future__ import annotations

import msgspec
import pytest
from registry_world import World

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.reports import ReportV1
from drivetrain.registry.reports import REPORT_BYTES_MAX, Reports

REPORT = ReportV1(
    kind="train", subject="model:triage@14", made_ns=7, made_by="mia", inputs=("dataset:golden@3",),
    verdict="91.5 % right", facts={"accuracy": 0.915}, body={"classes": [{"label": "card", "f1": 0.9}]},
)  # fmt: skip


@pytest.fixture
def reports(world: World) -> Reports:
    return Reports(world.data / "reports", world.lineage)


def test_a_report_is_found_by_the_beginning_of_its_hash(world: World, reports: Reports) -> None:
    made = reports.put(REPORT)
    assert len(made) == 16
    assert reports.get(made).report == REPORT
    assert reports.get(made[:4]).id == made
    assert reports.put(REPORT) == made
    assert world.kinds() == [("made", f"report:train@{made}")]
    assert world.lineage.upstream(f"report:train@{made}") == {"model:triage@14": 1, "dataset:golden@3": 1}


def test_the_same_content_has_the_same_id_whatever_the_order_of_its_keys(reports: Reports) -> None:
    turned = msgspec.structs.replace(REPORT, body={"classes": [{"f1": 0.9, "label": "card"}]})
    assert reports.put(REPORT) == reports.put(turned)
    assert reports.put(msgspec.structs.replace(REPORT, verdict="91.6 % right")) != reports.put(REPORT)


def test_reports_are_listed_by_kind_and_subject_newest_first(reports: Reports) -> None:
    assert reports.list() == []
    ids = [
        reports.put(msgspec.structs.replace(REPORT, kind=kind, subject=subject, made_ns=made_ns))
        for kind, subject, made_ns in (
            ("train", "model:triage@13", 1), ("train", "model:triage@14", 2), ("explain", "workflow:triage", 3),
            ("train", "model:triage-de@1", 4),
        )
    ]  # fmt: skip
    assert [one.id for one in reports.list()] == ids[::-1]
    assert [one.id for one in reports.list("explain")] == [ids[2]]
    assert [one.id for one in reports.list("train", "model:triage")] == [ids[1], ids[0]]
    assert [one.id for one in reports.list(subject="model:triage@13")] == [ids[0]]


def test_a_damaged_report_says_so(world: World, reports: Reports) -> None:
    made = reports.put(REPORT)
    (path,) = (world.data / "reports").iterdir()
    path.write_bytes(path.read_bytes().replace(b"91.5", b"99.5"))
    for ask in (lambda: reports.get(made), reports.list):
        with pytest.raises(DrivetrainError, match="was changed"):
            ask()


def test_what_is_begun_counts_and_what_was_never_published_is_swept(world: World, reports: Reports) -> None:
    ids = [
        reports.begin(msgspec.structs.replace(REPORT, subject=f"model:triage@{number}")) for number in (1, 2, 3)
    ]  # fmt: skip
    reports.settle(ids[2])
    reports.drop(ids[2])
    assert reports.get(ids[2]).id == ids[2], "what was settled is not dropped"
    assert len(reports.list()) == 3
    kept = reports.sweep(lambda one: one.report.subject == "model:triage@1")
    assert [one.id for one in kept] == [ids[0]]
    assert {one.id for one in reports.list()} == {ids[0], ids[2]}
    assert reports.sweep(lambda _: False) == []
    assert len(list((world.data / "reports").iterdir())) == 2


@pytest.mark.parametrize("prefix", ["", "abc", "ABCD", "../../x", "0" * 65, "ffff"])
def test_what_is_no_id_is_told(reports: Reports, prefix: str) -> None:
    reports.put(REPORT)
    with pytest.raises(DrivetrainError):
        reports.get(prefix)


def test_what_is_no_report_is_not_kept(world: World, reports: Reports) -> None:
    for change in ({"kind": "poem"}, {"body": {"x": "y" * REPORT_BYTES_MAX}}, {"subject": "nobody"}):
        with pytest.raises(DrivetrainError):
            reports.put(msgspec.structs.replace(REPORT, **change))
    assert reports.list() == []
    assert not list((world.data / "reports").glob("*"))
