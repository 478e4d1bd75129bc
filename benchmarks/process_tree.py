"""What a target cost: CPU time and memory of a process and everything it started.

Reads `/proc`, so it needs Linux. Owns no process: starting and stopping is `targets.target`. Called by `run.py` and
`soak.py`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class ProcessMemory:
    """The memory of one process of a tree."""

    pid: int
    """Process id."""
    command: str
    """Name of the executable, as the kernel shows it."""
    rss_mb: float
    """Resident set now, in MiB."""
    peak_mb: float
    """Largest resident set since the process began, in MiB."""


def tree(root: int) -> list[int]:
    """`root` and all its living descendants, parents first; empty when `root` is gone."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _stat(int(entry))):
            children.setdefault(int(stat[1]), []).append(int(entry))
    if not _stat(root):
        return []
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def cpu_us(root: int) -> int:
    """CPU microseconds, user and system, spent so far by the tree, its ended and reaped children included.

    Resolution: one tick (10 ms) per process. A child that ended without being reaped inside the tree is lost.
    """
    ticks = 0
    for pid in tree(root):
        if stat := _stat(pid):
            ticks += sum(int(field) for field in stat[11:15])  # utime, stime, cutime, cstime
    return ticks * _TICK_US


def memory(root: int) -> list[ProcessMemory]:
    """Resident and peak memory of every living process of the tree, parents first. Shared pages count in each."""
    found = []
    for pid in tree(root):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        status = dict(line.split(":", 1) for line in lines if ":" in line)
        if "VmRSS" in status:
            found.append(
                ProcessMemory(
                    pid=pid,
                    command=status["Name"].strip(),
                    rss_mb=int(status["VmRSS"].split()[0]) / 1024,
                    peak_mb=int(status["VmHWM"].split()[0]) / 1024,
                )
            )
    return found


def _stat(pid: int) -> list[str] | None:
    """The fields of `/proc/PID/stat` from the third (state) on: the name before them may hold blanks."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()
