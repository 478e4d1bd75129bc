"""Bad input: a clear error with row and column, and everything as it was before."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from dataset_samples import Place

from drivetrain.core.errors import DrivetrainError
from drivetrain.datasets import DatasetRefused, FromFile, parse_schema, staging
from drivetrain.datasets import files as dataset_files

pytestmark = pytest.mark.slow

GOOD = "id,amount\n1,2.5\n2,3.5\n"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A place with one Dataset that must survive whatever comes."""
    place = Place(tmp_path)
    place.datasets.create("golden", FromFile(place.file("good.csv", GOOD)))
    return place


def refused(place: Place, name: str, content: str | bytes, schema: dict[str, object] | None = None) -> DrivetrainError:
    """The error; the store, the log and the bench are as they were."""
    file = place.file(name, content)
    before = place.state()
    declared = {} if schema is None else {"declared": parse_schema({"others": "infer", **schema})}
    with pytest.raises(DrivetrainError) as caught:
        place.datasets.create("golden", FromFile(file), **declared)  # type: ignore[arg-type]
    assert place.state() == before
    return caught.value


def typed(kind: str, **more: object) -> dict[str, object]:
    return {"columns": {"x": {"type": kind, **more}}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n1,2\n3\n", "Row 2 of the CSV file has 1 cells, and the header has 2"),
        ("a,b\n1,2\n3,4,5\n", "Row 2 of the CSV file has 3 cells"),
        ('a,b\n1,2\n3,"never closed\n', "in row 2, line 3"),
        ("a,b\n1,2\n3,\xff\n".encode("latin-1"), "Line 3 is not UTF-8: byte 3 begins ff"),
        ("a,b\n1,2\n3,x\0y\n", "Line 3 has a NUL byte at 4"),
        ("\ufeffa,b\n1,2\n".encode("utf-16"), "UTF-16"),
        ("a;b\n1;2\n", "one column `a;b`: is `;` its separator?\nWrite it with commas."),
        ("a\tb\n1\t2\n", "is a tab its separator?"),
        ("a|b\n1|2\n", "is `|` its separator?"),
        ("a,a\n1,2\n", "Columns 1 and 2 have the same name"),
        ("a,A\n1,2\n", "Columns 1 and 2 have the same name"),
        ("a,\n1,2\n", "Column 2 cannot be named ''"),
        ("a,b\n", "a header and no row"),
        ("", "is empty"),
        (
            ",".join(f"c{n}" for n in range(1_000_000)) + "\n",
            "There are 1,000,000 columns; a Dataset has at most 2,000",
        ),
    ],
)
def test_a_broken_csv_is_refused(place: Place, content: str | bytes, said: str) -> None:
    assert said in str(refused(place, "x.csv", content))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": 1}\n{"a": 2', "Row 2 is no JSON"),
        ('{"a": 1}\n[1]\n', "Row 2 is no JSON object"),
        ('{"a": NaN}\n', "Row 1 is no JSON"),
        ('{"a": 1}\n{"a": "x"}\n{"a": 3}\n', "row 2, column a: 'x' violates type int64"),
        ('{"a": 1e999}\n', "Row 1 is no JSON"),
        ('{"a": "x\\u0000y"}\n', "row 1, column a: 'x\\x00y' violates text"),
        ("\n\n", "no column"),
        ('{"' + "a" * 200 + '": 1}\n', "Column 1 cannot be named"),
    ],
)
def test_broken_json_lines_are_refused(place: Place, content: str, said: str) -> None:
    assert said in str(refused(place, "x.jsonl", content))


@pytest.mark.parametrize(
    ("kind", "value", "constraint"),
    [
        ("int64", "1.5", "type int64"),
        ("int64", "9223372036854775808", "type int64"),
        ("int64", "=1+1", "type int64"),
        ("int64", " 5", "type int64"),
        ("float64", "NaN", "finite"),
        ("float64", "-inf", "finite"),
        ("float64", "1e999", "finite"),
        ("float64", "1,5", "type float64"),
        ("bool", "yes", "type bool"),
        ("timestamp", "2026-01-31T12:00:00", "time zone"),
        ("timestamp", "2026-01-31", "time zone"),
        ("timestamp", "2026-02-30T00:00:00Z", "type timestamp"),
        ("timestamp", "31.01.2026 12:00", "type timestamp"),
        ("date", "2026-02-30", "type date"),
        ("date", "2026-1-3", "type date"),
        ("json", "{oops", "type json"),
    ],
)
def test_a_cell_of_the_wrong_type_is_named_by_row_and_column(
    place: Place, kind: str, value: str, constraint: str
) -> None:
    fine = {"int64": "1", "float64": "1", "bool": "true", "timestamp": "2026-01-01T00:00:00Z", "date": "2026-01-01"}
    good = fine.get(kind, "{}")
    error = refused(place, "x.csv", f'y,x\n1,{good}\n2,"{value}"\n3,\n', typed(kind))
    assert isinstance(error, DatasetRefused)
    assert [(one.row, one.column, one.constraint, one.value) for one in error.violations] == [
        (2, "x", constraint, value)
    ]
    assert error.total == 1


