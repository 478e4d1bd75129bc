"""The simulator itself: a seed is one story, told the same by every process, and a broken law is noticed and named."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivetrain.cache.answers import AnswerCache
from drivetrain.core.calls import ReservedV1
from drivetrain.execution.call import Execution
from drivetrain.limits.book import Book
from drivetrain.limits.slices import Hold

from .disk import Journal
from .profiles import CACHE, CRASHES, MACHINE, MONEY, PROFILES
from .world import Broken, Profile, play

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SEEDS = 150
"""Within which each broken pipeline must be found out."""


def run(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", PROFILES)
def test_a_seed_is_the_same_story_in_every_process(name: str) -> None:
    here = play(PROFILES[name], 7).kernel
    again = run(name, "7", hash_seed="12345")
    assert again.returncode == 0, again.stdout[-2_000:]
    assert f"trace {here.trace_hash()}" in again.stdout
    assert len(again.stdout.splitlines()) > len(here.trace) > 20
    assert play(PROFILES[name], 8).kernel.trace_hash() != here.trace_hash()


def _leaky_key(patch: pytest.MonkeyPatch) -> None:
    key = AnswerCache.key
    patch.setattr(AnswerCache, "key", staticmethod(lambda _tenant, variant, body: key("", variant, body)))


def _frees_at_settle(patch: pytest.MonkeyPatch) -> None:
    settle = Book.settle

    def frees(book: Book, hold: Hold, cost_nano_usd: int, tokens: int = 0) -> int:
        overrun = settle(book, hold, cost_nano_usd, tokens)
        for one in hold.accounts.money:
            one.free += hold.kept - hold.charged
        hold.kept = hold.charged
        return overrun

    patch.setattr(Book, "settle", frees)


def _sends_before_the_frame(patch: pytest.MonkeyPatch) -> None:
    append = Journal.append

    def early(journal: Journal, record: Any, then: Callable[[bool], None] | None = None, *, sync: bool = False) -> None:
        append(journal, record, None if isinstance(record, ReservedV1) else then, sync=sync)
        if isinstance(record, ReservedV1) and then is not None:
            then(True)

    patch.setattr(Journal, "append", early)


def _forgets_what_stands(patch: pytest.MonkeyPatch) -> None:
    finish = Execution._finish_unrecorded

    def cheap(call: Execution) -> None:
        call._stands = False
        finish(call)

    patch.setattr(Execution, "_finish_unrecorded", cheap)


def _never_gives_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Execution, "_sent", property(lambda _call: 0, lambda _call, _value: None))


@pytest.mark.parametrize(
    ("profile", "breaks", "law"),
    [
        (CACHE, _leaky_key, "an answer crossed tenants"),
        (MONEY, _frees_at_settle, "overspent"),
        (CRASHES, _sends_before_the_frame, "an attempt without a reservation of its own"),
        (MACHINE, _forgets_what_stands, "in the ledger"),
        (MONEY, _never_gives_up, "more attempts than a Call may make"),
    ],
)
def test_a_pipeline_that_breaks_a_law_is_found_out(
    profile: Profile, breaks: Callable[[pytest.MonkeyPatch], None], law: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch)
    with pytest.raises(Broken) as found:  # noqa: PT012  which seed it is does not matter
        for seed in range(SEEDS):
            play(profile, seed)
    message = str(found.value)
    assert law in message.splitlines()[0]
    assert f"python -m tests.simulation {profile.name} {seed}" in message
    assert "sent call_" in message or "start" in message
