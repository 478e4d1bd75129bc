"""Decision tables as people keep them in spreadsheets: CSV to a table's file, and back.

The first row names the columns: a field such as `input.amount`, or `-> action` for what is decided; `rule` and
`description` are optional. Cells are written as in a spreadsheet: `>= 100`, `10..20`, `refund, return`, `yes`; blank
or `-` stands for any value. Called by `drivetrain policy import-csv` and `policy show --csv`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.policies.cells import read_cell
from drivetrain.policies.expressions import Refused, read_expression
from drivetrain.policies.graph_parts import Graph, Table
from drivetrain.policies.graph_reading import COLUMNS_MAX, RULES_MAX, TABLE_BYTES_MAX

MISTAKES_SHOWN = 20
RESULT = re.compile(r"->\s*(.+)")
FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
ANY = ("", "-", "*")
_NUMBER = r"-?\d+(?:\.\d+)?"
_RANGE = re.compile(rf"([\[(]?)\s*({_NUMBER})\s*\.\.\s*({_NUMBER})\s*([\])]?)")
_COMPARED = re.compile(r"(<=|>=|==|!=|<>|<|>|=)\s*(.+)", re.DOTALL)
_WORDS = {"true": "true", "false": "false", "null": "null"}
_FORMULA = ("=", "+", "-", "@")


class _Mistakes:
    """Every bad cell, with its row and column as a spreadsheet shows them."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, row: int, column: int, cell: str, why: str) -> None:
        seen = f": `{cell[:60]}`" if cell else ""
        self.found.append(f"row {row}, column {_letters(column)}{seen} {why}")


def table_from_csv(content: bytes, name: str) -> bytes:
    """A table's file (JDM, hit policy `first`) from CSV. Raises: DrivetrainError with every bad cell."""
    if len(content) > TABLE_BYTES_MAX:
        raise DrivetrainError(f"The CSV has {len(content):,} bytes; at most {TABLE_BYTES_MAX:,} are allowed.")
    try:
        text = content.decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text), delimiter=_delimiter(text), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DrivetrainError(f"The CSV cannot be read: {error}.", do="Save it as UTF-8, with commas.") from None
    if not rows:
        raise DrivetrainError("The CSV is empty.", do="Its first row names columns: `input.amount,-> action`.")
    mistakes = _Mistakes()
    columns = [_column(place, title, mistakes) for place, title in enumerate(rows[0])]
    if not any(field == "action" for kind, field in columns if kind == "output"):
        mistakes.add(1, len(columns), "", "is missing: a column `-> action`")
    if len(columns) > COLUMNS_MAX or len(rows) - 1 > RULES_MAX:
        raise DrivetrainError(f"The CSV has more than {COLUMNS_MAX} columns or {RULES_MAX:,} rules.")
    rules: list[dict[str, str]] = []
    for number, row in enumerate(rows[1:], 2):
        if any(cell.strip() for cell in row):
            rules.append(_rule(number, row, columns, mistakes, {rule["_id"] for rule in rules}))
    if mistakes.found:
        shown = mistakes.found[:MISTAKES_SHOWN]
        more = len(mistakes.found) - len(shown)
        raise DrivetrainError(
            "The CSV has cells that are no rules:\n" + "\n".join(shown) + (f"\n... and {more} more" if more else ""),
            do="Write `>= 100`, `10..20`, `refund, return`, `true`, or leave the cell blank for any value.",
        )
    return _document(name, columns, rules)


def table_to_csv(graph: Graph) -> str:
    """The one table of a file as CSV. Raises: DrivetrainError where it has another number of tables or other nodes."""
    others = [node for node in graph.nodes.values() if node.kind not in ("inputNode", "outputNode")]
    table = others[0].table if len(others) == 1 else None
    if table is None or not table.first:
        raise DrivetrainError(
            f"{graph.file} is more than one table with the hit policy `first`, which is all that CSV can hold.",
            do="Open it in the editor of decision graphs.",
        )
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    described = any(rule.description for rule in table.rules)
    titles = [*(column.field or column.name for column in table.inputs), *(f"-> {one.field}" for one in table.outputs)]
    writer.writerow(["rule", *titles, *(["description"] if described else [])])
    for rule in table.rules:
        writer.writerow([rule.id, *_written(table, rule.cells), *([rule.description] if described else [])])
    return written.getvalue()


# From a spreadsheet.


def _column(place: int, title: str, mistakes: _Mistakes) -> tuple[str, str]:
    """What kind of column it is, and its field."""
    title = title.strip()
    if title.lower() in ("rule", "description"):
        return title.lower(), ""
    result = RESULT.fullmatch(title)
    field = result[1].strip() if result else title
    if not FIELD.fullmatch(field):
        mistakes.add(1, place, title, "is no column: write a field such as `input.amount`, or `-> action`")
    return ("output" if result else "input"), field


