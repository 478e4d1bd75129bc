"""An upgrade as a page: sections of sentences and tables, the same for a terminal, Markdown and HTML.

Texts of Calls are quoted only where whoever renders the page gives them; the Report itself has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from drivetrain.core.markup import Table, markdown_block, markdown_table, markdown_text
from drivetrain.evals.reading import READINGS
from drivetrain.evals.upgrading.changes import Change
from drivetrain.evals.upgrading.drift import SHAPES
from drivetrain.evals.upgrading.failures import Group
from drivetrain.evals.upgrading.result import Item, Upgrade, sentence
from drivetrain.evals.upgrading.verdict import SLICE_PAIRS_MIN, points
from drivetrain.statistics.comparing import Comparison

QUOTE_CHARS = 400
"""Of a quoted text; the whole stands in its Call."""
SLICES_SHOWN = 40
MANY_LOOKS = "Looked at after every {} pairs by evidence that may be looked at so often"
ONE_LOOK = (
    "Looked at once, at the end, by McNemar's exact test, or by flipped signs where answers have scores, weights or "
    "belong together; this holds if the number of pairs was chosen before and nobody looks again with more of them"
)
TRUTHS = {
    "outcome": "an Outcome of the Call",
    "expected": "what an eval or the file expects",
    "judge": "a judge",
    "recorded": "the score that came with the answer",
    "agreement": "what was answered before, as nothing better is known",
}


class Quote(msgspec.Struct, frozen=True):
    """One example in its own words."""

    asked: str
    before: str
    after: str


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the page."""

    key: str
    """What it is about: `verdict`, `readings`, `slices`, `failures`, `form`, `changes`, `migration`, `instead` or
    `basis`."""
    title: str
    lines: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    quotes: tuple[tuple[str, Quote], ...] = ()
    """(id and what it is an example of, its texts)."""


class Page(msgspec.Struct, frozen=True):
    """All of it."""

    title: str
    verdict: str
    sections: tuple[Section, ...]


def page_of(found: Upgrade, quotes: Mapping[str, Quote] | None = None) -> Page:
    """The page; quotes: id of a pair -> its texts."""
    sections = [
        _verdict(found), _slices(found), _readings(found), _failures(found, quotes or {}), _form(found),
        _changes(found), _items("migration", "What changing over costs", found.migration),
        _items("instead", "What the same money would buy instead", found.instead), _basis(found),
    ]  # fmt: skip
    title = f"Upgrade of {found.about.subject.partition(':')[2] if _is_workflow(found) else 'recorded answers'}"
    return Page(title, sentence(found), tuple(one for one in sections if one is not None))


def markdown(page: Page) -> str:
    """The page as Markdown; nothing in it is taken for markup."""
    parts = [f"# {markdown_text(page.title)}\n\n**{markdown_text(page.verdict)}**\n"]
    for section in page.sections:
        parts.append(f"## {section.title}\n")
        if section.lines:
            parts.append("".join(f"- {markdown_text(line)}\n" for line in section.lines))
        parts += map(markdown_table, section.tables)
        for name, quote in section.quotes:
            parts.append(
                f"### {markdown_text(name)}\n\n"
                + "".join(
                    f"{label}:\n\n{markdown_block(short(text))}\n"
                    for label, text in (("Asked", quote.asked), ("Before", quote.before), ("After", quote.after))
                )
            )
    return "\n".join(parts)


def usd_text(nano: float, *, sign: bool = False) -> str:
    """`$0.00107`, `-$1.20`: two decimals of a dollar or more, three digits of less."""
    size = abs(nano) / 1e9
    text = f"{size:,.2f}" if size >= 1 or not size else f"{size:.{_decimals(size)}f}"
    return f"{'-' if nano < 0 else '+' if sign else ''}${text}"


def change_text(one: Change, value: float, *, sign: bool = False) -> str:
    """A figure of a measure in its unit."""
    if one.name == "cost":
        return usd_text(value, sign=sign)
    plus = "+" if sign else ""
    return f"{value / 1e6:{plus},.2f} s" if one.name == "latency" else f"{value:{plus},.1f}"


def _decimals(size: float) -> int:
    places = 2
    while places < 9 and size * 10**places < 100:
        places += 1
    return places


def _is_workflow(found: Upgrade) -> bool:
    return found.about.subject.startswith("workflow:")


