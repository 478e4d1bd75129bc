"""`drivetrain outcomes import`: all rows or none, each once, and every mistake with its row and column."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from outcomes_world import World, call_id

from drivetrain.core.times import parse_iso

pytestmark = pytest.mark.slow

GOOD = f"""\
call_id,workflow,key,metric,value,source,event_time
{call_id(1)},,,refunded,true,shop,2026-01-02T00:00:00Z
,refund,order-2,refunded,false,shop,2026-01-02T10:00:00+02:00
,refund,4711,stars,4,,
,refund,4711,note,"two
lines",,
"""


def test_a_csv_is_recorded_as_it_says(world: World) -> None:
    answer = world.answer("import", world.file("labels.csv", GOOD))
    assert (answer["rows"], answer["new"], answer["known"], answer["mistakes"]) == (4, 4, 0, [])
    first, second, third, fourth = world.outcomes()
    assert (first.call_id, first.metric, first.value, first.source) == (call_id(1), "refunded", True, "shop")
    assert (second.call_id, second.workflow, second.business_key, second.value) == ("", "refund", "order-2", False)
    assert second.event_ns == parse_iso("2026-01-02T08:00:00Z") < second.arrived_ns
    assert (third.business_key, third.value, third.source) == ("4711", 4.0, "import")
    assert third.event_ns == third.arrived_ns
    assert fourth.value == "two\nlines"


def test_json_lines_are_recorded_as_they_say(world: World) -> None:
    rows = [
        {"workflow": "refund", "key": 4711, "metric": "stars", "value": 4},
        {"call_id": call_id(1), "metric": "note", "value": "true", "source": "desk", "key": None},
    ]
    world.answer("import", world.file("labels.jsonl", "\n\n".join(map(json.dumps, rows))))
    assert [(one.business_key, one.value, one.source) for one in world.outcomes()] == [
        ("4711", 4.0, "import"),
        ("", "true", "desk"),
    ]


@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl"])
def test_the_same_file_again_changes_nothing(world: World, name: str) -> None:
    """With and without event times, with corrections inside, with rows that stand twice."""
    rows: list[dict[str, Any]] = [
        {"call_id": call_id(1), "metric": "m", "value": "a"},
        {"call_id": call_id(1), "metric": "m", "value": "b"},
        {"call_id": call_id(1), "metric": "m", "value": "a"},
        {"workflow": "refund", "key": "x", "metric": "m", "value": 1.5, "event_time": "2026-01-01"},
        {"workflow": "refund", "key": "x", "metric": "m", "value": 1.5, "event_time": "2026-01-02"},
        {"workflow": "refund", "key": "x", "metric": "n", "value": True, "event_time": "2026-01-02"},
    ]
    content = "\n".join(map(json.dumps, rows))
    if name.endswith(".csv"):
        fields = ("call_id", "workflow", "key", "metric", "value", "event_time")
        lines = [",".join(str(row.get(field, "")) for field in fields) for row in rows]
        content = "\n".join([",".join(fields), *lines])
    file = world.file(name, content)
    first = world.answer("import", file)
    assert (first["new"], first["known"]) == (5, 1)
    before = world.outcomes()
    for _ in range(2):
        again = world.answer("import", file)
        assert (again["new"], again["known"]) == (0, 6)
    assert world.outcomes() == before


def test_a_text_and_a_number_of_the_same_letters_are_two_values(world: World) -> None:
    rows = [{"call_id": call_id(1), "metric": "m", "value": value} for value in ("1.0", 1, True, "true")]
    assert world.answer("import", world.file("a.jsonl", "\n".join(map(json.dumps, rows))))["new"] == 4
    assert [one.value for one in world.outcomes()] == ["1.0", 1.0, True, "true"]


def test_files_that_overlap_add_what_is_new(world: World) -> None:
    """Any files over the same few Outcomes: in the end each is recorded once."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    every = [
        {"workflow": "refund", "key": f"k{dice.randrange(3)}", "metric": "m", "value": dice.choice(["a", 1, True])}
        | ({"event_time": f"2026-01-0{dice.randrange(1, 4)}"} if dice.random() < 0.5 else {})
        for _ in range(20)
    ]
    given: set[str] = set()
    for number in range(5):
        rows = [json.dumps(one, sort_keys=True) for one in dice.choices(every, k=8)]
        answer = world.answer("import", world.file(f"{number}.jsonl", "\n".join(rows)))
        fresh = set(rows) - given
        assert (answer["new"], answer["known"]) == (len(fresh), 8 - len(fresh)), f"seed {seed}"
        given |= fresh
    assert len(world.outcomes()) == len(given)


