"""`drivetrain budget`: how limits stand, changing them while everything runs, and the burn-down of a budget.

Changes are records of the control log and nothing else: `limits/changes.py` says what they mean, and every worker
follows the log. Totals come from the counter store, and the burn-down's from the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from drivetrain.cli.budget_words import amount_text, moment_text, per_text, units
from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.options import AnyJson, Env, Project
from drivetrain.cli.places import plain
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.limits import Limit
from drivetrain.core.money import NANO_PER_USD, nano_usd, usd

if TYPE_CHECKING:
    from drivetrain.limits.accounts import Account
    from drivetrain.limits.changes import Change
    from drivetrain.ports.counters import CounterStore
    from drivetrain.project.snapshot import Snapshot

ACCOUNTS_SHOWN = 10
"""Of a limit for each user, team or tag, those that spent the most; the others are one row."""
ACCOUNTS_MAX = 100_000
"""With --all; about 100 MB of JSON."""
CHANGES_SHOWN = 20
USD_MAX = 10**9
"""As in drivetrain.toml."""
UNITS_MAX = 10**12
REASON_CHARS_MAX = 500
OPTION_OF = {"nano_usd": "--usd", "requests": "--requests", "tokens": "--tokens", "calls": "--concurrent"}

app = typer.Typer(help="Budgets and limits.", invoke_without_command=True, no_args_is_help=False)

Name = Annotated[str, typer.Argument(help="The limit's name; `drivetrain budget` lists them.")]
All = Annotated[bool, typer.Option("--all", help="Every user, team or tag, not just those that spent the most.")]
Reason = Annotated[str, typer.Option(help="Why; it stands in the control log.")]
For = Annotated[str | None, typer.Option("--for", help="Whose, of a limit for each user, team or tag.")]


@app.callback()
def budget_command(
    context: typer.Context,
    *,
    project: Project = None,
    env: Env = None,
    everything: All = False,
    as_json: AnyJson = False,
) -> None:
    """Show how every budget and limit stands in its present period."""
    if context.invoked_subcommand is not None:
        return
    from drivetrain.cli.budget_show import print_standings, standings_json

    try:
        desk = _Desk(project, env)
        found = desk.standings(None, ACCOUNTS_MAX if everything else ACCOUNTS_SHOWN)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({"limits": [standings_json(one, desk.declared[one.limit.name]) for one in found]})
    elif found:
        print_standings(found, desk.declared)
    else:
        typer.echo("This project has no budgets or limits. Declare one in drivetrain.toml: [limits.NAME].", err=True)


@app.command("show")
def show_command(
    name: Name,
    *,
    project: Project = None,
    env: Env = None,
    everything: All = False,
    as_json: AnyJson = False,
) -> None:
    """Show one budget or limit, and who changed it."""
    from drivetrain.cli.budget_show import change_json, print_changes, print_standings, standings_json

    try:
        desk = _Desk(project, env)
        limit = desk.limit(name)
        (found,) = desk.standings(limit, ACCOUNTS_MAX if everything else ACCOUNTS_SHOWN)
        changes = desk.changes(name)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        body = standings_json(found, desk.declared[name])
        print_json({**body, "changes": [change_json(change) for change in changes]})
        return
    print_standings((found,), desk.declared)
    print_changes(changes[-CHANGES_SHOWN:], limit, left_out=max(0, len(changes) - CHANGES_SHOWN))


@app.command("set")
def set_command(
    name: Name,
    *,
    dollars: Annotated[str | None, typer.Option("--usd", help="The cap of a budget, per period.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, max=UNITS_MAX, help="Of a rate, per its window.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, max=UNITS_MAX, help="Of a rate, per its window.")] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, max=10**6, help="Calls at a time.")] = None,
    reason: Reason = "",
    project: Project = None,
    env: Env = None,
    as_json: AnyJson = False,
) -> None:
    """Change an amount from now on, in every worker within a second, until the project declares another one."""
    from drivetrain.limits.changes import SET, SetBody

    try:
        given = {"nano_usd": dollars, "requests": requests, "tokens": tokens, "calls": concurrent}
        desk = _Desk(project, env)
        limit = desk.limit(name)
        amount = _amount(limit, given)
        declared = desk.declared[name].amount
        body = SetBody(unit=limit.unit, amount=amount, declared=declared, reason=_reason(reason))
        desk.record(SET, name, body)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({"name": name, **units(limit, "amount", amount), **units(limit, "declared", declared)})
        return
    now = amount_text(limit, amount)
    typer.echo(f"`{name}` is {now}{per_text(limit)} now, instead of the declared {amount_text(limit, declared)}.")


@app.command("top-up")
def top_up_command(
    name: Name,
    *,
    dollars: Annotated[str, typer.Option("--usd", help="By how much the cap of the present period is raised.")],
    whose: For = None,
    reason: Reason = "",
    project: Project = None,
    env: Env = None,
    as_json: AnyJson = False,
) -> None:
    """Raise the cap of the present period only, in every worker within a second."""
    from drivetrain.limits.changes import TOP_UP, TopUpBody

    try:
        desk = _Desk(project, env)
        limit = desk.limit(name)
        amount = _usd(dollars)
        if amount == 0:
            raise DrivetrainError("A top-up of 0 USD changes nothing.", do="Write for example `--usd 20`.")
        account = desk.account(limit, whose)
        cap = account.terms.cap + amount
        desk.check_top_up(account, cap)
        body = TopUpBody(account=account.terms.account, amount=amount, ends_ns=account.ends_ns, reason=_reason(reason))
        desk.record(TOP_UP, name, body)
        used = desk.has_used(account)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({
            "name": name, "account": account.terms.account, **units(limit, "added", amount), **units(limit, "cap", cap),
        })  # fmt: skip
        return
    until = moment_text(account.ends_ns, limit.zone)
    typer.echo(f"`{name}` of {plain(account.whose)} has a cap of {usd(cap)} USD until {until}.")
    if not used and whose is not None:
        typer.echo(f"Nobody has spent anything for `{plain(whose)}` in this period yet.", err=True)


@app.command("reset")
def reset_command(
    name: Name,
    *,
    whose: For = None,
    reason: Reason = "",
    project: Project = None,
    env: Env = None,
    as_json: AnyJson = False,
) -> None:
    """Give the declared amount back, and end top-ups of the present period; with --for only that one's top-up."""
    from drivetrain.limits.changes import RESET, ResetBody

    try:
        desk = _Desk(project, env)
        limit = desk.limit(name)
        account = desk.account(limit, whose).terms.account if whose is not None else ""
        desk.record(RESET, name, ResetBody(account=account, reason=_reason(reason)))
    except DrivetrainError as error:
        fail(error)
    declared = desk.declared[name]
    if as_json:
        print_json({"name": name, "account": account, **units(declared, "declared", declared.amount)})
    elif account:
        typer.echo(f"`{name}` of `{plain(whose or '')}` is not topped up any more.")
    else:
        typer.echo(f"`{name}` is as declared: {amount_text(declared, declared.amount)}{per_text(declared)}.")


