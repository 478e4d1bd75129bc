"""`drivetrain forget`: make what a person said unreadable at once, and leave every total as it is.

It touches nothing but keys; `drivetrain erase` takes everything else that is known of a person as well.
"""

from __future__ import annotations

from typing import Annotated

import typer

from drivetrain.cli.options import Project


def forget_command(
    user: Annotated[str, typer.Argument(help="The user, as x-drivetrain-user named them; else the key's name.")],
    project: Project = None,
) -> None:
    """Destroy the keys of a person's prompts and answers. It cannot be undone. `erase` removes the rest as well."""
    from drivetrain.adapters.files import FileVault
    from drivetrain.adapters.sqlite import open_control_log
    from drivetrain.cli.places import ledger_places
    from drivetrain.embedded.applying import person

    places = ledger_places(project)
    vault = FileVault(places.keys_folder, payload_days=places.payload_days)
    keys = vault.forget(user)
    if not keys:
        typer.echo(f"no payload of `{user}` is kept; is it spelled as `drivetrain calls show` has it?", err=True)
        raise typer.Exit(1)
    # The log says that somebody was forgotten, not who: it is kept for ever.
    open_control_log(places.data_folder, places.keys_folder).append(
        kind="forget", actor=person(), subject=vault.digest(user.encode()).hex()[:16], body={"keys": keys}
    )
    typer.echo(f"{keys} keys destroyed; the payloads sealed with them cannot be read any more")
    typer.echo("who it was, Outcomes, Datasets and features stay: `drivetrain erase --subject` removes them", err=True)
