"""Small models in the gateway worker's own process: rows of one tick are one batch, and a tick stays short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Pinned, Row, Scored
from drivetrain.inference.answering import ROW_BYTES_MAX
from drivetrain.inference.local import WAITING_MAX, LocalModels
from drivetrain.ports.inference import ModelRequest
from support.trained import Echo, Sink, asked, on_a_loop, pinned


class Loop:
    """Ticks and a clock by hand."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.soon: list[Callable[[], Any]] = []
        self.slow: list[str] = []

    def call_soon(self, one: Callable[[], Any]) -> None:
        self.soon.append(one)

    def tick(self) -> None:
        soon, self.soon = self.soon, []
        for one in soon:
            one()

    def models(self, *scorers: Any) -> LocalModels:
        known = {scorer.pinned.digest: scorer for scorer in scorers}

        def load(model: Pinned) -> Any:
            if model.digest not in known:
                raise DrivetrainError(f"Model {model.id} is gone.")
            return known[model.digest]

        return LocalModels(load, self.call_soon, lambda: self.now_ns, lambda name, _: self.slow.append(name))


class Timed(Echo):
    """Takes its time by the loop's clock."""

    def __init__(self, loop: Loop, each_us: int, model: Pinned | None = None) -> None:
        super().__init__(model or pinned())
        self._loop = loop
        self._each_us = each_us

    def score(self, rows: Any) -> list[Scored]:
        self._loop.now_ns += len(rows) * self._each_us * 1000
        return super().score(rows)


@pytest.fixture
def loop() -> Loop:
    return Loop()


def sent(models: LocalModels, *requests: ModelRequest) -> list[Sink]:
    sinks = [Sink() for _ in requests]
    for request, sink in zip(requests, sinks, strict=True):
        models.send(request, sink)
        assert sink.endings == 0
    return sinks


@on_a_loop
async def test_rows_of_one_tick_are_one_batch_per_model_and_each_gets_its_own_answer(loop: Loop) -> None:
    one, other = Echo(pinned("one")), Echo(pinned("other"))
    models = loop.models(one, other)
    sinks = sent(models, *(asked(f"t{number}", pinned(("one", "other")[number % 2])) for number in range(20)))
    loop.tick()
    assert [sink.label for sink in sinks] == [f"t{number}" for number in range(20)]
    assert [sink.status for sink in sinks] == [200] * 20
    assert (one.batches, other.batches) == ([10], [10])
    assert models.counts()["one/1"].rows == 10
    assert loop.soon == []


@on_a_loop
async def test_a_faulty_row_is_422_in_openais_shape_and_its_batch_mates_stand(loop: Loop) -> None:
    good, bad = sent(loop.models(Echo(pinned())), asked("fine"), asked("fault"))
    loop.tick()
    assert good.label == "fine"
    assert bad.status == 422
    assert msgspec.json.decode(bad.body)["error"] == {
        "message": "no such text", "type": "invalid_request_error", "param": None, "code": "row_refused",
    }  # fmt: skip


@on_a_loop
async def test_a_row_that_breaks_the_model_fails_alone_and_its_text_is_not_told(loop: Loop) -> None:
    models = loop.models(Echo(pinned()))
    sinks = sent(models, *(asked("raise" if number in (3, 17) else f"t{number}") for number in range(40)))
    loop.tick()
    assert [number for number, sink in enumerate(sinks) if sink.kind == "protocol"] == [3, 17]
    assert all(sink.status == 200 for number, sink in enumerate(sinks) if number not in (3, 17))
    assert sinks[3].failure is not None
    assert "private" not in sinks[3].failure.detail
    assert sinks[3].failure.sent


@on_a_loop
async def test_results_that_are_too_few_fail_the_batch(loop: Loop) -> None:
    class Short(Echo):
        def score(self, rows: Any) -> list[Scored]:
            return super().score(rows)[1:]

    sinks = sent(loop.models(Short(pinned())), asked("a"), asked("b"))
    loop.tick()
    assert [sink.kind for sink in sinks] == ["protocol", "protocol"]


@on_a_loop
async def test_a_row_that_is_no_list_is_a_fault(loop: Loop) -> None:
    models = loop.models(Echo(pinned()))
    sinks = sent(models, ModelRequest(pinned(), b"\xc1", 1000), ModelRequest(pinned(), b"\x01", 1000), asked("a"))
    loop.tick()
    assert [sink.status for sink in sinks] == [422, 422, 200]


