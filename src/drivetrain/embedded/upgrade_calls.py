"""The logged Calls of a workflow, opened: what was asked, what was answered, and what that is held against.

What is right is said by Outcomes of the Call, else by an eval of the workflow whose Dataset has the same input, else
by a judge that an eval declares, else by nothing better than what was answered. Called by `upgrading.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import msgspec

from drivetrain.adapters.files import FileVault
from drivetrain.core import scorers
from drivetrain.core.calls import DOORS_ASIDE, RETAINED_FULL, Call
from drivetrain.core.codec import MalformedJson, parse_json
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.evals import Eval, Scorer
from drivetrain.core.scorers import scorers_of
from drivetrain.datasets.payloads import answer_text, input_text
from drivetrain.datasets.staging import CELL_BYTES_MAX
from drivetrain.embedded.asking import lake_for
from drivetrain.embedded.training import datasets_in
from drivetrain.evals.cases import Given, cases_of
from drivetrain.evals.reading import READINGS, reading
from drivetrain.evals.scoring import compiled
from drivetrain.evals.upgrading.candidate import variants_of
from drivetrain.evals.upgrading.logged import Seen, Taken, Truths, group_of, side_of, slice_of
from drivetrain.evals.upgrading.marking import Marker, marker, plausible_readings, scorer_of
from drivetrain.evals.upgrading.pairs import Marked, Pair, Side
from drivetrain.execution.replay import open_payloads
from drivetrain.lake.calls import Calls
from drivetrain.lake.calls import Wanted as WantedCalls
from drivetrain.project.snapshot import Snapshot

WINDOW = 5_000
"""The newest Calls that a sample is drawn from: enough for 500 rows of ten slices, opened in seconds."""
CALL_BYTES_MAX = CELL_BYTES_MAX
"""Of a prompt, and of an answer: what a Dataset's cell holds. Calls with more are left out, and counted."""
STORED_BYTES_MAX = 2 * CALL_BYTES_MAX
"""As it is kept, around its text, in JSON that may escape it: more is not even read."""
OPENED_BYTES_MAX = 256 * 1024 * 1024
"""Of all prompts and answers that are in memory; of older Calls beyond it none is opened."""
TRUTHS_MIN = 50
"""Where so many Calls have a truth, only such are replayed: agreement with what was answered says much less."""


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """One Call that can be replayed."""

    call: Call
    """Without its payloads."""
    seen: Seen
    raw: bytes
    """The input as JSON, as the workflow takes it."""
    question: str
    before: Side
    expected: Any
    truth: str

    def pair(self, taken: Taken) -> Pair:
        """The pair, its other answer still to come."""
        return Pair(
            id=self.seen.call_id, group=group_of(self.call), slice=taken.slice, weight=taken.weight,
            expected=self.expected, truth=self.truth, before=self.before, after=Side(),
        )  # fmt: skip


