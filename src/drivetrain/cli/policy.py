"""`drivetrain policy`: what policies a project has, what is in them, what is wrong with them, and one case through one.

Works without a gateway, on the project's files. `replay` has a file of its own.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.options import Env, Json, Project
from drivetrain.cli.places import plain
from drivetrain.cli.policy_replay import replay
from drivetrain.cli.tables import Column, print_table
from drivetrain.core.errors import DrivetrainError, did_you_mean

if TYPE_CHECKING:
    from drivetrain.core.declarations import Workflow
    from drivetrain.core.policies import Policy
    from drivetrain.policies.compile import CompiledPolicy
    from drivetrain.policies.dry_run import WhyNot
    from drivetrain.project.snapshot import Snapshot

RULES_SHOWN = 200
"""Rules in the table for people; --json has all."""

app = typer.Typer(help="What is done with answers: decision tables and functions.", no_args_is_help=True)
app.command("replay")(replay)

Name = Annotated[str, typer.Argument(help="The policy's name, or its workflow's.")]


@app.command("list")
def list_command(project: Project = None, env: Env = None, as_json: Json = False) -> None:
    """List the project's policies: workflow, table or function, version, actions, exploration."""
    try:
        with _snapshot(project, env) as snapshot:
            rows = [_facts(*one) for one in _compiled(snapshot)]
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({"policies": rows})
        return
    columns = [Column("policy"), Column("workflow"), Column("from"), Column("version"), Column("rules", right=True)]
    columns += [Column("explores", right=True, drop=1), Column("actions", drop=2)]
    print_table(columns, [
        [plain(row["policy"]), plain(row["workflow"]), plain(row["table"] or "function"), row["version"],
         "-" if row["rules"] is None else str(row["rules"]), f"{row['explore_share']:.1%}", plain(_actions(row))]
        for row in rows
    ])  # fmt: skip


@app.command("show")
def show_command(
    name: Name,
    project: Project = None,
    env: Env = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print its table as `import-csv` reads it.")] = False,
) -> None:
    """Show one policy: what it reads, its rules in order, and what happens where none matches."""
    from drivetrain.policies.spreadsheets import table_to_csv

    try:
        with _snapshot(project, env) as snapshot:
            compiled, workflow = _named(snapshot, name)
            if as_csv:
                if compiled.graphs is None:
                    raise DrivetrainError(f"The policy `{plain(compiled.name)}` is a function; CSV holds tables.")
                typer.echo(table_to_csv(compiled.graphs.files[compiled.graphs.main]), nl=False)
                return
            facts = {**_facts(compiled, workflow), "tables": _tables(compiled)}
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json(facts)
        return
    for key in ("policy", "workflow", "version"):
        typer.echo(f"{key:10} {plain(facts[key])}")
    typer.echo(f"{'from':10} {plain(facts['table'] or 'function')}")
    typer.echo(f"{'reads':10} {plain(', '.join(facts['reads'])) or 'everything' * (not facts['table']) or '-'}")
    typer.echo(f"{'actions':10} {plain(_actions(facts))}")
    typer.echo(f"{'otherwise':10} {plain(facts['otherwise'] or 'the Call fails')}")
    if facts["explore_actions"]:
        explored = f"{facts['explore_share']:.1%} of Calls: {', '.join(facts['explore_actions'])}"
        typer.echo(f"{'explores':10} {plain(explored)}")
    if facts["metrics"]:
        said = "; ".join(f"{one}: {', '.join(of) or 'a function'}" for one, of in facts["metrics"].items())
        typer.echo(f"{'metrics':10} {plain(said)}")
    if facts["gains"]:
        actions = ", ".join(facts["gains"]["actions"]) or "a function"
        typer.echo(f"{'gains':10} {plain('by the Outcome ' + facts['gains']['metric'] + ': ' + actions)}")
    for table in facts["tables"]:
        typer.echo("")
        titles = [*table["inputs"], *(f"-> {one}" for one in table["outputs"])]
        columns = [Column(plain(title)) for title in ("rule", *titles)]
        print_table(columns, [[plain(cell) or "-" for cell in row] for row in table["rules"][:RULES_SHOWN]])


