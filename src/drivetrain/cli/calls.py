"""`drivetrain calls`: the Calls of a project, listed, followed, or one as a waterfall of its Attempts."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from drivetrain.cli.ending import fail
from drivetrain.cli.options import Json, Moment, Project, Until
from drivetrain.cli.places import LedgerPlaces, ledger_places, moment_ns, plain
from drivetrain.cli.tables import Column, print_table
from drivetrain.core.calls import RETAINED_FULL, RETAINED_HASH, Answers, AttemptV1, Call
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.features import FeatureRecordV1, FeaturesSeenV1
from drivetrain.core.money import usd
from drivetrain.core.policies import DecisionRecordV1, DecisionV1
from drivetrain.core.times import iso

if TYPE_CHECKING:
    from rich.console import Console

    from drivetrain.lake.calls import Wanted

TAIL_S = 0.5
"""Between two looks of `--tail`."""
BAR_CELLS = 32
"""Width of the waterfall."""
HELD_BACK = "not sent"
"""Instead of a verdict: no provider was asked."""
STATUSES = ("answered", "failed", "refused", "aborted", "running", "interrupted")

app = typer.Typer(help="The Calls of a project.", invoke_without_command=True, no_args_is_help=False)


@app.callback()
def calls_command(
    context: typer.Context,
    *,
    project: Project = None,
    workflow: Annotated[str | None, typer.Option(help="Only this workflow's.")] = None,
    team: Annotated[str | None, typer.Option(help="Only this team's.")] = None,
    status: Annotated[str | None, typer.Option(help=f"Only these: {', '.join(STATUSES)}.")] = None,
    variant: Annotated[str | None, typer.Option(help="Only those with an attempt of this variant.")] = None,
    since: Moment = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most this many, the newest.")] = 50,
    tail: Annotated[bool, typer.Option("--tail", help="Then follow: each Call as it ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """List Calls, newest first; with --tail oldest first, and go on."""
    if context.invoked_subcommand is not None:
        return
    from drivetrain.lake.calls import Wanted

    try:
        places = ledger_places(project)
        if status is not None and status not in STATUSES:
            raise DrivetrainError(f"`{status}` is no status of a Call.", do=did_you_mean(status, STATUSES))
        wanted = Wanted(
            since_ns=moment_ns(since) if since else 0,
            until_ns=moment_ns(until) if until else None,
            workflow=workflow,
            team=team,
            status=status,
            variant=variant,
        )
        if tail:
            _follow(places, wanted, limit, as_json)
        else:
            _list(places, wanted, limit, as_json)
    except DrivetrainError as error:
        fail(error)


@app.command("show")
def show_command(
    call_id: Annotated[str, typer.Argument(help="The Call's id, as answers carry it.")],
    project: Project = None,
    payload: Annotated[bool, typer.Option("--payload", help="Decrypt the request and the answers too.")] = False,
    as_json: Json = False,
) -> None:
    """Show one Call: each Attempt with its offsets, verdict, reason, tokens and cost, and the Outcomes."""
    from drivetrain.cli.lake_place import lake_of
    from drivetrain.lake.calls import Calls

    try:
        places = ledger_places(project)
        call = Calls(lake_of(places)).call(call_id)
        if call is None:
            raise DrivetrainError(
                f"There is no Call `{plain(call_id)}`.",
                looked=[str(places.data_folder / "calls")],
                do="`drivetrain calls` lists the newest.",
            )
        payloads = _payloads(places, call) if payload else {}
    except (DrivetrainError, ValueError) as error:
        fail(error)
    if as_json:
        typer.echo(msgspec.json.encode({**call_json(call), **payloads}).decode())
    else:
        _print_call(call, payloads)


def call_json(call: Call) -> dict[str, Any]:
    """A Call as JSON has it: money as integer nano-USD and as a decimal string, times as ISO too, no payload."""
    return {
        "call_id": call.call_id,
        "opened_ns": call.opened_ns,
        "opened": iso(call.opened_ns),
        "closed_ns": call.closed_ns,
        "workflow": call.workflow,
        "door": call.door,
        "stream": call.stream,
        "status": call.status,
        "http_status": call.http_status,
        "variant": call.variant,
        "error": call.error,
        "finish_reason": call.finish_reason,
        "degraded": call.degraded,
        "notes": list(call.notes),
        "snapshot": call.snapshot,
        "prices_date": call.prices_date,
        "attribution": {name: getattr(call.attribution, name) for name in call.attribution.__struct_fields__},
        "cost_nano_usd": call.cost_nano_usd,
        "cost_usd": usd(call.cost_nano_usd),
        "charged_as_reserved": _is_charged_as_reserved(call),
        "saved_nano_usd": sum(attempt.saved_nano_usd for attempt in call.attempts),
        "attempts": [_attempt_json(attempt) for attempt in call.attempts],
        "outcomes": msgspec.to_builtins(call.outcomes),
        "business_key": call.business_key,
        "features": _features_json(call),
        "decision": _decision_json(call.decision),
    }


def _features_json(call: Call) -> dict[str, Any] | None:
    """Which features it saw; None where its workflow names none. The values are among the payloads."""
    seen = call.features
    if seen is None:
        return None
    return {
        "service": seen.service,
        "fingerprint": seen.fingerprint,
        "as_of_ns": seen.as_of_ns,
        "stale": list(seen.stale),
        "missing": list(seen.missing),
    }


def _decision_json(decision: DecisionV1 | None) -> dict[str, Any] | None:
    """What the policy did; None where there was none. What it was made from is among the payloads."""
    if decision is None:
        return None
    return {name: getattr(decision, name) for name in decision.__struct_fields__ if name != "sealed"}


def _attempt_json(attempt: AttemptV1) -> dict[str, Any]:
    fields = {name: getattr(attempt, name) for name in attempt.__struct_fields__}
    usage = attempt.usage
    fields["usage"] = {name: getattr(usage, name) for name in usage.__struct_fields__}
    fields["cost_usd"] = usd(attempt.cost_nano_usd)
    fields["sent"] = _was_sent(attempt)
    return fields


def _was_sent(attempt: AttemptV1) -> bool:
    """Whether a provider was asked: no rule, no cached answer, and not held back by a budget, the circuit and so on."""
    from drivetrain.execution.verdicts import UNSENT

    if not attempt.model or attempt.cached or attempt.failure in UNSENT:
        return False
    return bool(attempt.status or attempt.failure) or attempt.verdict != "failed"


def _is_charged_as_reserved(call: Call) -> bool:
    """Whether nobody saw its end, so that it costs what was reserved for it: the most it can have cost."""
    return call.status == "interrupted" and call.cost_nano_usd > 0


def _list(places: LedgerPlaces, wanted: Wanted, limit: int, as_json: bool) -> None:
    from drivetrain.cli.lake_place import lake_of
    from drivetrain.lake.calls import Calls

    calls = Calls(lake_of(places))
    newest = list(calls.calls(wanted, newest=limit, outcomes=as_json, payloads=False))
    if as_json:
        for call in newest:
            typer.echo(msgspec.json.encode(call_json(call)).decode())
    elif not newest:
        typer.echo(f"No Call here. Looked in: {places.data_folder / 'calls'} and the lake.")
    else:
        _print_list(newest)
    for problem in calls.problems:
        if problem.kind != "torn":
            typer.echo(f"warning: {problem}", err=True)


def _follow(places: LedgerPlaces, wanted: Wanted, limit: int, as_json: bool) -> None:
    from drivetrain.cli.lake_place import lake_of
    from drivetrain.lake.calls import Calls
    from drivetrain.ledger.reader import LedgerReader

    reader = LedgerReader(places.data_folder)
    for _ in reader.new():
        pass  # what ended before now is listed from the lake, which has what was rolled too
    listed = list(Calls(lake_of(places)).calls(wanted, newest=limit, outcomes=False, payloads=False))
    batch: Iterable[Call] = [call for call in reversed(listed) if call.status != "running"]
    between = {call.call_id for call in batch}
    """Some of these may have ended after the reader looked, and come again."""
    try:
        while True:
            for call in batch:
                typer.echo(msgspec.json.encode(call_json(call)).decode() if as_json else _line(call))
            sys.stdout.flush()
            time.sleep(TAIL_S)
            batch = (call for call in reader.new() if wanted.matches(call) and call.call_id not in between)
    except KeyboardInterrupt:
        return


def _line(call: Call) -> str:
    who = plain(call.attribution.team or "-")
    return (
        f"{iso(call.opened_ns)}  {call.call_id}  {plain(call.workflow or '-')}  {who}  {call.status}  "
        f"{plain(call.variant or '-')}  {len(call.attempts)} attempts  {_duration(call)}  {usd(call.cost_nano_usd)} USD"
    )


def _duration(call: Call) -> str:
    return f"{(call.closed_ns - call.opened_ns) / 1e6:.1f} ms" if call.closed_ns else "-"


def _console() -> Console:
    from rich.console import Console

    # A pipe gets whole lines: what reads it should not meet our wrapping.
    return Console() if sys.stdout.isatty() else Console(width=240)


def _print_list(found: list[Call]) -> None:
    columns = [
        Column("opened", drop=3),
        Column("call"),
        Column("workflow"),
        Column("door", drop=8),
        Column("team", drop=6),
        Column("status"),
        Column("variant", drop=4),
        Column("attempts", right=True, drop=7),
        Column("ms", right=True, drop=5),
        Column("USD", right=True),
    ]
    rows = []
    for call in found:
        cells = (
            iso(call.opened_ns),
            call.call_id,
            call.workflow or "-",
            call.door,
            call.attribution.team or "-",
            call.status,
            call.variant or "-",
            str(len(call.attempts)),
            _duration(call).removesuffix(" ms"),
            "unknown" if call.status == "interrupted" and not call.cost_nano_usd else usd(call.cost_nano_usd),
        )
        rows.append([plain(cell) for cell in cells])
    print_table(columns, rows)


def _print_call(call: Call, payloads: dict[str, Any]) -> None:
    from rich.text import Text

    console = _console()
    who = call.attribution
    facts = {
        "call": call.call_id,
        "opened": iso(call.opened_ns),
        "workflow": f"{call.workflow or '-'} through {call.door or '-'}{', streamed' if call.stream else ''}",
        "status": f"{call.status} {call.http_status or ''} {call.error} {call.finish_reason}".strip(),
        "took": _duration(call),
        "cost": _cost(call),
        "for": ", ".join(
            f"{name} {value}" for name in ("tenant", "team", "use_case", "key", "user") if (value := getattr(who, name))
        )
        or "-",
        "tags": ", ".join(who.tags) or "-",
        "snapshot": f"{call.snapshot or '-'}, prices of {call.prices_date or '-'}",
        "payload": {RETAINED_HASH: "kept as a hash", RETAINED_FULL: "kept, encrypted"}.get(call.retained, "not kept"),
    }
    if call.business_key:
        facts["key"] = call.business_key
    if call.features is not None:
        facts["features"] = _features_said(call.features)
    if call.decision is not None:
        facts["decision"] = _decision_said(call.decision)
    if call.degraded:
        facts["degraded"] = f"{call.degraded}: no variant answered, so the workflow's ladder did"
    for name, value in (*facts.items(), *(("note", note) for note in call.notes)):
        console.print(Text(f"{name:9} {plain(value)}"))
    if call.attempts:
        columns = [
            Column("variant"),
            Column("model", drop=6),
            Column("purpose", drop=5),
            Column("verdict"),
            Column("timeline", drop=7),
            *(Column(name, right=True, drop=rank) for name, rank in (("sent ms", 8), ("first ms", 3), ("ended ms", 0))),
            *(Column(name, right=True, drop=rank) for name, rank in (("in", 2), ("cached", 9), ("out", 1), ("USD", 0))),
        ]
        end_us = max(max(one.ended_us, one.sent_us) for one in call.attempts)
        rows = []
        for one in call.attempts:
            verdict = _verdict(one)
            cells = (
                one.variant,
                one.model or "rule",
                one.purpose,
                verdict,
                _bar(one, end_us) if verdict != HELD_BACK else "",
                f"{one.sent_us / 1000:.1f}" if verdict != HELD_BACK else "-",
                f"{one.first_byte_us / 1000:.1f}" if one.first_byte_us else "-",
                f"{one.ended_us / 1000:.1f}" if one.ended_us else "-",
                str(one.usage.input_tokens),
                str(one.usage.input_cached_tokens),
                str(one.usage.output_tokens),
                usd(one.cost_nano_usd),
            )
            rows.append([plain(cell) for cell in cells])
        console.print()
        print_table(columns, rows)
        for one in call.attempts:
            if one.cached:
                console.print(Text(f"{plain(one.variant)}: from the cache, which saved {usd(one.saved_nano_usd)} USD"))
            if one.reason:
                console.print(Text(f"{plain(one.variant)}: {plain(one.reason)}"))
    for outcome in call.outcomes:
        value = plain(str(outcome.value))
        console.print(Text(f"outcome   {plain(outcome.metric)} = {value} from {plain(outcome.source)}"))
    for name, content in payloads.items():
        console.print()
        console.print(Text(name, style="bold"))
        typer.echo(plain(_pretty(content)))


def _features_said(seen: FeaturesSeenV1) -> str:
    """What was seen, how old it was, and what was not there."""
    said = f"{seen.service}, as of {iso(seen.as_of_ns)}" if seen.as_of_ns else f"{seen.service}, never materialized"
    for what, names in (("stale", seen.stale), ("missing", seen.missing)):
        if names:
            said += f"; {what}: {', '.join(names)}"
    return said


def _decision_said(decision: DecisionV1) -> str:
    """The action, why, and by which policy."""
    said = decision.action
    if decision.reason:
        said += f" because {decision.reason}"
    said += f"; policy {decision.policy} {decision.version}"
    if decision.rule:
        said += f", rule {decision.rule}"
    if decision.explored:
        said += f"; explored instead of {decision.chosen}"
    if decision.propensity != 1:
        said += f"; propensity {decision.propensity:.4g}"
    if decision.confidence is not None:
        said += f"; confidence {decision.confidence:.4g}"
    if decision.failed:
        said += f"; the policy failed: {decision.failed}"
    return said


def _cost(call: Call) -> str:
    if call.status != "interrupted":
        return f"{usd(call.cost_nano_usd)} USD"
    ended = "the process ended before the end was recorded"
    if not _is_charged_as_reserved(call):
        return f"unknown: {ended}"
    return f"{usd(call.cost_nano_usd)} USD, the most it can have cost: it was reserved, and {ended}"


def _verdict(attempt: AttemptV1) -> str:
    if attempt.cached:
        return f"{attempt.verdict}, cached"
    return HELD_BACK if attempt.model and not _was_sent(attempt) else attempt.verdict


def _bar(attempt: AttemptV1, end_us: int) -> str:
    """Blank until it was sent, light until its first byte, full until its end."""
    if end_us <= 0:
        return "|"
    sent = attempt.sent_us * BAR_CELLS // end_us
    ended = max(sent + 1, (attempt.ended_us or end_us) * BAR_CELLS // end_us)
    first = attempt.first_byte_us * BAR_CELLS // end_us if attempt.first_byte_us else ended
    first = min(max(first, sent), ended)
    return " " * sent + "░" * (first - sent) + "█" * (ended - first)


def _payloads(places: LedgerPlaces, call: Call) -> dict[str, Any]:
    """The request and the answers, opened. Raises: DrivetrainError where none is kept, ValueError where altered."""
    from drivetrain.adapters.files import FileVault

    vault = FileVault(places.keys_folder, payload_days=places.payload_days)
    gone = "not readable any more: its subject was forgotten, or its time is over"
    kept: dict[str, Any] = {}
    """Under keys of their own, whatever the workflow keeps of requests."""
    for name, kind, sealed_record, type_ in (
        ("seen", "features", call.features.sealed if call.features is not None else b"", FeatureRecordV1),
        ("decided", "decision", call.decision.sealed if call.decision is not None else b"", DecisionRecordV1),
    ):
        if sealed_record:
            record = vault.open(call.call_id, kind, sealed_record)
            kept[name] = gone if record is None else msgspec.to_builtins(msgspec.msgpack.decode(record, type=type_))
    if call.retained == RETAINED_HASH:
        return {**kept, "request": f"blake2b {call.request.hex()}", "answers": f"blake2b {call.answers.hex()}"}
    if call.retained != RETAINED_FULL and kept:
        return kept
    if call.retained != RETAINED_FULL:
        raise DrivetrainError(
            f"Call {call.call_id} kept no payload.",
            do='A workflow keeps them with `retention="full"`, or all do with `[ledger] retention`.',
        )
    request = vault.open(call.call_id, "request", call.request) if call.request else b""
    sealed = vault.open(call.call_id, "answers", call.answers) if call.answers else b""
    opened: dict[str, Any] = {**kept, "request": gone if request is None else _content(request)}
    if sealed is None:
        opened["answers"] = gone
    elif sealed:
        answers = msgspec.msgpack.decode(sealed, type=Answers)
        opened["answers"] = [_content(body) for body in answers.attempts]
        if answers.answer is not None:
            opened["answer"] = _content(answers.answer)
    return opened


def _content(body: bytes) -> Any:
    """JSON as values, anything else as text."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return body.decode("utf-8", "replace")


def _pretty(content: Any) -> str:
    return content if isinstance(content, str) else msgspec.json.format(msgspec.json.encode(content), indent=2).decode()
