"""A dossier as Markdown and as one HTML file that loads nothing and runs nothing.

Whatever a record or a declaration says is text: it is escaped, and no part of it becomes a link, a picture or a script.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Sequence

from drivetrain.promotion.dossier_material import Dossier, Section, Table

STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; margin: 2rem auto; max-width: 72rem;
  padding: 0 1rem; }
h1, h2, h3 { line-height: 1.25; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #d5dae0; }
h3 { font-size: 1rem; margin-bottom: .25rem; }
dl { display: grid; grid-template-columns: minmax(10rem, max-content) 1fr; gap: .25rem 1.5rem; }
dt { color: #57606a; } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: .875rem; }
th, td { border: 1px solid #d5dae0; padding: .25rem .5rem; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
th { background: #f3f5f7; } .number { text-align: right; white-space: nowrap; } .none { color: #57606a; }
@media (prefers-color-scheme: dark) { body { color: #e6e9ec; background: #14181d; } th { background: #20262d; }
  th, td, h2 { border-color: #3a424b; } dt, .none { color: #9aa4af; } }
@media print { body { max-width: none; margin: 0; } table { display: table; } }
"""
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|!~$&])")


def markdown(dossier: Dossier) -> str:
    """The whole dossier as GitHub's Markdown."""
    lines = [f"# {escaped(_title(dossier))}", ""]
    lines += [f"- {escaped(name)}: {escaped(value)}" for name, value in _about(dossier)]
    for number, section in enumerate(dossier.sections, start=1):
        lines += ["", f"## {number}. {escaped(section.title)}"]
        lines += (
            ["", *(f"- {escaped(name)}: {escaped(value)}" for name, value in section.facts)] if section.facts else []
        )
        for table in section.tables:
            lines += ["", *([f"### {escaped(table.title)}", ""] if table.title else []), *_md_table(table)]
        lines += ["", *(f"- {escaped(note)}" for note in section.notes)] if section.notes else []
    return "\n".join(lines) + "\n"


def page(dossier: Dossier) -> str:
    """The whole dossier as one HTML file."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    body = "\n".join(_section(number, one) for number, one in enumerate(dossier.sections, start=1))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{_text(_title(dossier))}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_text(_title(dossier))}</h1>\n{_list(_about(dossier))}\n{body}\n</body>\n</html>\n"
    )


def _title(dossier: Dossier) -> str:
    return f"Dossier of the workflow {dossier.workflow}"


def _about(dossier: Dossier) -> tuple[tuple[str, str], ...]:
    head = f"{dossier.control_seq}:{dossier.control_head}" if dossier.control_seq else "empty"
    return (
        ("Project", f"{dossier.project}, {dossier.environment}"), ("Made", dossier.made),
        ("Snapshot", dossier.snapshot), ("Control log, its head", head),
        ("Known gaps", str(len(dossier.gaps))),
    )  # fmt: skip


def _section(number: int, section: Section) -> str:
    parts = [f"<h2>{number}. {_text(section.title)}</h2>"]
    if section.facts:
        parts.append(_list(section.facts))
    parts += [_table(one) for one in section.tables]
    if section.notes:
        parts.append("<ul>" + "".join(f"<li>{_text(note)}</li>" for note in section.notes) + "</ul>")
    return "\n".join(parts)


def _list(facts: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts) + "</dl>"


def _table(table: Table) -> str:
    title = f"<h3>{_text(table.title)}</h3>\n" if table.title else ""
    if not table.rows:
        return f'{title}<p class="none">{_text(table.none)}</p>'
    shapes = [' class="number"' if name.endswith("#") and len(name) > 1 else "" for name in table.head]
    head = "".join(
        f'<th scope="col"{shape}>{_text(_named(name))}</th>' for name, shape in zip(table.head, shapes, strict=True)
    )
    rows = "\n".join(
        "<tr>" + "".join(f"<td{shape}>{_text(cell)}</td>" for cell, shape in zip(row, shapes, strict=True)) + "</tr>"
        for row in table.rows
    )
    return f"{title}<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"


def _md_table(table: Table) -> list[str]:
    if not table.rows:
        return [escaped(table.none)]
    return [
        "| " + " | ".join(escaped(_named(name)) for name in table.head) + " |",
        "|" + "|".join("---:" if name.endswith("#") and len(name) > 1 else "---" for name in table.head) + "|",
        *("| " + " | ".join(escaped(cell) for cell in row) + " |" for row in table.rows),
    ]


def _named(column: str) -> str:
    return column.removesuffix("#") or column


def _text(value: str) -> str:
    return html.escape(_printable(value), quote=True)


def escaped(value: str) -> str:
    """A text on one line of Markdown, as it is read."""
    return _SPECIAL.sub(r"\\\1", _printable(value)) or "-"


def _printable(value: str) -> str:
    """On one line, without characters that steer a terminal or reorder what is read."""
    return "".join(one if one.isprintable() else " " for one in value)
