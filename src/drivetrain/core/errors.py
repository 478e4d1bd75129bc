"""Errors for the person who must act: what failed, the value seen, where we looked, what to do.

Owns the three families: `DrivetrainError` (any), `ProjectError` (a list of `Problem`s in a user's
project) and `RequestError` (an HTTP answer in OpenAI's error shape).
"""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec


class DrivetrainError(Exception):
    """What failed, where we looked, and what to do, as one readable text."""

    def __init__(self, what: str, *, looked: Sequence[str] = (), do: str = "") -> None:
        self.what = what
        self.looked = tuple(looked)
        self.do = do
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.looked:
            lines.append(f"Looked in: {', '.join(self.looked)}.")
        if self.do:
            lines.append(self.do)
        return "\n".join(lines)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One mistake in a user's project."""

    what: str
    """What is wrong, in one sentence that names the declaration."""
    file: str = ""
    """Path relative to the project's folder."""
    line: int = 0
    """1-based; 0 where no line is known."""
    value: str = ""
    """The value seen, as the user wrote it; never a secret."""
    do: str = ""
    """What to write instead."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        head = f"{place}: {self.what}" if place else self.what
        seen = f"\n    seen: {self.value}" if self.value else ""
        fix = f"\n    do:   {self.do}" if self.do else ""
        return head + seen + fix


class ProjectError(DrivetrainError):
    """A project that cannot be served, with every mistake found in it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        what = f"{count} mistake{'s' if count != 1 else ''} in the project:\n"
        super().__init__(what + "\n".join(str(problem) for problem in self.problems))


class RequestError(DrivetrainError):
    """A request that is refused or failed, with its HTTP status and OpenAI's `type`, `code` and `param`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.kind = kind
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """The JSON body in OpenAI's error shape."""
        return error_body(self.what, kind=self.kind, code=self.code, param=self.param)


def error_body(message: str, *, kind: str, code: str, param: str | None = None) -> bytes:
    """OpenAI's error shape: `{"error": {"message", "type", "param", "code"}}`."""
    error: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}
    return msgspec.json.encode({"error": error})


def report_fault(where: str, fault: BaseException) -> None:
    """Prints a fault of ours to standard error: its type and places. Values, which may be private, are not printed."""
    places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(fault.__traceback__)]
    print(f"drivetrain: {where}: {type(fault).__name__} at {' < '.join(places[::-1])}", file=sys.stderr)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None where none is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`Did you mean ...?`, else the known names, for the end of an error about an unknown name."""
    names = sorted(known)
    near = nearest(name, names)
    if near is not None:
        return f"Did you mean `{near}`?"
    if not names:
        return "None is declared."
    shown = ", ".join(f"`{one}`" for one in names[:8])
    return f"Known: {shown}{' ...' if len(names) > 8 else ''}."
