"""`drivetrain lineage`: what an artifact was made from, and what was made from it; the same as OpenLineage events."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from drivetrain.cli.ending import fail
from drivetrain.cli.options import Json, Project
from drivetrain.cli.places import LedgerPlaces, ledger_places, plain
from drivetrain.cli.tables import Column, print_table
from drivetrain.core.errors import DrivetrainError, ProjectError
from drivetrain.core.times import iso

if TYPE_CHECKING:
    from drivetrain.adapters.sqlite import SqliteControlLog
    from drivetrain.lineage.graph import Graph, Node, Step
    from drivetrain.project.snapshot import Snapshot

DEPTH = 20
"""Steps up and down that are shown unless asked otherwise."""
LINES_MAX = 500
"""Of one tree on a terminal; --json has everything."""
LISTED_MAX = 500
"""Artifacts in the list for people."""
CODE_CHARS = 12
"""Of a code hash, on a terminal."""
HASH = re.compile(r"[0-9a-f]{16,}")
"""A version that is one, and may be shortened."""
LISTED_NAME_CHARS = 26
"""Of a name or a path in the list: with a time beside it, the line fits 80 characters."""
FACT_CHARS_MAX = 64
"""Of one fact, on a terminal."""


def lineage_command(
    artifact: Annotated[
        str | None, typer.Argument(help="`triage@14`, `golden`, `dataset:golden@3`; without one, all are listed.")
    ] = None,
    depth: Annotated[int, typer.Option(min=0, help="At most this many steps up and down; 0: all.")] = DEPTH,
    openlineage: Annotated[
        list[str] | None,
        typer.Option(help="Write OpenLineage events to this FILE, or post them to this http(s) URL; repeatable."),
    ] = None,
    project: Project = None,
    as_json: Json = False,
) -> None:
    """What an artifact was made from, upstream and downstream, with time, code and facts."""
    try:
        with _Opened(project) as opened:
            graph, found = opened.graph, None if artifact is None else opened.graph.resolve(artifact)
            far = depth or None
            shown = list(graph) if found is None else _around(graph, found, far)
            exported = _exported(graph, shown, opened.name, openlineage or [])
    except DrivetrainError as error:
        fail(error)
    if as_json:
        typer.echo(msgspec.json.encode(lineage_json(graph, found, shown, far)).decode())
    elif found is None:
        _print_list(graph, shown)
    else:
        _print_tree(graph, found, far)
    for cycle in [] if as_json else graph.cycles(shown):
        typer.echo(f"warning: each of these was made from the other: {plain(', '.join(cycle))}", err=True)
    if graph.unreadable:
        typer.echo(f"warning: {len(graph.unreadable)} records of the control log could not be read", err=True)
    for said in exported.done:
        typer.echo(plain(said), err=True)
    if exported.problem:
        typer.echo(plain(exported.problem), err=True)
        raise typer.Exit(1)


def lineage_json(graph: Graph, artifact: str | None, shown: Iterable[str], depth: int | None) -> dict[str, Any]:
    """The artifacts with their inputs as one JSON object; `artifact` with what lies above and below, by steps."""
    listed = list(shown)
    answer: dict[str, Any] = {"artifacts": [_node_json(graph, one) for one in listed]}
    if artifact is not None:
        answer = {
            "artifact": artifact,
            "upstream": graph.upstream(artifact, depth),
            "downstream": graph.downstream(artifact, depth),
            **answer,
        }
    return {**answer, "cycles": graph.cycles(listed), "unreadable": graph.unreadable}


def opened_control(places: LedgerPlaces) -> SqliteControlLog | None:
    """The project's control log; None where nothing was ever changed, so that a look makes no file."""
    from drivetrain.adapters.sqlite import open_control_log

    if not places.control_log.exists() and not (places.keys_folder / "control.anchor").exists():
        return None
    return open_control_log(places.data_folder, places.keys_folder)