def _verdict(found: Upgrade) -> Section:
    verdict, whole, all_of = found.verdict, found.verdict.whole, found.verdict.everything
    lines = [
        f"{_share(whole.before)} of answers are right before, {_share(whole.after)} after: {points(whole)}, in "
        f"{whole.pairs:,} pairs.",
        f"Better in {whole.wins:,} pairs, worse in {whole.losses:,}, alike in {whole.ties:,}.",
    ]
    if all_of.pairs != whole.pairs:
        lines.append(
            f"It is settled after {whole.pairs:,} pairs; all {all_of.pairs:,} give {_share(all_of.before)} before and "
            f"{_share(all_of.after)} after: {points(all_of)}."
        )
    if not whole.settled:
        more, which = whole.more_needed, "fresh" if found.asked.fixed else "more"
        lines.append(
            "No number of examples is likely to settle it." if more is None else
            f"About {more:,} {which} examples would settle it with a chance of 80 %, if they go on as these."
        )  # fmt: skip
    if (spent := found.spent) is not None:
        judged = f", judging {usd_text(spent.judged_nano_usd)}" if spent.judged_nano_usd else ""
        lines.append(f"Asking the candidate {spent.asked:,} times cost {usd_text(spent.nano_usd)}{judged}.")
        if spent.saved_calls:
            why = {"settled": "It ended early", "budget": "The budget ended it"}.get(spent.stopped, "It ended")
            lines.append(
                f"{why}: {spent.saved_calls:,} of {spent.planned:,} Calls were not made, about "
                f"{usd_text(spent.saved_nano_usd)}."
            )
    return Section(key="verdict", title=f"Verdict: {verdict.word}", lines=(*lines, *found.warnings))


def _readings(found: Upgrade) -> Section | None:
    if not found.readings:
        return None
    rows = tuple(
        (
            f"{one.reading}{' (chosen)' if one.chosen else ''}", _share(one.before), _share(one.after),
            _share(one.unread[0]), _share(one.unread[1]), _interval(one.difference, one.low, one.high), one.verdict,
            READINGS[one.reading].description,
        )
        for one in found.readings
    )  # fmt: skip
    words = {one.verdict for one in found.readings}
    said = (
        "Every plausible reading gives the same verdict." if len(words) == 1 else
        "The verdict depends on how answers are read: choose the reading that your own parser has."
    )  # fmt: skip
    head = ("reading", "right before#", "after#", "unread before#", "after#", "points#", "verdict", "takes")
    return Section(key="readings", title="By how answers are read", lines=(said,), tables=(Table(head, rows),))


def _slices(found: Upgrade) -> Section | None:
    slices = found.verdict.slices
    if not slices:
        return None
    rows = tuple(
        (
            one.name or "(none)", f"{one.pairs:,}", _share(one.comparison.before), _share(one.comparison.after),
            _compared(one.comparison), one.verdict if one.pairs >= SLICE_PAIRS_MIN else "too few pairs",
            "yes" if one.name in found.verdict.route or (one.takes and not found.verdict.route) else "",
        )
        for one in slices[:SLICES_SHOWN]
    )  # fmt: skip
    lines = ["Each at the level that Holm's rule leaves it, so that all of them together are wrong in at most 5 %."]
    if len(slices) > SLICES_SHOWN:
        lines.append(f"{len(slices) - SLICES_SHOWN:,} more slices stand in the Report's JSON.")
    head = ("slice", "pairs#", "right before#", "after#", "points#", "evidence", "to the candidate")
    return Section(key="slices", title="By slice", lines=tuple(lines), tables=(Table(head, rows),))


def _failures(found: Upgrade, quotes: Mapping[str, Quote]) -> Section:
    failures = found.failures

    def rows(groups: Sequence[Group], what: str) -> list[tuple[str, ...]]:
        return [
            (what, one.cause, f"{one.count:,}", ", ".join(f"{name} ({many:,})" for name, many in one.slices.items()),
             ", ".join(one.examples))
            for one in groups
        ]  # fmt: skip

    listed = (*rows(failures.introduced, "introduced"), *rows(failures.fixed, "fixed"))
    fixed, introduced = (sum(one.count for one in part) for part in (failures.fixed, failures.introduced))
    lines = [
        f"{fixed:,} failures are fixed, {introduced:,} introduced; in {failures.both:,} pairs neither answer is right.",
        *(
            f"{many:,} answers {when} would be right without the Markdown around them: {many / found.pairs:.1%}."
            for when, many in zip(("before", "after"), found.drift.wrapped, strict=True) if many
        ),
    ]  # fmt: skip
    shown = [
        (f"{what}, {group.cause}: {name}", quotes[name])
        for what, groups in (("introduced", failures.introduced), ("fixed", failures.fixed))
        for group in groups for name in group.examples if name in quotes
    ]  # fmt: skip
    head = ("", "cause", "pairs#", "slices", "such as")
    return Section(
        key="failures", title="Failures fixed and introduced", lines=tuple(lines),
        tables=(Table(head, listed),) if listed else (), quotes=tuple(shown),
    )  # fmt: skip


