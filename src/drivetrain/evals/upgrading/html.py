"""An upgrade as one HTML file: its own style and drawings, nothing from elsewhere, nothing that runs.

The file refuses to load anything, whatever stands in it: its policy allows its own style and no more. Everything that
is not ours is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence

from drivetrain.core.markup import html_page, html_table, html_text
from drivetrain.evals.upgrading.page import Page, Section, short
from drivetrain.evals.upgrading.result import Upgrade
from drivetrain.evals.upgrading.verdict import NOT_ENOUGH, ROUTE, STAY, UPGRADE

COLOURS = {UPGRADE: "good", ROUTE: "part", STAY: "bad", NOT_ENOUGH: "open"}
WIDTH, ROW, LEFT, RIGHT = 720, 30, 190, 150
"""Of a drawing, in its own units: all of it, one line, and the margins for names and figures."""
BARS_MAX = 12
"""Lines of a drawing; the table below it has all."""
STYLE = """
:root{--ink:#16202c;--soft:#5b6876;--line:#dfe4ea;--paper:#fff;--wash:#f5f7fa;--good:#0b7a4b;--bad:#b3261e;
--part:#9a6700;--open:#4a5a6a;--before:#8b98a8;--after:#2457c5}
@media(prefers-color-scheme:dark){:root{--ink:#e8edf3;--soft:#9fb0c0;--line:#2c3742;--paper:#12181f;--wash:#1a222b;
--good:#4cc38a;--bad:#ff8a80;--part:#f2b84b;--open:#a9b8c6;--before:#7d8b9a;--after:#7aa2ff}}
*{box-sizing:border-box}
body{margin:0;background:var(--wash);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:980px;margin:0 auto;padding:40px 20px 80px}
header,section{background:var(--paper);border:1px solid var(--line);border-radius:12px;padding:26px 30px;
margin-bottom:18px}
h1{font-size:1.05rem;margin:0 0 14px;color:var(--soft);font-weight:600}
h2{font-size:1.15rem;margin:0 0 10px}
h3{font-size:.95rem;margin:22px 0 6px}
.word{display:inline-block;font-size:1.7rem;font-weight:700;line-height:1.2;margin-bottom:10px}
.word::first-letter{text-transform:uppercase}
.good{color:var(--good)}.bad{color:var(--bad)}.part{color:var(--part)}.open{color:var(--open)}
.lead{font-size:1.08rem;margin:0;overflow-wrap:anywhere}
.figures{display:flex;flex-wrap:wrap;gap:16px;margin-top:22px}
.figure{flex:1 1 auto;border-left:3px solid var(--line);padding-left:12px}
.figure b{display:block;font-size:1.15rem;white-space:nowrap;font-variant-numeric:tabular-nums}
.figure span{color:var(--soft);font-size:.86rem}
ul{margin:0 0 12px;padding-left:20px}li{margin:3px 0;overflow-wrap:anywhere}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;margin:10px 0 4px}
th{text-align:left;color:var(--soft);font-weight:600;border-bottom:1px solid var(--line);padding:6px 10px 6px 0}
td{border-bottom:1px solid var(--line);padding:6px 10px 6px 0;vertical-align:top}
td{overflow-wrap:break-word;min-width:4.5em}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
svg{width:100%;height:auto;display:block;margin:8px 0}
svg text{fill:var(--ink);font-size:13px}svg .soft{fill:var(--soft)}
.axis{stroke:var(--line)}.zero{stroke:var(--soft);stroke-dasharray:3 3}
.ci{stroke-width:3;stroke-linecap:round}.dot{stroke:none}
.s-good{stroke:var(--good);fill:var(--good)}.s-bad{stroke:var(--bad);fill:var(--bad)}.s-open{stroke:var(--open);fill:var(--open)}
.b-before{fill:var(--before)}.b-after{fill:var(--after)}
pre{background:var(--wash);border:1px solid var(--line);border-radius:8px;padding:10px 12px;margin:4px 0 10px;
white-space:pre-wrap;overflow-wrap:anywhere;font-size:.84rem}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:12px}
@media(max-width:640px){.pair{grid-template-columns:1fr}header,section{padding:20px}}
.label{color:var(--soft);font-size:.8rem}
@media print{body{background:#fff}section,header{break-inside:avoid}}
"""


def rendered(found: Upgrade, page: Page) -> str:
    """The whole file."""
    word = found.verdict.word
    parts = [
        f"<main>\n<header><h1>{html_text(page.title)}</h1><div class=\"word {COLOURS[word]}\">{html_text(word)}</div>",
        f"<p class=\"lead\">{html_text(page.verdict)}</p>{_figures(found)}</header>",
        *(_section(found, one) for one in page.sections),
        "</main>",
    ]  # fmt: skip
    return html_page(f"{page.title}: {word}", STYLE, "\n".join(parts))


def _figures(found: Upgrade) -> str:
    whole = found.verdict.everything
    told = [
        (f"{whole.before or 0:.1%} → {whole.after or 0:.1%}", f"right, in {whole.pairs:,} pairs"),
        (f"{(whole.difference or 0) * 100:+.1f} points", f"{whole.low * 100:+.1f} to {whole.high * 100:+.1f}"),
    ]
    for one in found.changes:
        if one.before:
            label = {"cost": "cost per Call", "latency": "latency", "tokens": "output tokens"}[one.name]
            told.append((f"{one.difference / one.before:+.0%}", label))
    cells = "".join(
        f'<div class="figure"><b>{html_text(big)}</b><span>{html_text(small)}</span></div>' for big, small in told
    )
    return f'<div class="figures">{cells}</div>'


def _section(found: Upgrade, section: Section) -> str:
    lines = "".join(f"<li>{html_text(one)}</li>" for one in section.lines)
    drawing = {"slices": _slices, "readings": _readings, "form": _shapes, "verdict": _whole}.get(section.key)
    return "".join([
        f"<section id=\"{section.key}\"><h2>{html_text(section.title)}</h2>",
        f"<ul>{lines}</ul>" if lines else "",
        drawing(found) if drawing is not None else "",
        *map(html_table, section.tables),
        *(_quote(name, quote.asked, quote.before, quote.after) for name, quote in section.quotes),
        "</section>",
    ])  # fmt: skip


def _quote(name: str, asked: str, before: str, after: str) -> str:
    def block(label: str, text: str) -> str:
        return f'<div><div class="label">{label}</div><pre>{html_text(short(text)) or "(nothing)"}</pre></div>'

    both = f'<div class="pair">{block("before", before)}{block("after", after)}</div>'
    return f"<h3>{html_text(name)}</h3>{block('asked', asked)}{both}"


def _whole(found: Upgrade) -> str:
    settled, whole = found.verdict.whole, found.verdict.everything
    rows = [(f"all {whole.pairs:,} pairs", whole)]
    if settled.pairs != whole.pairs:
        rows.insert(0, (f"after {settled.pairs:,} pairs", settled))
    return _intervals([(name, one.difference or 0.0, one.low, one.high) for name, one in rows])


def _slices(found: Upgrade) -> str:
    return _intervals([
        (one.name or "(none)", one.comparison.difference or 0.0, one.comparison.low, one.comparison.high)
        for one in found.verdict.slices[:BARS_MAX]
    ])  # fmt: skip


def _readings(found: Upgrade) -> str:
    return _intervals([(one.reading, one.difference, one.low, one.high) for one in found.readings[:BARS_MAX]])


def _intervals(rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Differences with their intervals, on one axis of points; zero is marked."""
    reach = max(0.05, *(abs(end) for _, _, low, high in rows for end in (low, high)))

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value / reach + 1) / 2

    height = ROW * len(rows) + 26
    parts = [f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="4" y2="{height - 22}"/>']
    for place, (name, value, low, high) in enumerate(rows):
        y = ROW * place + ROW / 2
        kind = "s-good" if low > 0 else "s-bad" if high < 0 else "s-open"
        parts += [
            f"<text x=\"0\" y=\"{y + 4:.1f}\">{html_text(name if len(name) <= 24 else name[:23] + '…')}</text>",
            f"<line class=\"ci {kind}\" x1=\"{x(low):.1f}\" x2=\"{x(high):.1f}\" y1=\"{y:.1f}\" y2=\"{y:.1f}\"/>",
            f"<circle class=\"dot {kind}\" cx=\"{x(value):.1f}\" cy=\"{y:.1f}\" r=\"6\"/>",
            f"<text x=\"{WIDTH}\" y=\"{y + 4:.1f}\" text-anchor=\"end\">{value * 100:+.1f} points</text>",
        ]  # fmt: skip
    base = height - 20
    parts.append(f'<line class="axis" x1="{x(-reach):.1f}" x2="{x(reach):.1f}" y1="{base}" y2="{base}"/>')
    for value, anchor in ((-reach, "start"), (0.0, "middle"), (reach, "end")):
        parts.append(
            f'<text class="soft" x="{x(value):.1f}" y="{height - 4}" text-anchor="{anchor}">{value * 100:+.0f}</text>'
        )
    return _svg(height, parts, "differences in points, with their intervals")


def _shapes(found: Upgrade) -> str:
    """How common each shape was and is, as two bars."""
    shapes = found.drift.shapes
    if not shapes:
        return ""
    height, parts = (ROW + 6) * len(shapes), []
    scale = WIDTH - LEFT - RIGHT
    for place, one in enumerate(shapes):
        y = (ROW + 6) * place + 4
        parts.append(f'<text x="0" y="{y + 18}">{html_text(one.shape)}</text>')
        for kind, top, share in (("before", y, one.before), ("after", y + 13, one.after)):
            width = max(1, scale * share)
            parts.append(f'<rect class="b-{kind}" rx="3" x="{LEFT}" y="{top}" height="11" width="{width:.1f}"/>')
        parts.append(f'<text x="{WIDTH}" y="{y + 18}" text-anchor="end">{one.before:.1%} → {one.after:.1%}</text>')
    return _svg(height, parts, "share of answers of each shape, before in grey and after in blue")


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
