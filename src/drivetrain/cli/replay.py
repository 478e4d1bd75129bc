"""`drivetrain replay`: recorded Calls through the code that was live, or through the present one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from drivetrain.cli.options import Json, Project


def replay_command(
    call_ids: Annotated[list[str] | None, typer.Argument(help="Calls to replay; without any, the latest.")] = None,
    project: Project = None,
    last: Annotated[int, typer.Option(min=1, help="How many of the latest Calls, where none is named.")] = 100,
    current: Annotated[bool, typer.Option("--current", help="Use the present project, not the live one.")] = False,
    as_json: Json = False,
) -> None:
    """Replay recorded Calls offline: same route, cost and answer? Exit code 1 where one differs."""
    import msgspec

    from drivetrain.adapters.files import FileVault
    from drivetrain.core.errors import DrivetrainError
    from drivetrain.embedded.asking import lake_for
    from drivetrain.execution.plan import Plans, compile_plans
    from drivetrain.execution.replay import open_payloads, replay
    from drivetrain.lake.calls import Calls
    from drivetrain.project.files import find_root
    from drivetrain.project.load import load
    from drivetrain.project.stored import load_stored

    root = (project or find_root(Path.cwd())).resolve()
    present = load(root)
    vault = FileVault(present.keys_folder, payload_days=present.ledger.payload_days)
    recorded = Calls(lake_for(present))
    stored: dict[str, Plans] = {}

    def plans_of(short_hash: str) -> Plans:
        wanted = present.short_hash if current else short_hash
        if wanted not in stored:
            snapshot = present if wanted == present.short_hash else load_stored(present.snapshots_folder, wanted, root)
            stored[wanted] = compile_plans(snapshot, lambda _reference: "replay-needs-no-secret")
        return stored[wanted]

    if call_ids:
        calls = []
        for call_id in call_ids:
            found = recorded.call(call_id)
            if found is None:
                raise DrivetrainError(f"The ledger has no Call {call_id}.", looked=[str(present.data_folder)])
            calls.append(found)
    else:
        calls = list(recorded.calls(newest=last))[::-1]
    same, skipped = 0, 0
    different: list[dict[str, object]] = []
    for call in calls:
        try:
            outcome = replay(open_payloads(call, vault), plans_of(call.snapshot))
        except DrivetrainError as error:
            if call_ids:
                raise
            skipped += 1
            last_skipped = str(error)
            continue
        if outcome.differences:
            different.append({"call_id": call.call_id, "differences": list(outcome.differences)})
        else:
            same += 1
    if as_json:
        typer.echo(msgspec.json.encode({"same": same, "different": different, "skipped": skipped}).decode())
    else:
        for one in different:
            typer.echo(f"{one['call_id']}: {'; '.join(map(str, one['differences']))}")  # type: ignore[call-overload]
        typer.echo(f"{same} the same, {len(different)} different, {skipped} not replayed")
        if skipped:
            typer.echo(f"not replayed, for example: {last_skipped}")
    if different:
        raise typer.Exit(1)