class LoggedCalls:
    """A workflow's Calls."""

    def __init__(
        self, snapshot: Snapshot, workflow: str, vault: FileVault, *, slice_by: str, expected: Sequence[str],
        reading: str,
    ) -> None:  # fmt: skip
        """Raises: DrivetrainError for a workflow, field or reading that does not exist."""
        declared = snapshot.workflows.get(workflow)
        if declared is None:
            raise DrivetrainError(
                f"There is no workflow `{workflow[:80]}`. {did_you_mean(workflow, snapshot.workflows)}".rstrip()
            )
        if reading and reading not in READINGS:
            raise DrivetrainError(
                f"`{reading[:80]}` is no way to read an answer. {did_you_mean(reading, READINGS)}".rstrip(),
                do=f"There are {', '.join(READINGS)}.",
            )
        self.workflow = declared
        self._snapshot, self._vault, self._slice, self._reading = snapshot, vault, slice_by, reading
        self.read_as = reading or "as_is"
        """How texts are read where an Outcome says what is right: as a person says, else the first plausible way."""
        output = declared.output
        self._fields = tuple(one.encode_name for one in msgspec.structs.fields(output)) if output is not None else ()
        self._compared = _compared_fields(output) if output is not None else ()
        self._truths = Truths(expected, self._fields)
        self._calls = Calls(lake_for(snapshot))
        self._declared = [one for one in snapshot.evals.values() if one.workflow == workflow]
        self.evals = tuple(str(one.name) for one in self._declared)
        self.too_large = 0
        """Calls that were left out for the size of their prompt or answer."""
        self._right: dict[bytes, Any] | None = None
        judges = [one for declared in self._declared for one in scorers_of(declared) if one.kind == "judge"]
        self.judge = judges[0] if judges else None
        """Of the workflow's evals: it is asked where nothing else says what is right."""

    def newest(self, since_ns: int, now_ns: int, variant: str) -> tuple[list[Opened], str]:
        """The newest Calls that a variant had a part in, and the variant. Raises: DrivetrainError where there is none
        that can be replayed."""
        wanted = WantedCalls(since_ns=since_ns, until_ns=now_ns, workflow=self.workflow.name, status="answered")
        live = [
            one for one in self._calls.calls(wanted, newest=WINDOW, outcomes=False, payloads=False)
            if one.door not in DOORS_ASIDE and not one.degraded
        ]  # fmt: skip
        if not live:
            raise DrivetrainError(
                f"Workflow `{self.workflow.name}` has no answered Call in that time.",
                do="Name an earlier time by `--since`, or give recorded outcomes by `--recorded FILE`.",
            )
        models = {one.name: one.model for one in variants_of(self.workflow)}
        parts = Counter(name for one in live for name in {part.variant for part in one.attempts} if name in models)
        chosen = variant or (parts.most_common(1)[0][0] if parts else next(iter(models)))
        ours = [
            one for one in live
            if any(attempt.variant == chosen and attempt.model == models[chosen] for attempt in one.attempts)
        ]  # fmt: skip
        if not ours:
            raise DrivetrainError(
                f"Variant `{chosen}` with `{models[chosen]}` had no part in the {len(live):,} newest Calls.",
                do=f"Name another one by `--variant`: {', '.join(f'`{one}`' for one in parts) or 'none had a part'}.",
            )
        kept = {one.call_id for one in ours if one.retained == RETAINED_FULL}
        opened = list(self._opened(wanted, kept))
        if not opened:
            large = f" ({self.too_large:,} are larger than {CALL_BYTES_MAX:,} bytes)" if self.too_large else ""
            raise DrivetrainError(
                f"Of {len(ours):,} Calls no prompt and answer can be opened{large}, so none can be replayed.",
                do=f'Set `retention="full"` (or "sampled") for workflow `{self.workflow.name}`; it holds for later '
                "Calls. Meanwhile give recorded outcomes by `--recorded FILE`.",
            )
        if not self._reading:
            plausible = plausible_readings(one.expected for one in opened if one.truth == "outcome")
            self.read_as = plausible[0] if plausible else "as_is"
        return opened, chosen

    def _opened(self, wanted: WantedCalls, kept: Collection[str]) -> Iterator[Opened]:
        """Those of `kept` that can be opened, newest first; one in memory besides those that were."""
        held = self.too_large = 0
        for call in self._calls.calls(wanted, newest=WINDOW, payload_bytes_max=STORED_BYTES_MAX):
            if held > OPENED_BYTES_MAX:
                return
            if call.call_id not in kept:
                continue
            if not (call.request and call.answers):  # one of them was not even read
                self.too_large += 1
                continue
            found = self._open(call)
            if found is None:
                continue
            sizes = len(found.raw), len((found.before.text or "").encode())
            if max(sizes) > CALL_BYTES_MAX:
                self.too_large += 1
            else:
                held += sum(sizes)
                yield found

    def some(self, call_ids: Sequence[str]) -> Iterator[Opened]:
        """Calls by their ids, as far as they can still be opened."""
        for call_id in call_ids:
            call = self._calls.call(call_id)
            found = self._open(call) if call is not None else None
            if found is not None:
                yield found

    def worth_asking(self, found: Sequence[Opened]) -> list[Opened]:
        """Those with a truth of their own, where there are enough; else all."""
        known = [one for one in found if one.truth in ("outcome", "expected")]
        return known if len(known) >= TRUTHS_MIN else list(found)

    def truths(self, found: Sequence[Opened]) -> dict[str, int]:
        """What Calls are held against -> how many."""
        return dict(Counter(one.truth for one in found))

    @contextlib.contextmanager
    def marking(self) -> Iterator[Marker]:
        """What marks pairs, each by the scorer that fits its truth. Enter it before threads are started."""
        declared = self._eval_scorer() or scorers.exact()
        known: dict[tuple[str, ...], Marker] = {}
        with contextlib.ExitStack() as held:
            by_eval = marker(held.enter_context(compiled(declared, self._fields, output=self.workflow.output)))

            def mark(pair: Pair) -> Marked:
                if pair.truth == "expected":
                    return by_eval(pair)
                fields = tuple(pair.expected) if isinstance(pair.expected, dict) else ()
                key = (pair.truth, *fields)
                if key not in known:
                    known[key] = marker(held.enter_context(compiled(self._scorer(pair, fields), self._fields)))
                return known[key](pair)

            yield mark

    def scored_by(self, marked: Sequence[Marked]) -> str:
        """How pairs were marked, in words."""
        declared = self._eval_scorer()
        truths = {one.pair.truth for one in marked}
        said = []
        if "expected" in truths and declared is not None:
            said.append(f"`{declared.name}` of eval `{self._declared[0].name}`")
        fields = sorted({name for one in marked if isinstance(one.pair.expected, dict) for name in one.pair.expected})
        if self._fields and fields:
            said.append(f"the output's {', '.join(fields)}")
        elif not self._fields and truths - {"agreement"}:
            said.append(f"the text, read as {self.read_as}: {reading(self.read_as).description}")
        if "judge" in truths and self.judge is not None:
            said.append(f"the judge `{self.judge.name}`")
        if "agreement" in truths and not self._fields:
            said.append("likeness of the texts where only agreement is known (Dice, by three characters)")
        return "; ".join(said)

    def _open(self, call: Call) -> Opened | None:
        try:
            recorded = open_payloads(call, self._vault)
            raw = self._input(recorded.request)
        except (DrivetrainError, MalformedJson):
            return None
        text = answer_text(recorded.answers)
        value = _plain(raw)
        before = side_of(call, text, typed=self.workflow.output is not None)
        expected, truth = self._truths.of(call), "outcome"
        if expected is None:
            expected, truth = self._from_evals(raw), "expected"
        if expected is None and self.judge is not None:
            truth = "judge"
        elif expected is None:
            expected, truth = self._agreed(before), "agreement"
        return Opened(
            call=msgspec.structs.replace(call, request=b"", answers=b"", features=None), raw=raw, before=before,
            seen=Seen(
                call_id=call.call_id, slice=slice_of(call, self._slice, value),
                asked=hashlib.blake2b(self._canonical(raw), digest_size=16).digest(),
            ),
            question=value if isinstance(value, str) else input_text(recorded.request), expected=expected, truth=truth,
        )  # fmt: skip

    def _input(self, request: bytes) -> bytes:
        """The request as an input that the workflow takes. Raises: DrivetrainError where it is none."""
        body = parse_json(request)
        if not isinstance(body, dict) or "messages" not in body:
            return request
        if self.workflow.input is None:
            kept = {name: value for name, value in body.items() if name not in ("stream", "stream_options", "model")}
            return msgspec.json.encode(kept)
        text = input_text(request)
        if self.workflow.chat_input == "json":
            return text.encode()
        if self.workflow.chat_input == "last_user_message":
            names = [one.encode_name for one in msgspec.structs.fields(self.workflow.input)]
            return msgspec.json.encode({self.workflow.chat_field or names[0]: text})
        raise DrivetrainError("A whole conversation is no input of this workflow.")

    def _from_evals(self, raw: bytes) -> Any:
        if self._right is None:
            self._right = {}
            for declared in self._declared:
                with contextlib.suppress(DrivetrainError):  # an eval that cannot be run is told by `drivetrain check`
                    self._right |= self._rows_of(declared)
        return self._right.get(self._canonical(raw))

    def _rows_of(self, declared: Eval) -> dict[bytes, Any]:
        datasets = datasets_in(self._snapshot)
        dataset = datasets.show(declared.dataset)
        given = Given(dataset, datasets.rows(f"{dataset.name}@{dataset.number}"))
        cases = cases_of(declared, self.workflow, [given])
        return {self._canonical(one.raw): one.expected for one in cases if one.expected is not None}

    def _canonical(self, raw: bytes) -> bytes:
        """The same bytes for the same input, however it was written."""
        try:
            if self.workflow.input is not None:
                value: Any = msgspec.json.decode(raw, type=self.workflow.input)
            else:
                value = parse_json(raw)
                if isinstance(value, dict) and len(value.get("messages") or ()) <= 1:
                    value = value.get("text") or input_text(raw)
        except (msgspec.MsgspecError, MalformedJson):
            return raw
        return msgspec.json.encode(value, order="deterministic")

    def _agreed(self, before: Side) -> Any:
        """What was answered, as what is right: of typed answers the fields that can agree."""
        if not self._fields:
            return before.text
        value = before.value if isinstance(before.value, dict) else {}
        return {name: value[name] for name in self._compared if name in value}

    def _scorer(self, pair: Pair, fields: tuple[str, ...]) -> Scorer:
        if not self._fields:
            return scorers.similarity() if pair.truth == "agreement" else scorer_of(self.read_as)
        return scorers.exact(fields[0]) if len(fields) == 1 else scorers.json_fields(fields or self._compared)

    def _eval_scorer(self) -> Scorer | None:
        """The first scorer of the workflow's first eval that is no judge."""
        known = [one for declared in self._declared for one in scorers_of(declared) if one.kind != "judge"]
        return known[0] if known else None


def _compared_fields(output: type[Any]) -> tuple[str, ...]:
    """Fields whose values can be the same twice: no numbers with a fraction."""
    fields = msgspec.structs.fields(output)
    exact = tuple(one.encode_name for one in fields if "float" not in str(one.type))
    return exact or tuple(one.encode_name for one in fields)


def _plain(raw: bytes) -> Any:
    try:
        return parse_json(raw)
    except MalformedJson:
        return None
