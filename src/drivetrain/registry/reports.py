"""Reports: kept under the hash of their content, never changed, cited by id.

Owns `reports` in the data folder. Whoever makes a Report says what it was made from; lineage is recorded here. A Report
about something that is not published yet carries a mark until it is, so that what a killed process left is known.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.reports import REPORT_KINDS, ReportV1
from drivetrain.lineage.lineage import Lineage
from drivetrain.ports.disk import sync_folder, write_whole

FOLDER = "reports"
"""In the data folder."""
REPORT_BYTES_MAX = 32 * 1024 * 1024
"""A Report is read as a whole; rows belong into a Dataset that it cites."""
ID_CHARS = 16
PREFIX_CHARS_MIN = 4
"""Fewer of an id name too many Reports."""
MARK = ".begun"
"""Ends the name of the empty file beside a Report whose subject is not published yet."""
_FILE = re.compile(r"([0-9a-f]{64})\.json")
_PREFIX = re.compile(r"[0-9a-f]{4,64}")
_DECODER: msgspec.json.Decoder[ReportV1] = msgspec.json.Decoder(ReportV1)


class Stored(msgspec.Struct, frozen=True):
    """A Report and the id that it is cited by."""

    id: str
    report: ReportV1


class Reports:
    """The Reports of a project. folder: `reports` in its data folder; lineage: None where none is to be recorded."""

    def __init__(self, folder: Path, lineage: Lineage | None = None) -> None:
        self._folder = folder
        self._lineage = lineage

    def put(self, report: ReportV1) -> str:
        """Keeps a Report and records its lineage; its id. Putting it again changes nothing. Raises: DrivetrainError."""
        if report.kind not in REPORT_KINDS:
            raise DrivetrainError(f"`{report.kind}` is no kind of Report.", do=did_you_mean(report.kind, REPORT_KINDS))
        for name, value in report.facts.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise DrivetrainError(f"The Report's fact `{name[:80]}` is no finite number: {value}.")
        content = msgspec.json.encode(report, order="deterministic")
        if len(content) > REPORT_BYTES_MAX:
            raise DrivetrainError(
                f"The Report has {len(content):,} bytes; at most {REPORT_BYTES_MAX:,} are kept.",
                do="Keep rows in a Dataset, and cite it.",
            )
        digest = hashlib.sha256(content).hexdigest()
        path = self._folder / f"{digest}.json"
        if path.exists():
            return digest[:ID_CHARS]
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_folder(self._folder.parent)
            write_whole(path, content)
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        if self._lineage is not None:
            try:
                self._lineage.made(
                    f"report:{report.kind}@{digest[:ID_CHARS]}",
                    inputs=[*dict.fromkeys([report.subject, *report.inputs])],
                    facts={"content_hash": digest, "verdict": report.verdict[:200]},
                )
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        return digest[:ID_CHARS]

    def begin(self, report: ReportV1) -> str:
        """As `put`, of a Report whose subject is about to be published; `settle` or `drop` ends it.

        Whoever publishes calls `sweep` before, so that nothing stays of one that was killed in between.
        Raises: DrivetrainError.
        """
        digest = hashlib.sha256(msgspec.json.encode(report, order="deterministic")).hexdigest()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._folder / f"{digest}{MARK}").touch(mode=0o600)
            sync_folder(self._folder)
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        return self.put(report)

    def settle(self, id: str) -> None:
        """Its subject is published."""
        for mark in self._folder.glob(f"{id}*{MARK}"):
            mark.unlink(missing_ok=True)

    def drop(self, id: str) -> None:
        """Its subject will not be published: nothing of it stays. One that is not marked as begun stays."""
        for mark in self._folder.glob(f"{id}*{MARK}"):
            mark.with_suffix(".json").unlink(missing_ok=True)
            mark.unlink(missing_ok=True)

    def sweep(self, is_published: Callable[[Stored], bool]) -> list[Stored]:
        """Ends what killed processes had begun, by whether its subject is published; gives what is kept.

        Called where nobody else publishes.
        """
        kept = []
        for mark in sorted(self._folder.glob(f"*{MARK}")):
            digest = mark.name.removesuffix(MARK)
            try:
                found = Stored(digest[:ID_CHARS], self._read(digest))
            except DrivetrainError:  # not written yet, or damaged since, which `get` tells
                mark.unlink(missing_ok=True)
                continue
            if is_published(found):
                self.settle(digest)
                kept.append(found)
            else:
                self.drop(digest)
        return kept

    def get(self, prefix: str) -> Stored:
        """The Report whose id begins so, `PREFIX_CHARS_MIN` digits at least. Raises: DrivetrainError."""
        if _PREFIX.fullmatch(prefix) is None:
            raise DrivetrainError(
                f"{prefix[:80]!r} is no id of a Report.", do=f"Write {PREFIX_CHARS_MIN} or more of its hex digits."
            )
        found = [one for one in self._digests() if one.startswith(prefix)]
        if len(found) != 1:
            why = "Several Reports begin" if found else "No Report begins"
            raise DrivetrainError(
                f"{why} with `{prefix}`{': ' + ', '.join(one[:ID_CHARS] for one in found[:8]) if found else ''}.",
                looked=[str(self._folder)],
                do="Write more digits." if found else "`drivetrain report list` lists them.",
            )
        return Stored(found[0][:ID_CHARS], self._read(found[0]))

    def _digests(self) -> list[str]:
        if not self._folder.is_dir():
            return []
        return sorted(found[1] for one in self._folder.iterdir() if (found := _FILE.fullmatch(one.name)))

    def _read(self, digest: str) -> ReportV1:
        path = self._folder / f"{digest}.json"
        try:
            with path.open("rb") as file:
                content = file.read(REPORT_BYTES_MAX + 1)
            if hashlib.sha256(content).hexdigest() != digest:
                raise DrivetrainError(
                    f"The Report {digest[:ID_CHARS]} was changed: its content is not what its name says.",
                    looked=[str(path)],
                    do="Restore it from your backup, or make it again.",
                )
            return _DECODER.decode(content)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DrivetrainError(
                f"The Report {digest[:ID_CHARS]} cannot be read: {error}.",
                looked=[str(path)],
                do="Restore it from your backup, or make it again.",
            ) from None

    def list(self, kind: str = "", subject: str = "") -> list[Stored]:
        """Every Report of a kind and about a subject, newest first; an empty word stands for any.

        subject: an artifact, or one without its version for all its versions. Raises: DrivetrainError where one is
        damaged.
        """
        found = [Stored(digest[:ID_CHARS], self._read(digest)) for digest in self._digests()]
        chosen = [
            one
            for one in found
            if kind in ("", one.report.kind) and (not subject or _is_about(one.report.subject, subject))
        ]
        return sorted(chosen, key=lambda one: (-one.report.made_ns, one.id))


def _unwritable(folder: Path, error: OSError) -> DrivetrainError:
    return DrivetrainError(f"The Report cannot be written: {error.strerror or error}.", looked=[str(folder)])


def _is_about(subject: str, wanted: str) -> bool:
    return subject == wanted or subject.startswith(f"{wanted}@")