@on_a_loop
async def test_a_tick_spends_at_most_its_share_and_the_rest_is_scored_in_later_ones(loop: Loop) -> None:
    scorer = Timed(loop, each_us=500)
    models = loop.models(scorer)
    sent(models, asked("first"))
    loop.tick()  # it learns what a row takes
    sinks = sent(models, *(asked(f"t{number}") for number in range(35)))
    ticks = []
    while loop.soon:
        began_ns = loop.now_ns
        loop.tick()
        ticks.append((loop.now_ns - began_ns) / 1_000_000)
    assert max(ticks) <= 5
    assert len(ticks) == 4
    assert [sink.label for sink in sinks] == [f"t{number}" for number in range(35)]


@on_a_loop
async def test_a_slow_model_is_scored_row_by_row_and_noted_and_others_have_their_turn(loop: Loop) -> None:
    slow, fast = Timed(loop, 9_000, pinned("slow")), Timed(loop, 10, pinned("fast"))
    models = loop.models(slow, fast)
    sent(models, asked("a", pinned("slow")))
    loop.tick()
    slow_sinks = sent(models, *(asked("a", pinned("slow")) for _ in range(3)))
    fast_sinks = sent(models, asked("b", pinned("fast")))
    loop.tick()
    assert [sink.endings for sink in slow_sinks] == [1, 0, 0]
    loop.tick()
    assert fast_sinks[0].label == "b"
    assert loop.slow[0] == "slow/1"


@on_a_loop
async def test_expired_and_cancelled_rows_are_not_scored(loop: Loop) -> None:
    scorer = Echo(pinned())
    models = loop.models(scorer)
    late, gone, fine = Sink(), Sink(), Sink()
    models.send(asked("late", timeout_ms=10), late)
    attempt = models.send(asked("gone"), gone)
    assert not attempt.sent
    models.send(asked("fine"), fine)
    attempt.cancel()
    loop.now_ns = 20_000_000
    loop.tick()
    assert (late.kind, gone.endings, fine.label) == ("timeout", 0, "fine")
    assert scorer.batches == [1]


@on_a_loop
async def test_too_many_and_too_large_rows_are_refused_not_kept(loop: Loop) -> None:
    models = loop.models(Echo(pinned()))
    sinks = sent(models, *[asked("t")] * WAITING_MAX)
    (over,) = sent(models, asked("t"))
    large = Sink()
    models.send(ModelRequest(pinned(), b"x" * (ROW_BYTES_MAX + 1), 1000), large)
    while loop.soon:
        loop.tick()
    assert over.kind == "overload"
    assert large.kind == "oversized"
    assert all(sink.status == 200 for sink in sinks)


@on_a_loop
async def test_a_model_that_cannot_be_loaded_fails_its_rows_and_no_others(loop: Loop) -> None:
    lost, fine = sent(loop.models(Echo(pinned())), asked("a", pinned("gone")), asked("b"))
    loop.tick()
    assert lost.failure is not None
    assert (lost.kind, lost.failure.detail) == ("worker_lost", "Model gone/1 is gone.")
    assert fine.label == "b"


@on_a_loop
async def test_a_sink_that_sends_again_while_it_hears_is_not_answered_within_that(loop: Loop) -> None:
    models = loop.models(Echo(pinned()))
    second = Sink()

    class Again(Sink):
        def on_end(self) -> None:
            super().on_end()
            models.send(asked("second"), second)
            assert second.endings == 0

    models.send(asked("first"), Again())
    while loop.soon:
        loop.tick()
    assert second.label == "second"


def test_rows_are_decoded_as_they_were_sent() -> None:
    row: Row = ["a", None, 1.5, True, ["list", {"of": 1}]]
    seen: list[Row] = []

    class Keep(Echo):
        def score(self, rows: Any) -> list[Scored]:
            seen.extend(rows)
            return [Scored(value=1.0) for _ in rows]

    loop = Loop()
    models = loop.models(Keep(pinned()))
    models.send(ModelRequest(pinned(), msgspec.msgpack.encode(row), 1000), Sink())
    loop.tick()
    assert seen == [row]