def test_mixed_time_zones_become_utc_and_naive_times_say_what_to_do(place: Place) -> None:
    mixed = "x\n2026-01-01T00:00:00Z\n2026-01-01T02:00:00+02:00\n2025-12-31 18:30:00-05:30\n"
    place.datasets.create("zones", FromFile(place.file("zones.csv", mixed)))
    assert len({row["x"] for row in place.datasets.rows("zones")}) == 1
    naive = mixed + "2026-01-01T00:00:00\n"
    error = refused(place, "x.csv", naive)
    assert "row 4, column x: '2026-01-01T00:00:00' violates time zone" in str(error)
    assert 'timezone = "UTC"' in str(error)
    utc = parse_schema({"timezone": "UTC", **typed("timestamp")})
    place.datasets.create("zones", FromFile("x.csv"), declared=utc)
    assert [row["x"] for row in place.datasets.rows("zones")] == [1_767_225_600_000_000] * 4


def test_every_violation_is_listed_up_to_a_thousand_with_the_number_of_all(place: Place) -> None:
    rows = "".join(f"{n},bad\n" for n in range(1_500))
    error = refused(place, "x.csv", "id,x\n" + rows, typed("int64"))
    assert isinstance(error, DatasetRefused)
    assert (len(error.violations), error.total) == (1_000, 1_500)
    assert [one.row for one in error.violations] == list(range(1, 1_001))
    assert "and 500 more" in str(error)


def test_a_cell_beyond_the_limit_is_refused_before_it_is_in_memory(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_files, "CELL_BYTES_MAX", 1_000)
    monkeypatch.setattr(dataset_files, "LINE_BYTES_MAX", 5_000)
    assert "row 1" in str(refused(place, "x.csv", "a\n" + "b" * 1_001 + "\n"))
    assert "The row at line 2 has more than 5,000 bytes" in str(refused(place, "x.csv", "a\n" + "b" * 100_000))
    open_quote = 'a\n"' + "b\n" * 100_000
    assert "in row 1, line 502" in str(refused(place, "x.csv", open_quote))
    assert "Row 1, column a: a cell has at most 1,000" in str(refused(place, "x.jsonl", '{"a": "%s"}' % ("b" * 1_001)))
    long = parquet(place, "SELECT 1 AS a, repeat('b', 999) AS t UNION ALL SELECT 2, repeat('b', 1001)")
    assert "Row 2, column t: the cell has 1,001 bytes" in str(refused(place, "x.parquet", long))


def test_too_many_rows_are_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (dataset_files, staging):
        monkeypatch.setattr(module, "ROWS_MAX", 100)
    assert "more than 100 rows" in str(refused(place, "x.csv", "a\n" + "1\n" * 101))
    assert "more than 100 rows" in str(refused(place, "x.parquet", parquet(place, "SELECT range AS a FROM range(101)")))


def parquet(place: Place, sql: str) -> bytes:
    path = place.root / "made.parquet"
    with duckdb.connect() as connection:
        connection.execute(f"COPY ({sql}) TO '{path}' (FORMAT parquet, COMPRESSION zstd)")
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda whole: whole[: len(whole) // 2], "cannot be read"),
        (lambda whole: whole[:-1], "cannot be read"),
        (lambda whole: b"PAR1" + b"\0" * 50 + b"PAR1", "cannot be read"),
        (lambda whole: b"id,x\n1,2\n", "cannot be read"),
        (lambda whole: whole[:20] + b"\xff" * 40 + whole[60:], "cannot be read"),
    ],
)
def test_a_damaged_parquet_file_is_refused(place: Place, damage: Callable[[bytes], bytes], said: str) -> None:
    whole = parquet(place, "SELECT range AS id, 'row ' || range AS x FROM range(5000)")
    place.datasets.create("whole", FromFile(place.file("x.parquet", whole)))
    assert said in str(refused(place, "x.parquet", damage(whole)))