@app.command("check")
def check_command(
    name: Annotated[str | None, typer.Argument(help="One policy; by default all.")] = None,
    project: Project = None,
    env: Env = None,
    as_json: Json = False,
) -> None:
    """Find rules that never match, cases that none matches, contradictions and unknown fields. Exit code 1 for any."""
    from drivetrain.core.errors import ProjectError
    from drivetrain.policies.checks import analyses, check_policy, table_notices
    from drivetrain.policies.compile import as_policy
    from drivetrain.policies.domains import shown

    notices: list[str] = []
    try:
        with _snapshot(project, env) as snapshot:
            chosen = [_one(snapshot, name)] if name is not None else _policies(snapshot)
            problems = [one for policy, workflow in chosen for one in check_policy(policy, workflow, snapshot)]
            for policy, workflow in chosen if not problems else ():
                compiled = _compile(as_policy(policy, workflow.name), snapshot)
                if compiled.graphs is not None:
                    told = table_notices(compiled.graphs, workflow, snapshot)
                    notices += [f"{policy.name}: {one}" for one in told]
                for found in analyses(compiled, workflow):
                    if found.gap is not None:
                        case = shown(found.gap) or "any case"
                        what = f"no rule of table `{found.table}` matches {case}; `otherwise` decides it"
                        notices.append(f"{policy.name}: {what}")
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({"ok": not problems, "problems": problems, "notices": notices})
    else:
        for notice in notices:
            typer.echo(f"notice: {plain(notice)}")
        count = len(chosen)
        said = str(ProjectError(problems)) if problems else f"ok: {count} polic{'y' if count == 1 else 'ies'}"
        typer.echo("\n".join(plain(line) for line in said.splitlines()))
    if problems:
        raise typer.Exit(1)


@app.command("run")
def run_command(
    name: Name,
    *,
    case: Annotated[str, typer.Option("--case", help="A JSON file with the case; `-` reads standard input.")],
    call_id: Annotated[str, typer.Option("--call-id", help="The Call whose coin is tossed; by default none.")] = "",
    project: Project = None,
    env: Env = None,
    as_json: Json = False,
) -> None:
    """Decide one case, without recording anything: the action, the rule, and why the other rules did not match."""
    from drivetrain.policies.dry_run import read_case, why_not

    try:
        with _snapshot(project, env) as snapshot:
            compiled, workflow = _named(snapshot, name)
            given = read_case(_read(case), workflow)
            chances = compiled.action_chances(given)
            verdict = compiled.decide(given, call_id) if call_id else compiled.chosen(given)
            rules = list(why_not(compiled, given))
            reads = compiled.sealed_inputs(given)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({
            "policy": compiled.name, "version": compiled.version, "verdict": verdict, "chances": chances,
            "rules": rules, "reads": reads,
        })  # fmt: skip
        return
    facts = {
        "action": verdict.action,
        "reason": verdict.reason or "-",
        "rule": verdict.rule or "-",
        "values": ", ".join(f"{key}={value}" for key, value in verdict.values.items()) or "-",
        "chances": ", ".join(f"{action} {chance:.4g}" for action, chance in chances.items()),
        "version": compiled.version,
    }
    if verdict.failed:
        facts["failed"] = verdict.failed
    if verdict.explored:
        facts["explored"] = f"yes; the policy itself chooses {verdict.chosen}"
    for key, value in facts.items():
        typer.echo(f"{key:10} {plain(str(value))}")
    if rules:
        typer.echo("")
        columns = [Column("table"), Column("rule"), Column("matches"), Column("because")]
        print_table(columns, [[plain(one.table), plain(one.rule), *_matched(one)] for one in rules[:RULES_SHOWN]])


@app.command("import-csv")
def import_csv_command(
    file: Annotated[Path, typer.Argument(help="The CSV; its first row names columns: `input.amount,-> action`.")],
    name: Annotated[str, typer.Option("--name", help="The policy's name; the table becomes policies/NAME.json.")],
    out: Annotated[Path | None, typer.Option("--out", help="Where to write instead.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Write over a table that is there.")] = False,
    project: Project = None,
) -> None:
    """Make a decision table from CSV, refused with every bad cell where it has any."""
    from drivetrain.policies.graph_reading import TABLE_BYTES_MAX, read_graph
    from drivetrain.policies.spreadsheets import table_from_csv
    from drivetrain.project.files import find_root
    from drivetrain.project.names import NAME, NAME_HELP

    try:
        if not NAME.fullmatch(name):
            raise DrivetrainError(f"`{plain(name)}` is no name for a policy.", do=NAME_HELP)
        target = out or find_root(project or Path.cwd()) / "policies" / f"{name}.json"
        if target.exists() and not replace:
            raise DrivetrainError(
                f"{target} is there already.", do="Write over it with `--replace`, or name another --out."
            )
        content = table_from_csv(_content(file, TABLE_BYTES_MAX), name)
        graph = read_graph(target.name, content)
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, content)
    except DrivetrainError as error:
        fail(error)
    rules = sum(len(node.table.rules) for node in graph.tables if node.table is not None)
    shown = f"policies/{target.name}" if out is None else str(target)
    typer.echo(plain(f"{shown}: {rules} rule{'s' if rules != 1 else ''}. Now run `drivetrain check`."))


def _matched(one: WhyNot) -> tuple[str, str]:
    if one.matches:
        return ("would", plain(f"`{one.after}` before it matches")) if one.after else ("yes", "")
    if one.matches is None:
        return "?", plain(f"{one.column}: {one.cell}")
    return "no", plain(f"{one.column} is {one.value}, not {one.cell}")


# What the project has.


