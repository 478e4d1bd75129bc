"""Markdown and HTML: texts and tables in which nothing that is told becomes markup. The only place that quotes them.

What a record, a declaration or an answer says stays text: no part of it becomes a link, a picture, a script or another
cell. Characters that steer a terminal or reorder what is read become blanks.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re

import msgspec

_SPECIAL = re.compile(r"([\\`*{}\[\]<>#|!~$&]|(?<![^\W_])_|_(?![^\W_]))")
"""Signs of GitHub's Markdown; `_` within a word is none, so ids stay as they are."""

_TICKS = re.compile(r"`+")


class Table(msgspec.Struct, frozen=True):
    """Cells in columns."""

    head: tuple[str, ...]
    """Names of columns; those that end in `#` hold numbers. A lone `#` is a name."""
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    none: str = "not recorded"
    """Said where there is no row."""


def column_of(name: str) -> tuple[str, bool]:
    """A column's name as it is shown, and whether it holds numbers."""
    is_number = name.endswith("#") and len(name) > 1
    return (name[:-1] if is_number else name), is_number


def printable(text: str) -> str:
    """A text of lines that shows what it is."""
    return "".join(one if one in "\n\t" or one.isprintable() else " " for one in text)


def markdown_text(text: str) -> str:
    """A text on one line of Markdown."""
    return _SPECIAL.sub(r"\\\1", " ".join(printable(text).split()))


def markdown_block(text: str) -> str:
    """A text with its lines, as an indented block, in which nothing is markup."""
    return "".join(f"    {line}\n" for line in printable(text).splitlines()) or "    (nothing)\n"


def markdown_fenced(text: str, language: str = "") -> str:
    """A text with its lines and columns, between fences that are longer than any that it has."""
    fence = "`" * max(3, 1 + max(map(len, _TICKS.findall(text)), default=0))
    return f"{fence}{language}\n{printable(text).rstrip()}\n{fence}\n"


def markdown_table(table: Table) -> str:
    """The lines of a table, its title left out; where it has no row, what is said then."""
    if not table.rows:
        return f"{markdown_text(table.none)}\n"
    columns = [column_of(one) for one in table.head]
    lines = [
        [markdown_text(name) for name, _ in columns],
        ["---:" if is_number else "---" for _, is_number in columns],
        *([markdown_text(cell) for cell in row] for row in table.rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def html_text(text: str) -> str:
    """A text in an element or in a quoted attribute; its lines stay."""
    return html.escape(printable(text))


def html_table(table: Table) -> str:
    """A table, its title left out, whose cells of numbers have the class `number`; where it has no row, a paragraph of
    the class `none`."""
    if not table.rows:
        return f'<p class="none">{html_text(table.none)}</p>'
    columns = [column_of(one) for one in table.head]
    kinds = [' class="number"' if is_number else "" for _, is_number in columns]
    head = "".join(
        f'<th scope="col"{kind}>{html_text(name)}</th>' for (name, _), kind in zip(columns, kinds, strict=True)
    )
    rows = "\n".join(
        f"<tr>{''.join(f'<td{kind}>{html_text(cell)}</td>' for cell, kind in zip(row, kinds, strict=True))}</tr>"
        for row in table.rows
    )
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def html_page(title: str, style: str, body: str) -> str:
    """One whole file that loads nothing and runs nothing, whatever stands in it: its policy allows its own style alone.

    style: CSS of ours. body: markup of ours, in which every text is `html_text`.
    """
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{html_text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
