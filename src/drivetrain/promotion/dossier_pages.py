"""A dossier as Markdown and as one HTML file that loads nothing and runs nothing.

Whatever a record or a declaration says is text: it is escaped, and no part of it becomes a link, a picture or a script.
"""

from __future__ import annotations

from collections.abc import Sequence

from drivetrain.core.markup import html_page, html_table, html_text, markdown_table, markdown_text
from drivetrain.promotion.dossier_material import Dossier, Section

STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; margin: 2rem auto; max-width: 72rem;
  padding: 0 1rem; }
h1, h2, h3 { line-height: 1.25; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #d5dae0; }
h3 { font-size: 1rem; margin-bottom: .25rem; }
dl { display: grid; grid-template-columns: minmax(10rem, max-content) 1fr; gap: .25rem 1.5rem; }
dt { color: #57606a; } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: .875rem; }
th, td { border: 1px solid #d5dae0; padding: .25rem .5rem; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; min-width: 5.5em; }
th { background: #f3f5f7; } .number { text-align: right; white-space: nowrap; min-width: 0; } .none { color: #57606a; }
@media (prefers-color-scheme: dark) { body { color: #e6e9ec; background: #14181d; } th { background: #20262d; }
  th, td, h2 { border-color: #3a424b; } dt, .none { color: #9aa4af; } }
@media print { body { max-width: none; margin: 0; } table { display: table; } }
"""


def markdown(dossier: Dossier) -> str:
    """The whole dossier as GitHub's Markdown."""
    parts = [f"# {markdown_text(_title(dossier))}\n", _md_list(_about(dossier))]
    for number, section in enumerate(dossier.sections, start=1):
        parts.append(f"## {number}. {markdown_text(section.title)}\n")
        parts += [_md_list(section.facts)] if section.facts else []
        for table in section.tables:
            parts += [f"### {markdown_text(table.title)}\n"] if table.title else []
            parts.append(markdown_table(table))
        parts += ["".join(f"- {markdown_text(note)}\n" for note in section.notes)] if section.notes else []
    return "\n".join(parts)


def page(dossier: Dossier) -> str:
    """The whole dossier as one HTML file."""
    sections = (_section(number, one) for number, one in enumerate(dossier.sections, start=1))
    body = "\n".join([f"<h1>{html_text(_title(dossier))}</h1>", _list(_about(dossier)), *sections])
    return html_page(_title(dossier), STYLE, body)


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
    parts = [f"<h2>{number}. {html_text(section.title)}</h2>"]
    if section.facts:
        parts.append(_list(section.facts))
    for table in section.tables:
        parts += [f"<h3>{html_text(table.title)}</h3>"] if table.title else []
        parts.append(html_table(table))
    if section.notes:
        parts.append("<ul>" + "".join(f"<li>{html_text(note)}</li>" for note in section.notes) + "</ul>")
    return "\n".join(parts)


def _list(facts: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{html_text(name)}</dt><dd>{html_text(value)}</dd>" for name, value in facts) + "</dl>"


def _md_list(facts: Sequence[tuple[str, str]]) -> str:
    return "".join(f"- {markdown_text(name)}: {markdown_text(value) or '-'}\n" for name, value in facts)