@contextlib.contextmanager
def _snapshot(project: Path | None, env: str | None) -> Iterator[Snapshot]:
    from drivetrain.project import find_root, load, unload

    snapshot = load(find_root(project or Path.cwd()), env)
    try:
        yield snapshot
    finally:
        unload(snapshot)


def _policies(snapshot: Snapshot) -> list[tuple[Policy, Workflow[Any, Any]]]:
    from drivetrain.policies.compile import as_policy

    return [
        (as_policy(workflow.policy, workflow.name), workflow)
        for workflow in snapshot.workflows.values()
        if workflow.policy is not None
    ]


def _one(snapshot: Snapshot, name: str) -> tuple[Policy, Workflow[Any, Any]]:
    """By the policy's name, else by its workflow's. Raises: DrivetrainError with the nearest name."""
    found = _policies(snapshot)
    for by_workflow in (False, True):
        for policy, workflow in found:
            if (workflow.name if by_workflow else policy.name) == name:
                return policy, workflow
    if name in snapshot.workflows:
        raise DrivetrainError(
            f"Workflow `{plain(name)}` has no policy.", do='Give it one: `policy="TABLE.json"` or a dt.Policy.'
        )
    raise DrivetrainError(
        f"This project has no policy `{plain(name)}`.",
        do=did_you_mean(name, {policy.name for policy, _ in found}) if found else "Give a workflow `policy=`.",
    )


def _compile(policy: Policy, snapshot: Snapshot) -> CompiledPolicy:
    from drivetrain.policies.compile import compile_policy

    return compile_policy(policy, snapshot.files)


def _compiled(snapshot: Snapshot) -> list[tuple[CompiledPolicy, Workflow[Any, Any]]]:
    return [(_compile(policy, snapshot), workflow) for policy, workflow in _policies(snapshot)]


def _named(snapshot: Snapshot, name: str) -> tuple[CompiledPolicy, Workflow[Any, Any]]:
    policy, workflow = _one(snapshot, name)
    return _compile(policy, snapshot), workflow


def _facts(compiled: CompiledPolicy, workflow: Workflow[Any, Any]) -> dict[str, Any]:
    """What `list` and `show` say of a policy, as JSON has it."""
    from drivetrain.policies.checks import written_actions

    declared, graphs = compiled.declared, compiled.graphs
    gains = declared.gains
    rules = None
    if graphs is not None:
        tables = [node.table for graph in graphs.files.values() for node in graph.tables if node.table is not None]
        rules = sum(len(table.rules) for table in tables)
    return {
        "policy": compiled.name,
        "workflow": workflow.name,
        "version": compiled.version,
        "table": graphs.main if graphs is not None else None,
        "rules": rules,
        "reads": list(compiled.reads),
        "actions": list(declared.actions),
        "writes": list(written_actions(graphs)) if graphs is not None else [],
        "otherwise": declared.otherwise.action if declared.otherwise is not None else None,
        "explore_share": declared.explore.share if declared.explore is not None else 0.0,
        "explore_actions": list(declared.explore.actions) if declared.explore is not None else [],
        "metrics": {name: _metric(metric) for name, metric in declared.metrics.items()},
        "gains": None
        if gains is None
        else {
            "metric": gains.metric,
            "actions": [] if callable(gains.usd) else list(gains.usd),
        },
    }


def _actions(facts: dict[str, Any]) -> str:
    """For people: what is declared; else what the table writes, which is not checked against anything."""
    if facts["actions"]:
        return ", ".join(facts["actions"])
    return f"any; its rules write {', '.join(facts['writes'])}" if facts["writes"] else "any"


def _metric(metric: Any) -> list[str]:
    """The actions whose share it is; none of a function."""
    if callable(metric):
        return []
    return [metric] if isinstance(metric, str) else list(metric)


def _tables(compiled: CompiledPolicy) -> list[dict[str, Any]]:
    found = []
    for graph in compiled.graphs.files.values() if compiled.graphs is not None else ():
        for node in graph.tables:
            assert node.table is not None
            inputs, outputs = node.table.inputs, node.table.outputs
            found.append({
                "file": graph.file,
                "table": node.name,
                "hit_policy": "first" if node.table.first else "collect",
                "inputs": [column.name for column in inputs],
                "outputs": [column.field for column in outputs],
                "rules": [[rule.id, *(rule.cells[one.id] for one in (*inputs, *outputs))] for rule in node.table.rules],
            })  # fmt: skip
    return found


# Files.


def _read(case: str) -> bytes:
    from drivetrain.policies.dry_run import CASE_BYTES_MAX

    if case == "-":
        return sys.stdin.buffer.read(CASE_BYTES_MAX + 1)
    return _content(Path(case), CASE_BYTES_MAX)


def _content(path: Path, most: int) -> bytes:
    """At most one byte more than is allowed, which whoever reads it refuses."""
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise DrivetrainError(f"{path} cannot be read: {error.strerror}.") from None


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise DrivetrainError(f"{path} cannot be written: {error.strerror}.") from None