@pytest.mark.parametrize("count", [b"\x92\x4e", b"\x8e\x4e"], ids=["more", "fewer"])
def test_a_parquet_file_that_lies_about_its_rows_is_refused(place: Place, count: bytes) -> None:
    """The footer says 5,001 or 4,999 where the pages hold 5,000; each place in it lies by itself and all together."""
    whole = parquet(place, "SELECT range AS id FROM range(5000)")
    footer = int.from_bytes(whole[-8:-4], "little")
    truth = b"\x90\x4e"  # zigzag of 5,000
    head, tail = whole[: -8 - footer], whole[-8 - footer :]
    parts = tail.split(truth)
    assert len(parts) == 4
    for lies in ((0,), (1,), (2,), (0, 1, 2)):
        told = b"".join(part + (count if place in lies else truth) for place, part in enumerate(parts[:-1])) + parts[-1]
        refused(place, "x.parquet", head + told)


def test_random_damage_to_parquet_is_an_error_of_ours_or_no_damage_to_see(place: Place) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    whole = parquet(place, "SELECT range AS id, 'row ' || range % 7 AS x, range * 0.5 AS y FROM range(200)")
    for _ in range(25):
        broken = bytearray(whole)
        for _ in range(dice.randrange(1, 6)):
            broken[dice.randrange(4, len(broken))] = dice.randrange(256)
        before = place.state()
        try:
            place.datasets.create("fuzz", FromFile(place.file("x.parquet", bytes(broken))))
        except DrivetrainError:
            assert place.state() == before
        else:
            assert place.datasets.verify("fuzz").whole


def test_a_parquet_bomb_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_files, "STAGED_BYTES_MAX", 1_000_000)
    bomb = parquet(place, "SELECT repeat('a', 10000) AS t FROM range(5000)")
    assert len(bomb) < 100_000
    assert "Column t takes 50,000,000 bytes unpacked" in str(refused(place, "x.parquet", bomb))


def test_a_parquet_column_that_no_type_fits_is_refused(place: Place) -> None:
    assert "Column `b` is BLOB" in str(refused(place, "x.parquet", parquet(place, "SELECT 1 AS a, 'x'::BLOB AS b")))
    error = refused(place, "x.parquet", parquet(place, "SELECT 'nan'::DOUBLE AS x UNION ALL SELECT 'inf'::DOUBLE"))
    assert "row 1, column x: 'nan' violates finite" in str(error)
    assert "row 2, column x: 'inf' violates finite" in str(error)
    error = refused(place, "x.parquet", parquet(place, "SELECT TIMESTAMP '2026-01-01' AS x"))
    assert "violates time zone" in str(error)


def test_only_regular_files_of_the_project_are_read(place: Place, tmp_path: Path) -> None:
    outside = tmp_path / "secret.csv"
    outside.write_text(GOOD)
    (place.root / "link.csv").symlink_to(outside)
    (place.root / "folder.csv").mkdir()
    os.mkfifo(place.root / "pipe.csv")
    (place.root / "loop.csv").symlink_to(place.root / "loop.csv")
    before = place.state()
    for given, said in (
        ("../secret.csv", "outside the project"),
        (str(outside), "outside the project"),
        ("link.csv", "outside the project"),
        ("folder.csv", "no regular file"),
        ("pipe.csv", "no regular file"),
        ("loop.csv", "cannot be read"),
        ("absent.csv", "cannot be read"),
        ("a\0b.csv", "cannot be read"),
    ):
        with pytest.raises(DrivetrainError, match=said):
            place.datasets.create("golden", FromFile(given))
    place.file("x.xlsx", GOOD)
    with pytest.raises(DrivetrainError, match="no ending that says what it is"):
        place.datasets.create("golden", FromFile("x.xlsx"))
    assert place.state() == before
    place.datasets.create("golden", FromFile("link.csv", anywhere=True))
    assert place.datasets.show("golden").number == 2


def test_a_formula_is_text_and_leaves_as_text(place: Place) -> None:
    place.file("x.csv", 'id,x\n1,"=HYPERLINK(""http://evil"")"\n2,-5\n3,@SUM(A1)\n4,plain\n')
    place.datasets.create("cells", FromFile("x.csv"))
    values = [row["x"] for row in place.datasets.rows("cells")]
    assert values == ['=HYPERLINK("http://evil")', "-5", "@SUM(A1)", "plain"]
    out = place.root / "out.csv"
    place.datasets.export("cells", out, format="csv")
    assert out.read_text().splitlines() == [
        "id,x", "1,\"'=HYPERLINK(\"\"http://evil\"\")\"", "2,'-5", "3,'@SUM(A1)", "4,plain",
    ]  # fmt: skip
