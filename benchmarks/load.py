"""The load: `wrk` with one thread, and what it saw.

Owns the Lua that makes wrk post and report. Called by `run.py` and `soak.py`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT_S = 60

_REPORT = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'REPORT {"requests":%d,"seconds":%.6f,"bytes":%d,"p50_ms":%.4f,"p99_ms":%.4f,' ..
    '"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}\\n',
    summary.requests, summary.duration / 1e6, summary.bytes, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, e.connect, e.read, e.write, e.status, e.timeout))
end
"""


class LoadFailed(Exception):
    """wrk itself failed, for instance because nothing listens."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one run of wrk saw."""

    requests: int
    """Answers read to their end."""
    seconds: float
    """Length of the run."""
    answer_bytes: int
    """Bytes read, heads included."""
    p50_ms: float
    """Median time to the end of an answer."""
    p99_ms: float
    """99th percentile of the same."""
    errors: dict[str, int]
    """Failures by kind (connect, read, write, status, timeout), only those above zero."""

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return self.requests / self.seconds if self.seconds else 0.0


def script(bodies: Sequence[bytes], headers: Mapping[str, str]) -> str:
    """Lua that posts the bodies, in turn when there are several. Several cost wrk about a microsecond each."""
    lines = ['wrk.method = "POST"']
    lines += [f"wrk.headers[{_lua(name)}] = {_lua(value)}" for name, value in headers.items()]
    if len(bodies) == 1:
        lines.append(f"wrk.body = {_lua(bodies[0].decode())}")
    else:
        listed = ", ".join(_lua(body.decode()) for body in bodies)
        lines += [
            f"local bodies, made, turn = {{{listed}}}, {{}}, 0",
            "init = function(args) for i, body in ipairs(bodies) do made[i] = wrk.format(nil, nil, nil, body) end end",
            "request = function() turn = turn % #made + 1; return made[turn] end",
        ]
    return "\n".join(lines) + _REPORT


def run(wrk: str, url: str, lua: Path, *, connections: int, seconds: float, pin: Sequence[str]) -> Load:
    """Loads `url` for that long.

    Raises: LoadFailed.
    """
    whole = max(1, round(seconds))  # wrk takes whole seconds only
    command = [*pin, wrk, "-t1", f"-c{connections}", f"-d{whole}s", f"--timeout={_TIMEOUT_S}s", "-s", str(lua), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=whole + 2 * _TIMEOUT_S, check=False)
    reports = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    if not reports:
        raise LoadFailed(f"wrk failed ({done.returncode}): {done.stdout[-500:]}{done.stderr[-500:]}")
    seen = json.loads(reports[-1].removeprefix("REPORT "))
    return Load(
        requests=seen["requests"],
        seconds=seen["seconds"],
        answer_bytes=seen["bytes"],
        p50_ms=seen["p50_ms"],
        p99_ms=seen["p99_ms"],
        errors={kind: seen[kind] for kind in ("connect", "read", "write", "status", "timeout") if seen[kind]},
    )


def _lua(text: str) -> str:
    """A Lua string literal; JSON's escapes are Lua's for the plain ASCII used here."""
    assert text.isascii()
    return json.dumps(text)
