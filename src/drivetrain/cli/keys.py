"""`drivetrain keys`: issue, list, rotate and revoke the keys that clients call with."""

from __future__ import annotations

import contextlib
import sys
import time
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.options import AnyJson, Project
from drivetrain.cli.places import LedgerPlaces, ledger_places, plain
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.keys import IssuedKey, new_key
from drivetrain.core.times import NS_PER_S, duration_us, iso, parse_iso
from drivetrain.ports.keys import IssuedKeys, KeyTerms

if TYPE_CHECKING:
    from drivetrain.adapters.sqlite_keys import SqliteKeyStore

TEXT_CHARS_MAX = 256
LIFETIME_DAYS_MAX = 36_500
"""A hundred years: later is a slip of the pen."""
OVERLAP_DAYS_MAX = 90
"""A longer overlap is not a rotation but a second key."""
DAY_NS = 86_400 * NS_PER_S

app = typer.Typer(help="The keys that clients call with.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The key's name.")]


@app.command("issue")
def issue_command(
    name: Annotated[str, typer.Argument(help="Who will call with it; costs are told by it.")],
    *,
    team: Annotated[str, typer.Option(help="Who pays; by default the workflow's team.")] = "",
    use_case: Annotated[str, typer.Option(help="What its costs are for; by default the workflow's.")] = "",
    tenant: Annotated[str, typer.Option(help="On whose behalf it calls.")] = "",
    workflows: Annotated[
        str | None, typer.Option(help="Workflows it may call, comma-separated; by default all.")
    ] = None,
    may_override: Annotated[
        str, typer.Option(help="What x-drivetrain-* headers may set: team, use_case, user, tags; comma-separated.")
    ] = "",
    expires: Annotated[str, typer.Option(help="From when: `90d`, `12h`, an ISO time, or `never`.")] = "never",
    project: Project = None,
    as_json: AnyJson = False,
) -> None:
    """Make a key and print it: once, on standard output, with nothing else."""
    try:
        places = ledger_places(project)
        terms = KeyTerms(
            name=name, tenant=tenant, team=team, use_case=use_case,
            workflows=_listed("--workflows", workflows),
            may_override=_listed("--may-override", may_override or None) or (),
            expires_ns=_moment_ns(expires, time.time_ns()),
        )  # fmt: skip
        _check(places.root, terms)
        key = _fresh()
        made = _store(places).issue(terms, key, _actor())
    except DrivetrainError as error:
        fail(error)
    _print_key(key, made, as_json)


@app.command("rotate")
def rotate_command(
    name: Name,
    *,
    overlap: Annotated[str, typer.Option(help="How long the old secret is accepted still: `1h`, `7d`, `0s`.")] = "1h",
    expires: Annotated[
        str | None, typer.Option(help="As for `issue`; by default the new one lives as long as the old one was to.")
    ] = None,
    project: Project = None,
    as_json: AnyJson = False,
) -> None:
    """Make a new secret for a key and print it as `issue` does; the old one ends with the overlap."""
    try:
        places = ledger_places(project)
        now_ns = time.time_ns()
        before = _of(places, _issued(places), name)[-1]
        expires_ns = _moment_ns(expires, now_ns) if expires is not None else _same_lifetime(before, now_ns)
        key = _fresh()
        made = _store(places).rotate(name, key, _actor(), overlap_ns=_overlap_ns(overlap), expires_ns=expires_ns)
    except DrivetrainError as error:
        fail(error)
    _print_key(key, made, as_json)
    if not as_json:
        typer.echo(f"The secret before it is accepted for {overlap} more.", err=True)


@app.command("revoke")
def revoke_command(
    name: Name,
    *,
    now: Annotated[bool, typer.Option("--now", help="Do not ask.")] = False,
    project: Project = None,
    as_json: AnyJson = False,
) -> None:
    """End a key and all its secrets, in every gateway worker within a second. It cannot be undone."""
    try:
        places = ledger_places(project)
        _of(places, _issued(places), name)
        if not now:
            _ask(name)
        ended = _store(places).revoke(name, _actor())
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({"name": name, "revoked": [one.generation for one in ended]})
    elif ended:
        typer.echo(f"The key `{name}` is revoked.", err=True)
    else:
        typer.echo(f"The key `{name}` had been revoked before.", err=True)


@app.command("list")
def list_command(project: Project = None, as_json: AnyJson = False) -> None:
    """List the issued keys, those that ended too; with --json one object per line."""
    try:
        issued = _issued(ledger_places(project))
    except DrivetrainError as error:
        fail(error)
    now_ns = time.time_ns()
    if as_json:
        for key in issued.keys:
            print_json(key_json(key, now_ns))
    elif issued.keys:
        _print_table(issued.keys, now_ns)
    else:
        typer.echo("No key was issued. `drivetrain keys issue NAME` makes one.", err=True)
    _warn(issued)


