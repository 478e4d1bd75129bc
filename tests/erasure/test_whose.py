"""Whose something is: by the exact id, whatever characters it has, and nobody else's beside it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from kept_world import T0_NS, datasets_of, erasure, loaded, tables_of

from drivetrain.core.calls import Attribution, ClosedV1, OpenedV1, OutcomeV1
from drivetrain.core.datasets import ColumnV1, SchemaV1
from drivetrain.core.errors import DrivetrainError
from drivetrain.datasets.schema import Declared
from drivetrain.datasets.sources import FromFile
from drivetrain.embedded.asking import lake_for
from drivetrain.embedded.feature_store import feature_store
from drivetrain.lake.subjects import subject_of
from drivetrain.ledger.journal import FrameJournal
from drivetrain.project.snapshot import Snapshot
from support.projects import provider, settings

pytestmark = pytest.mark.slow

CODE = """\
import drivetrain as dt

person = dt.Entity("person", value_type=int, subject=True)
clicks = dt.PushSource("clicks", schema=[dt.Field("page", str)])
click = dt.FeatureView("click", entities=[person], source=clicks, schema=[dt.Field("page", str)])
"""
COMPOSED, DECOMPOSED = unicodedata.normalize("NFC", "zoë"), unicodedata.normalize("NFD", "zoë")
ALIKE = [
    "o'hara", "o''hara", "o%hara", "o_hara", "o.hara", "o*", "O'hara", "o'hara ", " o'hara", 'o"hara', "o\\hara",
    "a' OR '1'='1", "[o]hara", "(o|a)hara", "$1", "o\thara", "o\nhara", COMPOSED, DECOMPOSED, "ZOË", "🦉", "4711",
    "04711", "4711.0", "-",
]  # fmt: skip


@pytest.fixture
def snapshot(tmp_path: Path) -> Iterator[Snapshot]:
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "person.py").write_text(CODE)
    (tmp_path / "drivetrain.toml").write_text(settings(tables=provider("raw", "http://127.0.0.1:9/v1")))
    with loaded(tmp_path) as found:
        yield found


def call(number: int, *, opened_only: bool = False, payload: bytes = b"sealed", **who: object) -> list[object]:
    call_id = f"call_{T0_NS // 1_000_000 + number:012x}0123456789{number:08x}"
    key = who.pop("business_key", "")
    opened = OpenedV1(
        call_id, T0_NS + number, "0123456789abcdef", "refund", "chat", False, Attribution(**who),  # type: ignore[arg-type]
        retained=2, payload=payload, business_key=str(key),
    )  # fmt: skip
    return [opened] if opened_only else [opened, ClosedV1(call_id, T0_NS + number + 9, "answered", 200, "", 5)]


def put(snapshot: Snapshot, *records: object) -> None:
    journal = FrameJournal(snapshot.data_folder)
    for record in records:
        journal.append(record)  # type: ignore[arg-type]
    journal.flush()
    journal.close()


def users(snapshot: Snapshot) -> list[str]:
    rows = lake_for(snapshot).query('SELECT "user" FROM calls ORDER BY call_id').rows
    return [user for (user,) in rows]


@pytest.mark.parametrize("id_", ["o'hara", "o%hara", COMPOSED, "o\nhara", "o\\hara", "🦉"])
def test_only_who_is_called_exactly_so_is_erased(snapshot: Snapshot, id_: str) -> None:
    put(
        snapshot, *(record for number, one in enumerate(ALIKE) for record in call(number, user=one, tags=(f"c={one}",)))
    )
    with erasure(snapshot) as work:
        receipt = work.erase(id_)
    assert receipt is not None
    assert (receipt.places.calls, receipt.places.others_calls) == (1, _naming(id_))
    assert users(snapshot) == ["erased" if one == id_ else one for one in ALIKE]


def _naming(id_: str) -> int:
    """Others whose tag holds the id as a word of its own."""
    return {"o'hara": 2}.get(id_, 0)


def test_a_word_is_found_whatever_stands_around_it_and_no_part_of_a_word_is() -> None:
    cases = {
        "4711": True, "order-4711": True, "c=4711": True, "(4711)": True, "4711_a": True, "47110": False,
        "a4711": False, "4711é": False, "é-4711": True, "": False,
    }  # fmt: skip
    sql = subject_of("4711").named_in("text")
    with duckdb.connect() as connection:
        for text, named in cases.items():
            assert connection.execute(f"SELECT {sql} FROM (SELECT ? AS text)", [text]).fetchall() == [(named,)], text


def test_who_is_unknown_changes_nothing_and_twice_does_no_harm(snapshot: Snapshot) -> None:
    put(snapshot, *call(1, user="mary"), *call(2, user="bob"))
    with erasure(snapshot) as work:
        for unknown in ("mar", "mary ", "Mary", "m%", "refund"):
            assert work.erase(unknown) is None
        assert users(snapshot) == ["mary", "bob"]
        assert tables_of(snapshot).files("calls") is None, "nothing was rolled either"
        assert work.erase("mary") is not None
        versions = {name: tables_of(snapshot).files(name).version for name in ("calls", "outcomes", "spend")}
        assert work.erase("mary") is None
        assert versions == {name: tables_of(snapshot).files(name).version for name in versions}
    assert users(snapshot) == ["erased", "bob"]


@pytest.mark.parametrize("id_", ["", "erased", "a\0b", "\udcff", "x" * 5_000])
def test_what_is_no_id_is_refused(snapshot: Snapshot, id_: str) -> None:
    with erasure(snapshot) as work, pytest.raises(DrivetrainError):
        work.erase(id_)


def test_a_call_without_a_user_is_its_keys_and_without_a_key_its_teams(snapshot: Snapshot) -> None:
    put(
        snapshot,
        *call(1, user="shop", key="k", team="t", payload=b"1"),
        *call(2, key="shop", team="t", payload=b"2"),
        *call(3, team="shop", payload=b"3"),
        *call(4, key="k", team="shop", payload=b"4"),
        *call(5, user="mary", key="shop", team="shop", payload=b"5"),
    )
    with erasure(snapshot) as work:
        assert work.erase("shop") is not None
        assert work.erase("shop") is None
    rows = lake_for(snapshot).query('SELECT request, "user", key, team FROM calls ORDER BY call_id').rows
    assert [tuple(row) for row in rows] == [
        (None, "erased", "k", "t"), (None, "", "shop", "t"), (None, "", "", "shop"),
        (b"4", "", "k", "shop"), (b"5", "mary", "shop", "shop"),
    ]  # fmt: skip


def test_a_business_key_that_others_have_too_stays_theirs(snapshot: Snapshot) -> None:
    def outcome(key: str) -> OutcomeV1:
        return OutcomeV1("", "said", "crm", f"words of {key}", T0_NS, T0_NS, "", "refund", key)

    put(
        snapshot, *call(1, user="mary", business_key="alone"), *call(2, user="mary", business_key="shared"),
        *call(3, user="bob", business_key="shared"), outcome("alone"), outcome("shared"), outcome("for-mary"),
    )  # fmt: skip
    joined = "SELECT count(*) FROM outcomes"
    before = lake_for(snapshot).query(joined).rows
    with erasure(snapshot) as work:
        work.erase("mary")
    lake = lake_for(snapshot)
    assert lake.query(joined).rows == before
    kept = lake.query("SELECT business_key, value FROM outcomes_history ORDER BY 2, 1").rows
    assert [(key.partition("-")[0], value) for key, value in kept] == [
        ("erased", "erased"), ("erased", "erased"), ("shared", "words of shared"),
    ]  # fmt: skip
    keys = [key for (key,) in lake.query("SELECT business_key FROM calls ORDER BY call_id").rows]
    assert keys[0].startswith("erased-")
    assert keys[1:] == ["shared", "shared"]


def test_a_whole_number_is_found_among_keys_that_are_numbers(snapshot: Snapshot) -> None:
    store = feature_store(snapshot)
    store.push("clicks", [{"person": number, "page": f"page of {number}"} for number in (4711, 47, 4712)])
    with erasure(snapshot) as work:
        assert work.erase("04711") is None
        receipt = work.erase("4711")
    assert receipt is not None
    assert receipt.places.pushed == {"clicks": 1}
    assert sum(receipt.places.vectors.values()) == 1
    found = feature_store(snapshot).get_online_features(["click:page"], {"person": [4711, 47, 4712]}).to_dict()
    assert found["page"] == [None, "page of 47", "page of 4712"]
    rows = lake_for(snapshot).query("SELECT person FROM push.clicks ORDER BY 1").rows
    assert [tuple(row) for row in rows] == [(47,), (4712,)]


def test_a_dataset_that_does_not_say_whose_its_rows_are_is_named_and_kept(snapshot: Snapshot) -> None:
    (snapshot.root / "people.csv").write_text("name,mail\nmary,m@acme.example\nbob,b@acme.example\n")
    personal = SchemaV1(columns=tuple(ColumnV1(name=name, type="string", personal=True) for name in ("name", "mail")))
    datasets = datasets_of(snapshot)
    datasets.create("unmarked", FromFile("people.csv"), declared=Declared(schema=personal))
    put(snapshot, *call(1, user="mary"))
    with erasure(snapshot) as work:
        receipt = work.erase("mary")
    assert receipt is not None
    assert receipt.elsewhere.unmarked == {"dataset:unmarked@1": 1}
    assert receipt.elsewhere.untold == ("dataset:unmarked@1",)
    assert [row["name"] for row in datasets.rows("unmarked@1")] == ["mary", "bob"]


def test_all_rows_of_a_dataset_may_go(snapshot: Snapshot) -> None:
    (snapshot.root / "people.csv").write_text("name,at\nmary,2026-01-01T00:00:00Z\n")
    schema = SchemaV1(
        columns=(ColumnV1(name="name", type="string", subject=True), ColumnV1(name="at", type="timestamp"))
    )
    datasets = datasets_of(snapshot)
    made = datasets.create("hers", FromFile("people.csv"), declared=Declared(schema=schema)).dataset
    with erasure(snapshot) as work:
        assert work.erase("mary") is not None
    left = datasets.show("hers@1")
    assert (left.rows, left.newest, left.hash_before_erasure) == (0, {}, made.content_hash)
    assert [(one.rows, one.violations) for one in left.erased] == [(1, 0)]
    assert datasets.verify("hers@1").findings == ()


def test_a_dataset_that_is_damaged_is_named_and_stops_nothing(snapshot: Snapshot) -> None:
    (snapshot.root / "people.csv").write_text("name\nmary\nbob\n")
    schema = Declared(schema=SchemaV1(columns=(ColumnV1(name="name", type="string", subject=True),)))
    datasets = datasets_of(snapshot)
    for name in ("cut", "gone", "whole"):
        datasets.create(name, FromFile("people.csv"), declared=schema)
    folder = snapshot.data_folder / "lake" / "files"
    cut = folder / datasets.show("cut@1").files[0].path
    cut.write_bytes(cut.read_bytes()[:-9])
    (folder / datasets.show("gone@1").files[0].path).unlink()
    with erasure(snapshot) as work:
        receipt = work.erase("mary")
    assert receipt is not None
    assert receipt.places.datasets == {"dataset:whole@1": 1}
    assert sorted(receipt.elsewhere.unreadable) == ["dataset:cut@1", "dataset:gone@1"]
    assert cut.exists(), "a number that somebody may restore is not thrown away"
    assert [row["name"] for row in datasets.rows("whole@1")] == ["bob"]