@app.command("burn")
def burn_command(
    name: Name,
    *,
    whose: For = None,
    project: Project = None,
    env: Env = None,
    as_json: AnyJson = False,
) -> None:
    """Draw the burn-down of a budget's present period, from the ledger."""
    from drivetrain.cli.budget_burn import burn_json, burned, print_burn
    from drivetrain.embedded.asking import lake_for

    try:
        desk = _Desk(project, env)
        limit = desk.limit(name)
        account = desk.account(limit, whose)
        found = burned(account, lake_for(desk.snapshot), desk.state(account), desk.now_ns)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json(burn_json(found))
    else:
        print_burn(found)
    for problem in found.problems:
        typer.echo(f"warning: {problem}", err=True)


class _Desk:
    """A project's limits, its control log and its counter store. Raises: DrivetrainError."""

    def __init__(self, project: Path | None, environment: str | None) -> None:
        from drivetrain.limits.changes import amended, changes_of, fold
        from drivetrain.project.files import find_root
        from drivetrain.project.load import load

        self.now_ns = time.time_ns()
        self.snapshot: Snapshot = load(find_root(project or Path.cwd()), environment)
        self.declared: Mapping[str, Limit] = self.snapshot.limits
        self._changes = changes_of(self._records())
        self._limits = amended(self.declared, fold(self._changes))

    def limit(self, name: str) -> Limit:
        """As it is enforced now."""
        found = self._limits.get(name)
        if found is None:
            raise DrivetrainError(
                f"This project has no limit `{plain(name)}`.",
                looked=[str(self.snapshot.root / "drivetrain.toml"), "the workflows' budgets"],
                do=did_you_mean(name, self._limits) if self._limits else "Declare it: [limits.NAME].",
            )
        return found

    def account(self, limit: Limit, whose: str | None) -> Account:
        """The account of the present period of a budget."""
        from drivetrain.limits.accounts import account_of

        if limit.kind != "budget":
            raise DrivetrainError(
                f"`{limit.name}` is a limit on {limit.unit}: it has no period.",
                do=f"Change it with `drivetrain budget set {limit.name} {OPTION_OF[limit.unit]} ...`.",
            )
        is_each = limit.value is None
        if is_each and whose is None:
            raise DrivetrainError(
                f"`{limit.name}` is a budget of each {limit.tag or limit.dimension}.",
                do="Say whose with `--for NAME`.",
            )
        if not is_each and whose not in (None, limit.value):
            raise DrivetrainError(f"`{limit.name}` is not a budget of each one.", do="Leave out `--for`.")
        return account_of(limit, (whose if is_each else limit.value) or "", self.now_ns)

    def standings(self, limit: Limit | None, at_most: int) -> tuple[Any, ...]:
        """How one limit stands, or all."""
        from drivetrain.limits.standing import standings
        from drivetrain.ports.counters import StoreUnavailable

        store = self._store()
        try:
            wanted = self._limits.values() if limit is None else (limit,)
            return standings(wanted, store, self.now_ns, at_most=at_most)
        except StoreUnavailable as error:
            raise _unavailable(error) from error
        finally:
            if store is not None:
                store.close()

    def state(self, account: Account) -> Any:
        """How one account stands."""
        from drivetrain.limits.standing import account_standing
        from drivetrain.ports.counters import StoreUnavailable

        store = self._store()
        try:
            found = store.account(account.terms.account) if store is not None else None
        except StoreUnavailable as error:
            raise _unavailable(error) from error
        finally:
            if store is not None:
                store.close()
        return account_standing(account.limit, account.value, found, self.now_ns)

    def has_used(self, account: Account) -> bool:
        """Whether anything was spent or held."""
        standing = self.state(account)
        return bool(standing.settled or standing.held)

    def check_top_up(self, account: Account, cap: int) -> None:
        """Whether one more is possible."""
        from drivetrain.limits.changes import RAISED_MAX

        if cap > USD_MAX * NANO_PER_USD:
            raise DrivetrainError(f"{usd(cap)} USD is more than a budget may have ({USD_MAX:,} USD).")
        suffix = "@" + account.terms.account.rpartition("@")[2]
        raised = [name for name, _ in account.limit.raised if name.endswith(suffix)]
        if len(raised) >= RAISED_MAX and account.terms.account not in raised:
            raise DrivetrainError(
                f"`{account.limit.name}` is topped up for {RAISED_MAX} of its values, and may be for no more.",
                do=f"Raise it for all with `drivetrain budget set {account.limit.name} --usd ...`.",
            )

    def changes(self, name: str) -> list[Change]:
        """What the control log has of one limit, in order."""
        return [change for change in self._changes if change.record.subject == name]

    def record(self, kind: str, name: str, body: msgspec.Struct) -> None:
        """Append it to the control log: from then on it holds."""
        from drivetrain.adapters.sqlite import open_control_log
        from drivetrain.embedded.applying import person

        log = open_control_log(self.snapshot.data_folder, self.snapshot.keys_folder)
        log.append(kind=kind, actor=person(), subject=name, body=msgspec.to_builtins(body))

    def _records(self) -> list[Any]:
        from drivetrain.adapters.sqlite_control_feed import open_control_feed
        from drivetrain.limits.changes import CHANGE_KINDS

        return open_control_feed(self.snapshot.data_folder).read(CHANGE_KINDS)

    def _store(self) -> CounterStore | None:
        """The counter store; None where nothing was ever spent."""
        from drivetrain.adapters.sqlite_counters import SqliteCounters
        from drivetrain.embedded.limiting import limits_folder
        from drivetrain.ports.counters import StoreUnavailable

        folder = limits_folder(self.snapshot.data_folder)
        if not (folder / "counters.db").exists():
            return None
        try:
            return SqliteCounters(folder)
        except StoreUnavailable as error:
            raise _unavailable(error) from error


def _amount(limit: Limit, given: Mapping[str, str | int | None]) -> int:
    """What is to be set. Raises: DrivetrainError where it is not in the limit's unit."""
    written = [unit for unit, value in given.items() if value is not None]
    if written != [limit.unit]:
        raise DrivetrainError(
            f"`{limit.name}` is limited in {'USD' if limit.unit == 'nano_usd' else limit.unit}.",
            do=f"Write `{OPTION_OF[limit.unit]} AMOUNT`, and no other amount.",
        )
    value = given[limit.unit]
    return _usd(value) if isinstance(value, str) else int(value or 0)


def _usd(text: str) -> int:
    try:
        return nano_usd(text)
    except ValueError as error:
        raise DrivetrainError(f"{plain(str(error))}.", do="Write for example `--usd 20` or `--usd 0.25`.") from None


def _reason(text: str) -> str:
    if len(text) > REASON_CHARS_MAX:
        raise DrivetrainError(f"The reason has {len(text)} characters; at most {REASON_CHARS_MAX} are kept.")
    return text


def _unavailable(error: Exception) -> DrivetrainError:
    return DrivetrainError(f"What was spent cannot be read: {error}.", do="Try again; see whether the disk is full.")