@app.command("show")
def show_command(name: Name, project: Project = None, as_json: AnyJson = False) -> None:
    """Show one key: what it may do, and each of its secrets by the last four characters."""
    try:
        places = ledger_places(project)
        issued = _issued(places)
        found = _of(places, issued, name)
    except DrivetrainError as error:
        fail(error)
    now_ns = time.time_ns()
    if as_json:
        print_json({"name": name, "generations": [key_json(one, now_ns) for one in found]})
    else:
        _print_one(found[-1])
        _print_table(found, now_ns)
    _warn(issued)


def key_json(key: IssuedKey, now_ns: int) -> dict[str, Any]:
    """An issued key as JSON has it: no secret, no digest; times as ISO, null where there is none."""
    return {
        "name": key.name,
        "generation": key.generation,
        "state": key.state(now_ns),
        "last4": key.last4,
        "tenant": key.tenant,
        "team": key.team,
        "use_case": key.use_case,
        "workflows": key.workflows,
        "may_override": key.may_override,
        "created": iso(key.created_ns),
        "created_by": key.created_by,
        "expires": _iso(key.expires_ns),
        "revoked": _iso(key.revoked_ns),
        "replaced_by": key.replaced_by,
    }


# What was asked for.


def _check(root: Path, terms: KeyTerms) -> None:
    """Whether the project knows what is named. Raises: DrivetrainError."""
    from drivetrain.project.caller_settings import OVERRIDES
    from drivetrain.project.load import load
    from drivetrain.project.names import NAME, NAME_HELP

    if not NAME.fullmatch(terms.name):
        raise DrivetrainError(f"`{plain(terms.name)}` is no name for a key.", do=NAME_HELP)
    if terms.name in _declared(root):
        raise DrivetrainError(
            f"The key `{terms.name}` is declared in drivetrain.toml.",
            looked=[str(root / "drivetrain.toml")],
            do="Choose another name, or remove the declaration first.",
        )
    for option, text in (("--team", terms.team), ("--use-case", terms.use_case), ("--tenant", terms.tenant)):
        if len(text) > TEXT_CHARS_MAX or not text.isprintable() or text != text.strip():
            raise DrivetrainError(
                f"{option} is no name: `{plain(text[:80])}`.",
                do=f"Write up to {TEXT_CHARS_MAX} printable characters, without white space around them.",
            )
    for one in terms.may_override:
        if one not in OVERRIDES:
            raise DrivetrainError(f"`{plain(one)}` cannot be overridden.", do=did_you_mean(one, OVERRIDES))
    snapshot = load(root)
    if terms.team and snapshot.teams and terms.team not in snapshot.teams:
        raise DrivetrainError(
            f"This project has no team `{plain(terms.team)}`.", do=did_you_mean(terms.team, snapshot.teams)
        )
    for one in terms.workflows or ():
        if one not in snapshot.workflows:
            raise DrivetrainError(
                f"This project has no workflow `{plain(one)}`.",
                looked=[str(root)],
                do=did_you_mean(one, snapshot.workflows),
            )