def test_a_dry_run_says_what_is_new_and_records_nothing(world: World) -> None:
    file = world.file("labels.csv", GOOD)
    assert "4 would be recorded, 0 known before" in world.run("import", file, "--dry-run").stdout
    assert world.outcomes() == []
    world.answer("import", file)
    assert "0 would be recorded, 4 known before" in world.run("import", file, "--dry-run").stdout


def test_options_stand_in_for_columns_that_a_file_does_not_have(world: World) -> None:
    file = world.file("labels.csv", "key,value,metric\no-1,yes,\no-2,no,other\n")
    world.answer("import", file, "--workflow", "refund", "--metric", "ok", "--source", "desk")
    assert [(one.business_key, one.metric, one.value, one.source) for one in world.outcomes()] == [
        ("o-1", "ok", "yes", "desk"),
        ("o-2", "other", "no", "desk"),
    ]


def test_values_of_a_csv(world: World) -> None:
    cells = ["4", "-0.5", "1e3", "007", "TRUE", "false", "1,5", "=1+1", "0x10", "+49 170"]
    lines = "".join(f'{call_id(1)},m{place},"{cell}"\n' for place, cell in enumerate(cells))
    file = world.file("labels.csv", "call_id,metric,value\n" + lines)
    world.answer("import", file)
    assert [one.value for one in world.outcomes()] == [
        4.0, -0.5, 1000.0, "007", True, False, "1,5", "=1+1", "0x10", "+49 170",
    ]  # fmt: skip
    world.answer("import", file, "--values", "text", "--source", "text")
    assert [one.value for one in world.outcomes() if one.source == "text"] == cells