def _rule(
    number: int, row: Sequence[str], columns: Sequence[tuple[str, str]], mistakes: _Mistakes, ids: set[str]
) -> dict[str, str]:
    rule = {"_id": f"row{number}"}
    if any(cell.strip() for cell in row[len(columns) :]):
        mistakes.add(number, len(columns), row[len(columns)], "stands beyond the last column")
    for place, (kind, field) in enumerate(columns):
        cell = row[place].strip() if place < len(row) else ""
        if kind == "rule":
            rule["_id"] = cell or rule["_id"]
        elif kind == "description":
            rule["_description"] = cell
        else:
            text = _test(cell) if kind == "input" else _result(cell)
            if text is None:
                mistakes.add(number, place, cell, "is not understood")
            elif field == "action" and kind == "output" and not text:
                ends = f": the row ends at column {_letters(len(row) - 1)}" if place >= len(row) else ""
                mistakes.add(number, place, "", f"holds no action{ends}")
            rule[f"column{place}"] = text or ""
    if rule["_id"] in ids:
        mistakes.add(number, 0, rule["_id"], "names two rules")
    return rule


def _test(cell: str) -> str | None:
    """A cell of an input column as an expression; empty: any value. None: not understood."""
    if cell in ANY:
        return ""
    parts = [part.strip() for part in _split(cell)]
    found = [_part(part) for part in parts]
    if any(part is None for part in found):
        return None
    text = ", ".join(part for part in found if part is not None)
    return text if read_cell(text) is not None else None


def _part(part: str) -> str | None:
    """One alternative of a cell."""
    span = _RANGE.fullmatch(part)
    if span:
        return f"{span[1] or '['}{span[2]}..{span[3]}{span[4] or ']'}"
    compared = _COMPARED.fullmatch(part)
    if compared:
        operator = {"=": "==", "<>": "!="}.get(compared[1], compared[1])
        constant = _constant(compared[2].strip())
        return f"{operator} {constant}" if constant is not None else None
    return _constant(part)


def _result(cell: str) -> str | None:
    """A cell of a result column: a constant, or a formula after `=`, such as `= input.amount * 0.5`."""
    if cell.startswith("="):
        formula = cell[1:].strip()
        try:
            read_expression(formula)
        except Refused:
            return None
        return formula or None
    return "" if cell in ("", "-") else _constant(cell)


def _constant(text: str) -> str | None:
    """A number, true, false, null, or any other text, quoted or not."""
    if re.fullmatch(_NUMBER, text) or text.lower() in _WORDS:
        return text.lower()
    bare = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    if not bare or any(mark in bare for mark in "<>=`\n") or ".." in bare:
        return None
    quote = '"' if "'" in bare else "'"
    return None if quote in bare else f"{quote}{bare}{quote}"


def _split(cell: str) -> list[str]:
    """At commas that stand outside of quotes."""
    return re.findall(r"""(?:'[^']*'|"[^"]*"|[^,])+""", cell) if not cell.endswith(",") else [""]


def _delimiter(text: str) -> str:
    """Spreadsheets of some countries write `;`."""
    first = text.partition("\n")[0]
    return ";" if first.count(";") > first.count(",") else ","


def _letters(place: int) -> str:
    """A, B, ... Z, AA, as a spreadsheet names its columns."""
    return (_letters(place // 26 - 1) if place >= 26 else "") + chr(ord("A") + place % 26)


def _document(name: str, columns: Sequence[tuple[str, str]], rules: list[dict[str, str]]) -> bytes:
    named = [(f"column{place}", kind, field) for place, (kind, field) in enumerate(columns) if field]
    content: dict[str, Any] = {
        "hitPolicy": "first",
        "inputs": [{"id": id, "name": field, "field": field} for id, kind, field in named if kind == "input"],
        "outputs": [{"id": id, "name": field, "field": field} for id, kind, field in named if kind == "output"],
        "rules": rules,
    }
    nodes = [
        {"id": "case", "type": "inputNode", "name": "Case", "position": {"x": 0, "y": 0}},
        {"id": "table", "type": "decisionTableNode", "name": name, "content": content, "position": {"x": 300, "y": 0}},
        {"id": "decision", "type": "outputNode", "name": "Decision", "position": {"x": 600, "y": 0}},
    ]
    edges = [
        {"id": "edge1", "sourceId": "case", "targetId": "table", "type": "edge"},
        {"id": "edge2", "sourceId": "table", "targetId": "decision", "type": "edge"},
    ]
    document = {"contentType": "application/vnd.gorules.decision", "nodes": nodes, "edges": edges}
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


# To a spreadsheet.


def _written(table: Table, cells: Any) -> list[str]:
    found = [cells[column.id] or "-" for column in table.inputs]
    for column in table.outputs:
        text = cells[column.id]
        constant = read_cell(text) if text else None
        plain = constant is not None and len(constant.constants) == 1 and not text.startswith(("<", ">", "!", "="))
        found.append(text if plain or not text else f"= {text}")
    return [_safe(text) for text in found]


def _safe(text: str) -> str:
    """A cell that quotes a formula of the spreadsheet's own is not written as one."""
    return text if not text.startswith(_FORMULA[1:]) or text == "-" or re.fullmatch(_NUMBER, text) else f" {text}"