def _listed(option: str, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(dict.fromkeys(one.strip() for one in text.split(",") if one.strip()))
    if not names:
        raise DrivetrainError(f"{option} names nothing.", do="Write names with commas between them, or leave it out.")
    return names


def _declared(root: Path) -> set[str]:
    """Names of keys that drivetrain.toml declares, in any environment."""
    document = tomllib.loads((root / "drivetrain.toml").read_text(encoding="utf-8"))
    environments = document.get("env")
    tables = [document, *(environments.values() if isinstance(environments, dict) else ())]
    declared = [table.get("keys") for table in tables if isinstance(table, dict)]
    return {name for keys in declared if isinstance(keys, dict) for name in keys}


def _moment_ns(text: str, now_ns: int) -> int | None:
    """When a key expires; None: never. Raises: DrivetrainError."""
    if text == "never":
        return None
    moment = None
    with contextlib.suppress(ValueError):
        moment = now_ns + duration_us(text) * 1_000
    try:
        moment = parse_iso(text) if moment is None else moment
    except ValueError:
        raise DrivetrainError(
            f"`{plain(text)}` is no time to expire.",
            do=f"Write how long from now (`90d`, `12h`), an ISO time ({iso(now_ns + 90 * DAY_NS)[:10]}), or `never`.",
        ) from None
    if not now_ns < moment <= now_ns + LIFETIME_DAYS_MAX * DAY_NS:
        when = "over" if moment <= now_ns else f"more than {LIFETIME_DAYS_MAX} days away"
        raise DrivetrainError(f"`{plain(text)}` is {when}.", do="Name a time to come, such as `90d`, or `never`.")
    return moment


def _overlap_ns(text: str) -> int:
    try:
        overlap_ns = duration_us(text) * 1_000
    except ValueError:
        raise DrivetrainError(f"`{plain(text)}` is no duration.", do="Write for example `1h`, `7d` or `0s`.") from None
    if overlap_ns > OVERLAP_DAYS_MAX * DAY_NS:
        raise DrivetrainError(
            f"`{text}` is longer than {OVERLAP_DAYS_MAX} days.", do="Issue a second key, and revoke this one later."
        )
    return overlap_ns


def _same_lifetime(before: IssuedKey, now_ns: int) -> int | None:
    return None if before.expires_ns is None else now_ns + before.expires_ns - before.created_ns


def _ask(name: str) -> None:
    if not sys.stdin.isatty():
        raise DrivetrainError(
            f"Nobody can be asked whether to revoke `{name}`.", do=f"Run `drivetrain keys revoke {name} --now`."
        )
    typer.confirm(f"Revoke `{name}` for ever?", abort=True, err=True)


# The store.


def _store(places: LedgerPlaces) -> SqliteKeyStore:
    from drivetrain.adapters.sqlite import open_control_log
    from drivetrain.adapters.sqlite_keys import SqliteKeyStore

    return SqliteKeyStore(
        places.data_folder / "keys.db",
        places.keys_folder,
        lambda: open_control_log(places.data_folder, places.keys_folder),
    )


def _issued(places: LedgerPlaces) -> IssuedKeys:
    from drivetrain.adapters.sqlite_keys import SqliteKeySource

    return SqliteKeySource(places.data_folder / "keys.db", places.keys_folder).read()


def _of(places: LedgerPlaces, issued: IssuedKeys, name: str) -> tuple[IssuedKey, ...]:
    """Every generation of a key. Raises: DrivetrainError with the nearest name."""
    found = tuple(one for one in issued.keys if one.name == name)
    if found:
        return found
    declared = _declared(places.root)
    if name in declared:
        raise DrivetrainError(
            f"The key `{name}` is declared in drivetrain.toml; this command is for issued ones.",
            looked=[str(places.root / "drivetrain.toml")],
            do="Change it there, and send SIGHUP to `drivetrain serve`.",
        )
    known = {one.name for one in issued.keys}
    raise DrivetrainError(
        f"No key `{plain(name)}` was issued.",
        looked=[str(places.data_folder / "keys.db")],
        do=did_you_mean(name, known) if known else "`drivetrain keys issue NAME` makes one.",
    )


def _fresh() -> str:
    import secrets

    return new_key(secrets.token_bytes)


def _actor() -> str:
    from drivetrain.embedded.applying import person

    return person()


# What is printed.


def _print_key(key: str, made: IssuedKey, as_json: bool) -> None:
    if as_json:
        print_json({"key": key, **key_json(made, made.created_ns)})
        return
    typer.echo(key)
    until = f"expires on {iso(made.expires_ns)}" if made.expires_ns is not None else "never expires"
    typer.echo(f"The key `{made.name}` {until}. It is shown this once and kept nowhere: store it now.", err=True)


def _print_table(keys: Iterable[IssuedKey], now_ns: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("key", "gen", "ends in", "state", "team", "workflows", "created", "expires"):
        table.add_column(title, no_wrap=True)
    for key in keys:
        cells = (
            key.name,
            str(key.generation),
            key.last4,
            key.state(now_ns),
            key.team or "-",
            "all" if key.workflows is None else ",".join(key.workflows),
            iso(key.created_ns)[:19] + "Z",
            "never" if key.expires_ns is None else iso(key.expires_ns)[:19] + "Z",
        )
        table.add_row(*(Text(plain(cell)) for cell in cells))
    (Console() if sys.stdout.isatty() else Console(width=240)).print(table)


def _print_one(key: IssuedKey) -> None:
    facts = {
        "key": key.name,
        "for": ", ".join(f"{name} {value}" for name in ("tenant", "team", "use_case") if (value := getattr(key, name)))
        or "the workflow's team and use case",
        "calls": "all workflows" if key.workflows is None else ", ".join(key.workflows),
        "overrides": ", ".join(key.may_override) or "-",
        "made by": key.created_by or "-",
    }
    for name, value in facts.items():
        typer.echo(f"{name:10} {plain(value)}")


def _warn(issued: IssuedKeys) -> None:
    for problem in issued.problems:
        typer.echo(f"warning: {plain(problem)}", err=True)


def _iso(ns: int | None) -> str | None:
    return None if ns is None else iso(ns)
