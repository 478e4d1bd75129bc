"""Which scenarios the suites draw."""

from __future__ import annotations

from .world import Profile

ALL = (
    "plain", "fallback", "stubborn", "alone", "machine", "triage", "checked", "audited", "private", "hurried", "once",
    "ladder", "urgent",
)  # fmt: skip

MONEY = Profile(
    name="money", caps=(1, 2, 5, 12), failing=(0.0, 0.2, 0.5),
    workflows=("plain", "fallback", "stubborn", "alone", "machine", "triage", "checked", "audited"),
)  # fmt: skip
CRASHES = Profile(name="crashes", workflows=ALL, crashes=0.95, failing=(0.05, 0.3), caps=(2, 8, 40))
FAULTS = Profile(name="faults", workflows=ALL, failing=(0.4, 0.8), outage=0.6, leaves=0.3, caps=(40, 400), limited=0.6)
MACHINE = Profile(
    name="machine", workflows=ALL, disk=0.5, store=0.5, jumps=0.4, reloads=0.5, crashes=0.2, caps=(3, 10, 40)
)
CACHE = Profile(
    name="cache", workflows=("once", "ladder", "urgent"), same=0.95, texts=2, plain=0.95, hurried=0.1,
    failing=(0.0, 0.3), outage=0.7, workers=(1, 2), calls=(12, 30), caps=(10, 40), reloads=0.2, crashes=0.1,
)  # fmt: skip
PROFILES = {one.name: one for one in (MONEY, CRASHES, FAULTS, MACHINE, CACHE)}
