"""A run as JUnit XML, which every CI shows: one test per gate, and one for whether the run was finished.

It quotes nobody: what failed is cited by row and Call. Called by `drivetrain eval run --junit`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from drivetrain.core.reports import ReportV1

_FORBIDDEN = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, also not escaped."""


def junit(report: ReportV1, report_id: str) -> str:
    """The XML of a Report of kind `eval`."""
    facts, body = report.facts, report.body
    name = f"eval.{facts['eval']}"
    finished = facts["finished"] is True
    cases = [_case(name, "the run is finished", "" if finished else report.verdict, "")]
    for one in body["gates"]:
        why = "" if one["state"] == "passed" else f"{one['state']}: {one['why']}"
        cases.append(_case(name, one["gate"], why, _cited(one)))
    failures = sum("<failure" in one for one in cases)
    counts = f'name={_quoted(name)} tests="{len(cases)}" failures="{failures}" errors="0"'
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f"<testsuites {counts}>",
        f"  <testsuite {counts}>",
        "    <properties>",
        *(
            f"      <property name={_quoted(key)} value={_quoted(str(value))}/>"
            for key, value in [("report", report_id), *facts.items()]
        ),
        "    </properties>",
        *cases,
        "  </testsuite>",
        "</testsuites>",
    ]
    return "\n".join(lines) + "\n"


def _cited(one: dict[str, Any]) -> str:
    rows: Sequence[Any] = one.get("rows") or ()
    return f"rows: {', '.join(map(str, rows))}" if rows else ""


def _case(suite: str, name: str, why: str, more: str) -> str:
    head = f"    <testcase classname={_quoted(suite)} name={_quoted(name)}"
    if not why:
        return f"{head}/>"
    return f"{head}>\n      <failure message={_quoted(why)}>{_escaped(more)}</failure>\n    </testcase>"


def _quoted(text: str) -> str:
    return quoteattr(_FORBIDDEN.sub("?", text))


def _escaped(text: str) -> str:
    return _FORBIDDEN.sub("?", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