WRONG: dict[str, tuple[str, str]] = {
    "no-metric": ("c,,,,1,", "row 2 (line 3), column metric: must be a text"),
    "no-value": ("c,,,m,,", "row 2 (line 3), column value: must be a string, a number or true/false"),
    "no-call": (",,,m,1,", "row 2 (line 3), column call_id: must be the id of a Call"),
    "bad-call": ("call_1,,,m,1,", "row 2 (line 3), column call_id: must be the id of a Call, as the header x-request-id"
                 " gave it, not `call_1`"),
    "both": ("c,refund,k,m,1,", "row 2 (line 3), column call_id: stands beside `workflow` and `key`"),
    "unknown-workflow": (",refnd,k,m,1,",
                         "row 2 (line 3), column workflow: there is no workflow `refnd`. Did you mean `refund`?\n"),
    "no-outcome-key": (",plain,k,m,1,", "row 2 (line 3), column workflow: is `plain`, which declares no `outcome_key`"),
    "no-key": (",refund,,m,1,", "row 2 (line 3), column key: must be what `number` held"),
    "time": ("c,,,m,1,31.1.2026", "row 2 (line 3), column event_time: must be an ISO 8601 time"),
    "nan": ("c,,,m,NaN,", "row 2 (line 3), column value: is `NaN`, which may mean that there is none"),
    "infinity": ("c,,,m,-inf,", "row 2 (line 3), column value: is `-inf`"),
    "more-cells": ("c,,,m,1,,,", "row 2 (line 3): has 8 cells, and the header 6"),
    "less-cells": ("c,,m", "row 2 (line 3): has 3 cells, and the header 6"),
    "long": ("c,,,m," + "x" * 5_000 + ",", "row 2 (line 3), column value: is longer than 4096 characters"),
    "huge": ("c,,,m," + "x" * 200_000 + ",", "row 2 (line 3): is longer than 65536 characters"),
    "quote": ('c,,,m,"1" 2,', "row 2 (line 3): is no CSV"),
    "half-written": ('c,,,m,"never ends', "row 2 (line 3): is no CSV"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_row_is_named_with_its_column_and_nothing_is_imported(world: World, line: str, said: str) -> None:
    good = f"{call_id(1)},,,m,1,\n"
    line = line.replace("c,", f"{call_id(1)},", 1) if line.startswith("c,") else line
    file = world.file("labels.csv", f"call_id,workflow,key,metric,value,event_time\n{good}{line}\n")
    ran = world.run("import", file)
    assert ran.exit_code == 1
    assert said in ran.stderr
    assert "Nothing was imported." in ran.stderr
    assert len(ran.stderr) < 2_000
    assert world.outcomes() == []


def test_every_wrong_row_is_told_up_to_a_limit(world: World) -> None:
    lines = "".join(f"{call_id(1)},m,{'' if number % 2 else 1}\n" for number in range(1_000))
    ran = world.run("import", world.file("labels.csv", "call_id,metric,value\n" + lines))
    rows = [line for line in ran.stderr.splitlines() if line.startswith("row ")]
    assert [line.split(",")[0] for line in rows] == [f"row {number} (line {number + 1})" for number in range(2, 202, 2)]
    assert "only the first 100" in ran.stderr


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "has no header"),
        ("a.csv", b"call_id,metric,vlaue\n", "Did you mean `value`?"),
        ("a.csv", b"call_id,metric,metric\n", "`metric` twice"),
        ("a.csv", b"key;metric\n", "one column `key;metric`: is `;` its separator?\nWrite it with commas."),
        ("a.csv", b"call_id,metric,value\n\xff\xfe,m,1\n", "no UTF-8"),
        ("a.csv", b",".join(b"c%d" % number for number in range(1_000_000)), "The header is longer than"),
        ("a.jsonl", b"[1]\n", "row 1 (line 1): must be an object"),
        ("a.jsonl", b'{"metric": NaN}\n', "row 1 (line 1): is no JSON"),
        (
            "a.jsonl",
            b'\n{"call_id": "x", "metrc": 1}\n',
            "row 1 (line 2): has no field `metrc`. Did you mean `metric`?",
        ),
        ("a.jsonl", b'{"half": ', "row 1 (line 1): is no JSON"),
        ("a.xlsx", b"PK", "no kind that is known"),
    ],
    ids=[
        "empty",
        "column",
        "twice",
        "separator",
        "encoding",
        "million-columns",
        "list",
        "nan",
        "field",
        "half-written",
        "kind",
    ],
)
def test_a_file_that_is_none_is_told(world: World, name: str, content: bytes, said: str) -> None:
    ran = world.run("import", world.file(name, content))
    assert ran.exit_code == 1
    assert said in ran.stderr
    assert len(ran.stderr) < 2_000
    assert world.outcomes() == []


def test_rows_are_those_of_data_and_lines_those_of_an_editor(world: World) -> None:
    text = f'call_id,metric,value\n{call_id(1)},m,"two\nlines"\n\n{call_id(1)},,1\n'
    assert "row 2 (line 5), column metric:" in world.run("import", world.file("a.csv", text)).stderr


def test_control_characters_of_a_file_do_not_reach_the_terminal(world: World) -> None:
    ran = world.run("import", world.file("a.csv", "call_id,metric,value\n\x1b[2J,m,1\n"))
    assert ran.exit_code == 1
    assert "\x1b" not in ran.stderr


def test_a_byte_order_mark_and_line_ends_of_windows(world: World) -> None:
    content = b"\xef\xbb\xbf" + f"call_id,metric,value\r\n{call_id(1)},m,yes\r\n\r\n".encode()
    assert world.answer("import", world.file("a.csv", content))["new"] == 1
    assert world.outcomes()[0].value == "yes"
