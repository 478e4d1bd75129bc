"""How Reports of evals read on a terminal and as Markdown. Rows and Calls are cited; nobody is quoted
but by what scorers noted, where it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from drivetrain.cli.places import plain
from drivetrain.cli.tables import print_cells
from drivetrain.core.markup import Table, markdown_table, markdown_text
from drivetrain.core.money import usd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from drivetrain.core.reports import ReportV1
    from drivetrain.embedded.eval_reports import Noted

PARTS_SHOWN = 30
"""Slices and suites in the table; JSON has all."""
CITED_SHOWN = 3
"""Rows of one cause; JSON has more."""
STATES = {"passed": "passed", "failed": "FAILED", "not enough evidence": "NOT ENOUGH EVIDENCE"}


def show_run(report: ReportV1, markdown: bool, project: Path | None) -> None:
    """A Report of kind `eval`, as the command and `drivetrain report show` print it."""
    del project
    page = _Page(markdown)
    body, facts = report.body, report.facts
    page.title(f"eval {facts['eval']} of {report.subject}", report.verdict)
    page.table(
        "Gates", ["gate", "state"], [[one["gate"], STATES.get(one["state"], one["state"])] for one in body["gates"]],
    )  # fmt: skip
    page.lines("Why", [f"{one['gate']}: {one['why']}" for one in body["gates"]])
    page.table(
        "Scores", ["scorer", "mean#", "95 %", "rows#", "unread#"],
        [
            [name, _share(one["value"]), _interval(one), f"{one['rows']:,}", f"{body['unread'].get(name, 0):,}"]
            for name, one in body["scores"].items()
        ],
    )  # fmt: skip
    first = next(iter(body["scores"]), "")
    if first:
        page.table(
            f"{first} by slice and suite", ["part", "rows#", "mean#", "95 %"],
            [
                [one["name"], f"{one['rows']:,}", _share(said["value"]), _interval(said)]
                for one in body["parts"][:PARTS_SHOWN]
                if (said := one["scores"].get(first)) is not None
            ],
        )  # fmt: skip
    if body["against"] is not None:
        against = body["against"]
        page.table(
            f"Against {against['what']}", ["scorer", "difference#", "95 %", "better#", "worse#"],
            [
                [one["scorer"], _points(one["difference"]), f"{_points(one['low'])} to {_points(one['high'])}",
                 f"{one['better']:,}", f"{one['worse']:,}"]
                for one in body["compared"]
            ],
        )  # fmt: skip
    page.table(
        "Not right", ["scorer", "cause", "answers#", "Calls"],
        [
            [one["scorer"], one["cause"], f"{one['answers']:,}", _cited(one["cited"], one["answers"])]
            for one in body["failures"]
        ],
    )  # fmt: skip
    page.lines("Took", _took(body))
    if body["judges"]:
        page.lines("Judges", [_judge(name, one) for name, one in body["judges"].items()])
    page.lines("Notes", body["notices"])


def show_notes(noted: Sequence[Noted], markdown: bool) -> None:
    """What scorers noted, one line for each answer and scorer."""
    page = _Page(markdown)
    page.table(
        "What scorers noted", ["Call", "scorer", "value#", "note"],
        [[one.call_id, one.scorer, f"{one.value:.6g}", one.note] for one in noted],
    )  # fmt: skip
    if not noted:
        page.lines("What scorers noted", ["Nothing that was kept."])


def show_compared(report: ReportV1, markdown: bool, project: Path | None) -> None:
    """A Report of kind `eval-compare`."""
    del project
    page = _Page(markdown)
    body, facts = report.body, report.facts
    page.title(f"{facts['second']} against {facts['first']}, {report.subject}", report.verdict)
    page.table(
        "Scores", ["scorer", "before#", "after#", "difference#", "95 %, at every look", "fixed#", "broken#", "verdict"],
        [
            [one["scorer"], _share(said["before"]), _share(said["after"]), _points(said["difference"]),
             f"{_points(said['low'])} to {_points(said['high'])}", f"{one['fixed_rows']:,}", f"{one['broken_rows']:,}",
             said["verdict"]]
            for one in body["scorers"]
            if (said := one["comparison"])
        ],
    )  # fmt: skip
    page.table(
        "Slices and suites", ["part", "rows#", "difference#", "95 %", "p, by Holm#"],
        [
            [one["name"], f"{one['rows']:,}", _points(one["difference"]),
             f"{_points(one['low'])} to {_points(one['high'])}", f"{one['p_value']:.3g}"]
            for one in sorted(body["slices"], key=lambda one: one["difference"])[:PARTS_SHOWN]
        ],
    )  # fmt: skip
    page.table(
        "Per answer", ["", "before#", "after#", "change#", "95 %"],
        [
            [one["what"], f"{one['before']:,.6g}", f"{one['after']:,.6g}", f"{one['difference']:+,.4g}",
             "-" if one["low"] is None else f"{one['low']:+,.4g} to {one['high']:+,.4g}"]
            for one in body["changes"]
        ],
    )  # fmt: skip
    for one in body["scorers"]:
        told = [f"{word}: {_cited(one[word], one[f'{word}_rows'])}" for word in ("fixed", "broken") if one[word]]
        page.lines(f"Rows by {one['scorer']}", told)
    left = body.get("unanswered")
    page.lines("Pairs", [
        f"{body['rows']:,} rows are in both; {body['only_first']:,} only in the first, {body['only_second']:,} only "
        f"in the second{f'; {left:,} more are left out, as an outage kept one from its answer' if left else ''}"
    ])  # fmt: skip


class _Page:
    """Sections, for a terminal or as Markdown; an empty one is left out."""

    def __init__(self, markdown: bool) -> None:
        self._markdown = markdown

    def title(self, title: str, verdict: str) -> None:
        if self._markdown:
            typer.echo(f"# {markdown_text(title)}\n\n{markdown_text(verdict)}")
        else:
            typer.echo(plain(f"{title}\n{verdict}"))

    def lines(self, title: str, lines: list[str]) -> None:
        if not lines:
            return
        self._head(title)
        for line in lines:
            typer.echo(f"- {markdown_text(line)}" if self._markdown else plain(f"  {line}"))

    def table(self, title: str, head: list[str], rows: list[list[str]]) -> None:
        """head: names of columns; those that end in `#` hold numbers."""
        if not rows:
            return
        self._head(title)
        if self._markdown:
            typer.echo(markdown_table(Table(tuple(head), tuple(map(tuple, rows)))), nl=False)
        else:
            print_cells(head, rows)

    def _head(self, title: str) -> None:
        typer.echo(f"\n## {markdown_text(title)}\n" if self._markdown else plain(f"\n{title}"))


def _took(body: dict[str, Any]) -> list[str]:
    spent, lines = body["spent"], []
    lines.append(f"{usd(spent['now_nano_usd'])} USD now; {spent['reused']:,} answers were kept from before")
    if body["cost"] is not None:
        lines.append(f"{body['cost']['value']:.6f} USD per call")
    if body["judged_nano_usd"]:
        lines.append(f"{usd(body['judged_nano_usd'])} USD for judges")
    if body["latency_ms"]:
        lines.append("latency " + ", ".join(f"{name} {value:,.0f} ms" for name, value in body["latency_ms"].items()))
    if body["tokens"]:
        lines.append(", ".join(f"{one['value']:,.0f} tokens {name}" for name, one in body["tokens"].items()))
    if body["repeats"] > 1:
        unsteady = ", ".join(f"{count:,} by {name}" for name, count in body["unsteady"].items())
        lines.append(f"{body['repeats']} repeats; rows that were not scored alike each time: {unsteady}")
    if body["errors"]:
        lines.append("without an answer: " + ", ".join(f"{count:,} {code}" for code, count in body["errors"].items()))
    return lines


def _judge(name: str, one: dict[str, Any]) -> str:
    if not one["labels"]:
        return f"{name}: {one['why']}; name the column of what people said with `labels=`, so that it can be measured"
    kappa = "-" if one["kappa"] is None else f"{one['kappa']:.2f}"
    bias = "-" if one["bias"] is None else f"{one['bias']:+.2f}"
    told = f"{name}: agrees with people in {one['agreement']:.0%} of {one['labels']:,}, kappa {kappa}, bias {bias}"
    if one["flips"] is not None:
        told += f", {one['flips']:.0%} of choices changed with the order"
    return f"{told}; carries no gate alone: it {one['why']}" if one["why"] else told


def _cited(cited: list[dict[str, Any]], total: int) -> str:
    shown = [one.get("call_id") or f"row {one['row']}" for one in cited[:CITED_SHOWN]]
    return ", ".join(shown) + (f" and {total - len(shown):,} more" if total > len(shown) else "")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f} pp"


def _interval(one: dict[str, Any]) -> str:
    if one["low"] is None or one["high"] is None:
        return "too few to tell"
    return f"{one['low']:.1%} to {one['high']:.1%}"
