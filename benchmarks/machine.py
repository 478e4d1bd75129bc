"""The machine that measures: which cores do what, which tools are there, and how both are described in a result.

Called by every script here. Installs Debian packages only when it runs as root and says so.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The repository."""

_PACKAGES = {"wrk": ["wrk"], "nginx": ["nginx-light"], "gcc": ["gcc", "libc6-dev"], "npm": ["nodejs", "npm"]}


@dataclass(frozen=True, kw_only=True)
class Pins:
    """The `taskset` prefixes that keep the measured process away from the measuring ones."""

    target: list[str]
    """For the target: the first core."""
    upstream: list[str]
    """For the upstream: the second core."""
    load: list[str]
    """For the load generator: the third core, or the second when there are only two."""
    told: str
    """The same in words."""


def pins() -> Pins:
    """Pins for the cores this process may use; empty prefixes on one core or without `taskset`."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2 or not shutil.which("taskset"):
        return Pins(target=[], upstream=[], load=[], told="not pinned")
    first, second, third = cores[0], cores[1], cores[min(2, len(cores) - 1)]

    def pin(core: int) -> list[str]:
        return ["taskset", "-c", str(core)]

    told = f"target on core {first}, upstream on core {second}, load on core {third}"
    return Pins(target=pin(first), upstream=pin(second), load=pin(third), told=told)


def stay_off_the_target() -> None:
    """Keeps this script, and what it starts unpinned, off the target's core. Ask for `pins` before."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[1:])


def tool(name: str) -> str | None:
    """The path of `wrk`, `nginx`, `gcc` or `npm`; as root, installs its Debian package first when it is absent."""
    found = _which(name)
    if not found and os.geteuid() == 0 and shutil.which("apt-get"):
        packages = _PACKAGES[name]
        print(f"{name} is not installed: running apt-get install {' '.join(packages)}")
        install = ["apt-get", "install", "-qy", "--no-install-recommends", *packages]
        subprocess.run(["apt-get", "update", "-q"], check=False, stdout=subprocess.DEVNULL)
        subprocess.run(install, check=False, stdout=subprocess.DEVNULL)
        found = _which(name)
    return found


def how_to_get(name: str) -> str:
    """What to do about a missing tool, for the reader of a message."""
    return f"{name} is not installed: run `apt-get install {' '.join(_PACKAGES[name])}`"


def free_port() -> int:
    """A loopback TCP port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def described() -> dict[str, str]:
    """CPU model, cores, memory, kernel, system and Python of this machine."""
    return {
        "CPU": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{int((_field('/proc/meminfo', 'MemTotal') or '0 kB').split()[0]) / 1024 / 1024:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "system": (_field("/etc/os-release", "PRETTY_NAME", "=") or "").strip('"'),
        "Python of Drivetrain": platform.python_version(),
    }


def first_line(*command: str) -> str:
    """The first line a command prints, on either stream; empty when it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return ""
    return next((line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()), "")


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def _field(file: str, name: str, separator: str = ":") -> str | None:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    return next((line.split(separator, 1)[1].strip() for line in lines if line.startswith(name)), None)
