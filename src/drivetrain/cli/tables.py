"""Tables that lose whole columns on a narrow terminal, the least important first, and never a part of a cell."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec
import typer

from drivetrain.cli.places import plain
from drivetrain.core.markup import column_of

if TYPE_CHECKING:
    from rich.table import Table

GAP = 2
"""Blanks between columns."""
PIPE_WIDTH = 10_000
"""Where nobody looks at a terminal, nothing is left out."""


class Column(msgspec.Struct, frozen=True):
    """One column."""

    name: str
    right: bool = False
    drop: int = 0
    """0: always shown; of the others the highest goes first."""
    footer: str = ""


class Grid(msgspec.Struct, frozen=True):
    """A table among the lines of a page."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]


def print_lines(lines: Iterable[str | Grid]) -> None:
    """Prints a page of lines and tables."""
    for one in lines:
        if isinstance(one, Grid):
            print_table(one.columns, one.rows)
        else:
            typer.echo(one)


def whole_text(lines: Iterable[str | Grid]) -> str:
    """A page as it is printed where nobody looks at a terminal: with all columns, and no style."""
    from rich.console import Console

    out = io.StringIO()
    for one in lines:
        if isinstance(one, Grid):
            table, width = _laid_out(one.columns, one.rows, PIPE_WIDTH)
            Console(file=out, width=width).print(table)
        else:
            out.write(f"{one}\n")
    return out.getvalue()


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, width: int | None = None) -> None:
    """Prints what fits into `width` characters; by default the terminal's, and all of it where there is none."""
    from rich.console import Console

    if width is None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH
    table, needed = _laid_out(columns, rows, width)
    Console(width=needed).print(table)


def print_cells(head: Sequence[str], rows: Sequence[Sequence[str]], *, cell_chars_max: int | None = None) -> None:
    """A table of a page: names of columns that end in `#` hold numbers, and no cell steers the terminal."""
    named = [column_of(one) for one in head]
    columns = [Column(plain(name), right=is_number) for name, is_number in named]
    print_table(columns, [[_flat(cell, cell_chars_max) for cell in row] for row in rows])


def _laid_out(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> tuple[Table, int]:
    """The columns that fit, and how wide what prints them must be."""
    from rich.table import Table
    from rich.text import Text

    widths = [
        max(len(column.name), len(column.footer), *(len(row[place]) for row in rows), 0)
        for place, column in enumerate(columns)
    ]
    shown = list(range(len(columns)))
    while _total(widths, shown) > width and any(columns[place].drop for place in shown):
        shown.remove(max(shown, key=lambda place: columns[place].drop))
    footed = any(column.footer for column in columns)
    table = Table(
        box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold", show_footer=footed, footer_style="bold"
    )
    for place in shown:
        column = columns[place]
        table.add_column(
            Text(column.name), justify="right" if column.right else "left", no_wrap=True, footer=Text(column.footer)
        )
    for row in rows:
        table.add_row(*(Text(row[place]) for place in shown))
    return table, max(width if width < PIPE_WIDTH else 0, _total(widths, shown) + GAP)


def _flat(text: str, chars_max: int | None) -> str:
    flat = plain(" ".join(text.split()))
    return flat if chars_max is None or len(flat) <= chars_max else f"{flat[: chars_max - 3]}..."


def _total(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[place] + GAP for place in shown) - GAP