class _Opened:
    """A project's graph; with mistakes in its code, of what was recorded."""

    def __init__(self, project: Path | None) -> None:
        from drivetrain.lineage.declared import declared_artifacts
        from drivetrain.lineage.graph import Graph
        from drivetrain.lineage.made import read_history

        places = ledger_places(project)
        control = opened_control(places)
        self._snapshot = _loaded(places.root)
        self.name = places.root.name if self._snapshot is None else self._snapshot.name
        records = control.records() if control is not None else iter(())
        self.graph = Graph(read_history(records), declared_artifacts(self._snapshot))

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        from drivetrain.project import unload

        if self._snapshot is not None:
            unload(self._snapshot)


class _Exported(msgspec.Struct, frozen=True):
    done: tuple[str, ...]
    problem: str = ""


def _loaded(root: Path) -> Snapshot | None:
    from drivetrain.project import load

    try:
        return load(root)
    except ProjectError as error:
        count = len(error.problems)
        typer.echo(f"warning: the project has {count} mistakes, so what it declares is left out", err=True)
        return None


def _around(graph: Graph, artifact: str, depth: int | None) -> list[str]:
    return list(dict.fromkeys([artifact, *graph.upstream(artifact, depth), *graph.downstream(artifact, depth)]))


def _exported(graph: Graph, artifacts: list[str], namespace: str, targets: list[str]) -> _Exported:
    """Files first, so that no endpoint can keep them from being written."""
    from drivetrain.lineage import openlineage

    endpoints = [one for one in targets if "://" in one]
    for url in endpoints:
        openlineage.check_endpoint(url)
    done, problems = [], []
    for target in sorted(targets, key=lambda one: one in endpoints):
        events = openlineage.run_events(graph, artifacts, namespace=namespace)
        if target not in endpoints:
            done.append(f"{openlineage.write_events(Path(target), events)} events are in {target}")
            continue
        sent = openlineage.send_events(target, events, api_key=os.environ.get("OPENLINEAGE_API_KEY", ""))
        done.append(f"{sent.sent} of {sent.of} events went to {target}")
        if sent.problem:
            problems.append(
                f"{target} did not take all events: {sent.problem}\nSend them again: run ids stay the same."
            )
    return _Exported(tuple(done), "\n".join(problems))


def _node_json(graph: Graph, artifact: str) -> dict[str, Any]:
    node = graph.node(artifact)
    answer: dict[str, Any] = {"artifact": artifact, "standing": node.standing, "inputs": graph.inputs(artifact)}
    if node.made is not None:
        made = node.made
        answer |= {"made_at": _time(made.at_ns), "code_hash": made.code_hash, "facts": made.facts}
        answer |= {"made_by": node.actor, "times": node.times}
    if node.erased:
        answer["erased"] = [{"at": _time(one.at_ns), "facts": one.facts} for one in node.erased]
    if node.declared is not None:
        declared = node.declared
        answer |= {"owner": declared.owner, "description": declared.description, "schema": dict(declared.schema)}
        if declared.outside:
            answer["location"] = declared.location
    return answer


def _print_list(graph: Graph, artifacts: list[str]) -> None:
    if not artifacts:
        typer.echo("Nothing was recorded or declared yet.")
        return
    nodes = [graph.node(one) for one in artifacts[:LISTED_MAX]]
    rows = [[_shortened(_one_line(one.artifact)), *_listed(one), *_degrees(graph, one.artifact)] for one in nodes]
    columns = [Column("artifact"), Column("is"), Column("erased", drop=4), Column("facts", drop=5)]
    columns += [Column("inputs", right=True, drop=1), Column("read by", right=True, drop=2)]
    print_table(columns, rows)
    if len(artifacts) > LISTED_MAX:
        typer.echo(f"({len(artifacts) - LISTED_MAX} more; --json has all)")


def _listed(node: Node) -> tuple[str, str, str]:
    """How an artifact stands, what went of it, and the rest of what is known."""
    made = node.made
    standing = node.standing if made is None else f"made {_time(made.at_ns)}"
    facts = [] if made is None else [_fact(name, value) for name, value in sorted(made.facts.items())]
    erased = f"ERASED {_time(node.erased[-1].at_ns)}" if node.erased else ""
    return standing, erased, _one_line("  ".join(facts))


