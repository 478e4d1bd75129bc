"""Markdown and HTML: whatever a text says, it stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.core.markup import (
    Table,
    html_page,
    html_table,
    html_text,
    markdown_block,
    markdown_fenced,
    markdown_table,
    markdown_text,
    printable,
)

HOSTILE = [
    "<script>alert(1)</script>", "a | b\n| c |", "![p](http://example.com/p.png)", "[x](y)", "# h", "> q", "`code`",
    "*b* _i_ ~s~ $m$", "\\| end", "&lt;b&gt;", "\x1b[31mred", "\u202egnirts", "\r\n\r\n## heading", "\"'><img src=x>",
    "\ud800", "",
]  # fmt: skip
TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=60))
OURS = {"div", "table", "thead", "tbody", "tr", "th", "td", "p"}


class Parsed(HTMLParser):
    """Elements, and each cell's text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells and data.strip():
            self.cells[-1] += data


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_a_cell_is_one_cell_of_html(rows: list[tuple[str, str]]) -> None:
    seen = Parsed(html_table(Table(("name", "many#"), tuple(rows))))
    assert set(seen.tags) <= OURS
    assert seen.tags.count("tr") == len(rows) + 1
    assert seen.cells[:2] == ["name", "many"]
    assert [one.split() for one in seen.cells[2:]] == [
        "".join(one if one.isprintable() else " " for one in cell).split() for row in rows for cell in row
    ]


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_a_cell_is_one_cell_of_markdown(rows: list[tuple[str, str]]) -> None:
    lines = markdown_table(Table(("name", "many#"), tuple(rows))).split("\n")
    assert lines[:2] == ["| name | many |", "| --- | ---: |"]
    assert lines[-1] == ""
    assert len(lines) == len(rows) + 3
    for line in lines[2:-1]:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3, line


@given(TEXTS)
def test_no_sign_of_markdown_stands_alone(text: str) -> None:
    made = markdown_text(text)
    assert made.isprintable()
    assert not re.search(r"[`*{}\[\]<>#|!~$&]|\b_|_\b|__", re.sub(r"\\.", " ", made))


def test_ids_stay_as_they_are() -> None:
    assert markdown_text("call_01ab_2 of dataset:golden@3") == "call_01ab_2 of dataset:golden@3"
    assert markdown_text("_a_ __b__") == "\\_a\\_ \\_\\_b\\_\\_"


@given(TEXTS)
def test_a_block_is_indented_in_every_line(text: str) -> None:
    made = markdown_block(text)
    assert made.endswith("\n")
    assert all(line.startswith("    ") for line in made.splitlines())


def test_a_lone_sign_is_the_name_of_a_column() -> None:
    table = Table(("#", "rows#"), (("1", "2"),))
    assert markdown_table(table).startswith("| \\# | rows |\n| --- | ---: |")
    assert html_table(table).count('class="number"') == 2


def test_a_table_without_rows_says_so() -> None:
    table = Table(("a",), (), none="None <was> made.")
    assert markdown_table(table) == "None \\<was\\> made.\n"
    assert html_table(table) == '<p class="none">None &lt;was&gt; made.</p>'


@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_allows_its_own_style_alone(text: str) -> None:
    made = html_page(text, "p { color: #123; }", f"<p>{html_text(text)}</p>")
    assert "default-src 'none'; style-src 'sha256-" in made
    assert "unsafe" not in made
    assert Parsed(made).tags == ["html", "head", *["meta"] * 4, "title", "style", "body", "p"]
    made.encode()  # what cannot be written is not in it


@given(st.lists(st.one_of(TEXTS, st.sampled_from(["```", "````json", " ```", "~~~"])), max_size=6))
def test_no_line_of_a_text_ends_its_fence(lines: list[str]) -> None:
    text = "\n".join(lines)
    fence, *inside, last, rest = markdown_fenced(text, "text").split("\n")
    assert (fence, rest) == (f"{last}text", "")
    assert set(last) == {"`"}
    assert not any(last in line for line in inside)
    assert [one.split() for one in inside] == [one.split() for one in printable(text).rstrip().split("\n")]
