"""An upgrade that was judged, and its pages: with quotes they are exports, which the control log notes.

Texts are in memory only; a stored Report has none. Made by `upgrading.py`, used by `drivetrain upgrade`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.reports import ReportV1
from drivetrain.datasets.datasets import EXPORTED
from drivetrain.embedded.applying import person
from drivetrain.evals.upgrading import html
from drivetrain.evals.upgrading import page as pages
from drivetrain.evals.upgrading.pairs import Pair
from drivetrain.evals.upgrading.result import Upgrade
from drivetrain.ports.control import ControlLog
from drivetrain.ports.disk import SHARED_MODE, write_whole


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """An upgrade that was judged."""

    upgrade: Upgrade
    report: ReportV1
    report_id: str
    """Empty where there is no project to keep it in."""
    pairs: Mapping[str, Pair]
    asked: Mapping[str, str]
    """Id of a pair -> what was asked."""
    control: ControlLog | None

    def page(self) -> pages.Page:
        """Without quotes."""
        return pages.page_of(self.upgrade)

    def export(self, path: Path, kind: str) -> None:
        """Writes the page with its examples quoted; kind: `html` or `markdown`. It is noted in the control log before
        it is there. Raises: DrivetrainError."""
        quotes = self._quotes()
        made = pages.page_of(self.upgrade, quotes)
        text = html.rendered(self.upgrade, made) if kind == "html" else pages.markdown(made)
        content = text.encode("utf-8", "replace")
        if self.control is not None:
            self.control.append(
                kind=EXPORTED, actor=person(), subject=f"report:{self.report_id}",
                body={"format": kind, "rows": len(quotes), "sha256": hashlib.sha256(content).hexdigest(),
                      "personal": bool(quotes), "to": path.name},
            )  # fmt: skip
        try:
            write_whole(path, content, mode=SHARED_MODE)
        except OSError as error:
            raise DrivetrainError(f"{path} cannot be written: {error.strerror}.", do="Name another file.") from None

    def _quotes(self) -> dict[str, pages.Quote]:
        groups = (*self.upgrade.failures.fixed, *self.upgrade.failures.introduced)
        found = {}
        for name in {name for group in groups for name in group.examples}:
            pair = self.pairs[name]
            if pair.before.text is None and pair.after.text is None:
                continue
            right = "" if pair.expected is None else f"\n(right: {_shown(pair.expected)})"
            found[name] = pages.Quote(
                f"{self.asked.get(name, name)}{right}", pair.before.text or "", pair.after.text or pair.after.error
            )
        return found


def _shown(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
