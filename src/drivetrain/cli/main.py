"""`drivetrain`: the commands, each in a file of its own, imported when it is used."""

from __future__ import annotations

import importlib
import sys
from typing import Any

COMMANDS = {
    "demo": ("drivetrain.cli.demo", "demo_command"),
    "init": ("drivetrain.cli.init", "init_command"),
    "check": ("drivetrain.cli.check", "check_command"),
    "serve": ("drivetrain.cli.serve", "serve_command"),
    "run": ("drivetrain.cli.run", "run_command"),
    "simulator": ("drivetrain.cli.simulator", "simulator_command"),
    "calls": ("drivetrain.cli.calls", "app"),
    "cost": ("drivetrain.cli.cost", "cost_command"),
    "replay": ("drivetrain.cli.replay", "replay_command"),
    "audit": ("drivetrain.cli.audit", "app"),
    "erase": ("drivetrain.cli.erase", "erase_command"),
    "forget": ("drivetrain.cli.forget", "forget_command"),
    "keys": ("drivetrain.cli.keys", "app"),
    "backup": ("drivetrain.cli.backup", "backup_command"),
    "restore": ("drivetrain.cli.backup", "restore_command"),
    "migrate": ("drivetrain.cli.backup", "migrate_command"),
    "budget": ("drivetrain.cli.budget", "app"),
    "sql": ("drivetrain.cli.sql", "sql_command"),
    "lake": ("drivetrain.cli.lake", "app"),
    "dataset": ("drivetrain.cli.dataset", "app"),
    "features": ("drivetrain.cli.features", "app"),
    "outcomes": ("drivetrain.cli.outcomes", "app"),
    "lineage": ("drivetrain.cli.lineage", "lineage_command"),
    "freshness": ("drivetrain.cli.freshness", "freshness_command"),
    "train": ("drivetrain.cli.train", "train_command"),
    "models": ("drivetrain.cli.models", "app"),
    "report": ("drivetrain.cli.reports", "app"),
    "policy": ("drivetrain.cli.policy", "app"),
    "eval": ("drivetrain.cli.eval", "app"),
    "explain": ("drivetrain.cli.explain", "explain_command"),
    "upgrade": ("drivetrain.cli.upgrade", "upgrade_command"),
    "probe": ("drivetrain.cli.probe", "probe_command"),
    "dossier": ("drivetrain.cli.dossier", "dossier_command"),
    "plan": ("drivetrain.cli.propose", "plan_command"),
    "propose": ("drivetrain.cli.propose", "propose_command"),
    "approve": ("drivetrain.cli.approve", "approve_command"),
    "withdraw": ("drivetrain.cli.approve", "withdraw_command"),
    "promote": ("drivetrain.cli.promote", "promote_command"),
    "rollback": ("drivetrain.cli.promote", "rollback_command"),
    "live": ("drivetrain.cli.live", "live_command"),
    "history": ("drivetrain.cli.live", "history_command"),
    "rollout": ("drivetrain.cli.rollout", "app"),
}
"""Name -> where the command, or the group of commands, is."""


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; errors for the person who must act end with exit code 1 and no traceback."""
    from drivetrain.core.errors import DrivetrainError

    given = sys.argv[1:] if arguments is None else arguments
    try:
        application(given)(given, prog_name="drivetrain")
    except DrivetrainError as error:
        print(f"drivetrain: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(141)


def application(given: list[str]) -> Any:
    """The command line with the command that is asked for, or with all where help is."""
    import typer

    from drivetrain.cli.help_sections import SectionedCommand

    app = typer.Typer(
        name="drivetrain",
        help="Everything that turns a model's power into motion.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # its markup would swallow `[gateway]`
    )

    @app.callback(invoke_without_command=True)
    def about(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
        if version:
            from drivetrain.version import VERSION

            typer.echo(f"drivetrain {VERSION}")
            raise typer.Exit

    wanted = given[0] if given and given[0] in COMMANDS else None
    for name, (module, attribute) in COMMANDS.items():
        if wanted is None or name == wanted:
            found = getattr(importlib.import_module(module), attribute)
            if isinstance(found, typer.Typer):
                app.add_typer(found, name=name)
            else:
                app.command(name, cls=SectionedCommand)(found)
    return app


if __name__ == "__main__":
    main()