def _shortened(artifact: str) -> str:
    """An artifact's id in a list: its hash as a beginning, which may be asked for, and the end of its path."""
    name, at, version = artifact.rpartition("@")
    if not at:
        name, version = artifact, ""
    version = version[:CODE_CHARS] if HASH.fullmatch(version) else version
    kind, colon, path = name.partition(":")
    if len(path) > LISTED_NAME_CHARS:
        path = "…" + path[1 - LISTED_NAME_CHARS :]
    return f"{kind}{colon}{path}{at}{version}"


def _degrees(graph: Graph, artifact: str) -> tuple[str, str]:
    return str(len(graph.inputs(artifact))), str(len(graph.outputs(artifact)))


def _print_tree(graph: Graph, artifact: str, depth: int | None) -> None:
    typer.echo(_line(graph.node(artifact)))
    for title, downstream in (("upstream", False), ("downstream", True)):
        typer.echo(title)
        if not (graph.outputs(artifact) if downstream else graph.inputs(artifact)):
            typer.echo("  nothing" if downstream else f"  {_nothing_above(graph.node(artifact))}")
        for text in _limited(graph, graph.tree(artifact, downstream=downstream, depth=depth)):
            typer.echo(text)


def _limited(graph: Graph, steps: Iterator[Step]) -> Iterator[str]:
    for count, step in enumerate(steps):
        if count >= LINES_MAX:
            yield f"... more than {LINES_MAX} lines; --depth shows less and --json all"
            return
        why = {"": "", "repeated": "  (see above)", "cycle": "  (cycle)", "cut": "  (more with --depth)"}[step.why]
        yield f"  {_bars(step)}{'└─' if step.is_last else '├─'} {_line(graph.node(step.artifact, step.at_ns))}{why}"


def _bars(step: Step) -> str:
    """What stands before a line: a bar for each level above it that goes on below."""
    bars: list[str] = []
    above = step.above
    while above is not None:
        bars.append("   " if above.is_last else "│  ")
        above = above.above
    return "".join(reversed(bars))


def _line(node: Node) -> str:
    return f"{_one_line(node.artifact)}  {_said_of(node)}"


def _nothing_above(node: Node) -> str:
    return "no inputs were recorded" if node.standing in ("made", "unrecorded") else "nothing"


def _said_of(node: Node) -> str:
    """What is known of it, on one line and harmless to a terminal."""
    said: list[str] = []
    if node.made is not None:
        said.append(f"made {_time(node.made.at_ns)}")
        if node.made.code_hash:
            said.append(f"code {node.made.code_hash[:CODE_CHARS]}")
        said += [_fact(name, value) for name, value in sorted(node.made.facts.items())]
        if node.times > 1:
            said.append(f"recorded {node.times} times")
    else:
        said.append(STANDINGS[node.standing])
    declared = node.declared
    if declared is not None and node.made is None and declared.owner:
        said.append(f"owner {declared.owner}")
    for gone in node.erased:
        facts = " ".join(_fact(name, value) for name, value in sorted(gone.facts.items()))
        said.append(f"ERASED {_time(gone.at_ns)}{' ' * bool(facts)}{facts}")
    return _one_line("  ".join(said))


STANDINGS = {
    "declared": "declared",
    "outside": "outside",
    "newest": "stands for its newest version",
    "ledger": "the ledger's records",
    "file": "file",
    "unrecorded": "how it was made was never recorded",
}
"""What a tree says of artifacts without a record."""


def _fact(name: str, value: str | float | bool) -> str:
    if name.endswith("_ns") and isinstance(value, int) and not isinstance(value, bool):
        return f"{name.removesuffix('_ns')}={_time(value)}"
    text = str(value)
    return f"{name}={text if len(text) <= FACT_CHARS_MAX else text[: FACT_CHARS_MAX - 3] + '...'}"


def _time(ns: int) -> str:
    """A moment; its number where somebody recorded one beyond any calendar."""
    try:
        return iso(ns)
    except (OverflowError, ValueError, OSError):
        return f"{ns} ns"


def _one_line(text: str) -> str:
    return plain(text).replace("\n", "\\n").replace("\t", "\\t")
