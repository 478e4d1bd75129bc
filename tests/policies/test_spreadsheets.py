"""Tables from spreadsheets decide what the spreadsheet says, come back as they were, and name every bad cell."""

from __future__ import annotations

import pytest

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.policies import Case
from drivetrain.policies import compile_policy
from drivetrain.policies.graph_reading import read_graph
from drivetrain.policies.spreadsheets import table_from_csv, table_to_csv

SHEET = """rule,input.amount,answer.intent,-> action,-> reason,-> pay,description
small,< 50,"refund, return",refund,small amount,= input.amount * 0.5,small ones
middle,50..100,refund,review,it's large,0,
vip,>=1000,-,call,-,,
rest,-,,deny,,,
"""


def decided(sheet: str, amount: float, intent: str) -> tuple[str, str, str, object]:
    files = {"policies/refund.json": table_from_csv(sheet.encode(), "refund")}
    said = compile_policy("refund.json", files).decide(Case(input={"amount": amount}, answer={"intent": intent}), "c")
    return said.rule, said.action, said.reason, dict(said.values)


def test_a_sheet_decides_what_it_says() -> None:
    assert decided(SHEET, 10, "return") == ("small", "refund", "small amount", {"pay": 5})
    assert decided(SHEET, 100, "refund") == ("middle", "review", "it's large", {"pay": 0})
    assert decided(SHEET, 1000, "x") == ("vip", "call", "", {})
    assert decided(SHEET, 60, "return") == ("rest", "deny", "", {})


def test_a_sheet_from_a_country_with_decimal_commas_has_semicolons() -> None:
    assert decided("﻿input.amount;-> action\n< 50;refund\n;deny\n", 10, "")[:2] == ("row2", "refund")


def test_a_table_comes_back_as_it_was() -> None:
    once = table_from_csv(SHEET.encode(), "refund")
    sheet = table_to_csv(read_graph("refund.json", once))
    again = table_from_csv(sheet.encode(), "refund")
    assert table_to_csv(read_graph("refund.json", again)) == sheet
    for amount, intent in ((10, "return"), (100, "refund"), (1000, "x"), (60, "return")):
        assert decided(sheet, amount, intent) == decided(SHEET, amount, intent)


def test_every_bad_cell_is_named() -> None:
    sheet = "input.amount,input amount,-> action\n>= a lot of,1,refund\n5..,1,=rand(3)\n1,1,\n1,2,3,4\n"
    with pytest.raises(DrivetrainError) as raised:
        table_from_csv(sheet.encode(), "refund")
    said = str(raised.value)
    for place in ("row 1, column B", "row 3, column A", "row 3, column C", "row 4, column C", "row 5, column D"):
        assert place in said, said


@pytest.mark.parametrize(
    ("sheet", "why"),
    [
        (b"", "is empty"),
        (b"\xff\xfe", "cannot be read"),
        (b"input.amount\n1\n", "a column `-> action`"),
        (b"rule,-> action\na,x\na,y\n", "names two rules"),
        (b"-> action\n" + b"x\n" * 2_001, "more than"),
        (b"x" * (1024 * 1024 + 1), "bytes"),
    ],
)
def test_what_is_no_table_is_refused(sheet: bytes, why: str) -> None:
    with pytest.raises(DrivetrainError, match=why):
        table_from_csv(sheet, "refund")