def _form(found: Upgrade) -> Section | None:
    drift, lines = found.drift, []
    lines += [f"{one[0].upper()}{one[1:]}." for one in drift.named]
    if any(drift.unread):
        lines.append(
            f"{drift.unread[0]:,} answers before and {drift.unread[1]:,} after cannot be read "
            f"({drift.unread[0] / found.pairs:.1%}, {drift.unread[1] / found.pairs:.1%})."
        )
    if not drift.pairs:
        return Section(key="form", title="Format and length", lines=tuple(lines)) if lines else None
    if not drift.named:
        lines.append("Nothing that was looked at drifted.")
    rows = tuple(
        (one.shape, SHAPES[one.shape], _share(one.before), _share(one.after),
         _interval(one.after - one.before, one.low, one.high))
        for one in drift.shapes
    )  # fmt: skip
    tables = [Table(("shape", "is", "before#", "after#", "points#"), rows)]
    if (length := drift.length) is not None:
        tables.append(
            Table(
                ("characters", "10 %#", "half#", "90 %#"),
                tuple((name, *(f"{one:,.0f}" for one in three))
                      for name, three in (("before", length.before), ("after", length.after))),
            )
        )  # fmt: skip
    return Section(key="form", title="Format and length", lines=tuple(lines), tables=tuple(tables))


def _changes(found: Upgrade) -> Section | None:
    if not found.changes:
        return None
    rows = tuple(
        (
            {"cost": "cost", "latency": "latency", "tokens": "output tokens"}[one.name], f"{one.pairs:,}",
            change_text(one, one.before), change_text(one, one.after),
            change_text(one, one.difference, sign=True),
            "-" if one.low is None or one.high is None else
            f"{change_text(one, one.low, sign=True)} to {change_text(one, one.high, sign=True)}",
            f"{one.difference / one.before:+.0%}" if one.before else "-",
        )
        for one in found.changes
    )  # fmt: skip
    head = ("per Call", "pairs#", "before#", "after#", "change#", "95 %#", "share#")
    return Section(key="changes", title="Cost, latency and tokens", tables=(Table(head, rows),))


def _items(key: str, title: str, items: Sequence[Item]) -> Section | None:
    if not items:
        return None
    rows = tuple(
        (one.what, "" if one.nano_usd is None else usd_text(one.nano_usd), one.detail) for one in items
    )  # fmt: skip
    return Section(key=key, title=title, tables=(Table(("what", "USD#", ""), rows),))


def _basis(found: Upgrade) -> Section:
    about, asked = found.about, found.asked
    lines = [f"{about.before} before, {about.after} after, {found.pairs:,} pairs."]
    if about.variant:
        lines.append(f"The candidate stands in for variant `{about.variant}`; route, prompts and parameters are kept.")
    lines += [f"Held against {TRUTHS.get(name, name)}: {many:,} pairs." for name, many in found.truths.items()]
    if about.scorer:
        lines.append(f"Scored by {about.scorer}.")
    lines.append(
        f"{ONE_LOOK if asked.fixed else MANY_LOOKS.format(asked.look_every)}; verdicts are "
        f"wrong with a chance of at most {1 - asked.level:.0%}."
        + (f" Worse by less than {asked.margin * 100:g} points is accepted." if asked.margin else "")
    )
    if about.dataset:
        lines.append(f"Dataset {about.dataset}.")
    lines += [f"File {name}, SHA-256 {digest}." for name, digest in about.files]
    if any(about.unpaired):
        lines.append(f"Left out: {about.unpaired[0]:,} answers before and {about.unpaired[1]:,} after without another.")
    return Section(key="basis", title="What this rests on", lines=tuple(lines))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _interval(value: float, low: float, high: float) -> str:
    return f"{value * 100:+.1f} ({low * 100:+.1f} to {high * 100:+.1f})"


def _compared(found: Comparison) -> str:
    return _interval(found.difference or 0.0, found.low, found.high)


def short(text: str) -> str:
    """The start of a long text."""
    return text if len(text) <= QUOTE_CHARS else f"{text[:QUOTE_CHARS]} ..."
