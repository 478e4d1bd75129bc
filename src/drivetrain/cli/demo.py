"""`drivetrain demo`: the whole circle on this machine, without a key, a container or a network."""

from __future__ import annotations

import signal
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drivetrain.cli.options import Json

if TYPE_CHECKING:
    from drivetrain.cli.demo_folder import DemoFolder
    from drivetrain.cli.demo_gateway import GatewayProcess
    from drivetrain.cli.demo_texts import Texts
    from drivetrain.cli.demo_training import NoModel, TrainedModelOfDemo
    from drivetrain.simulator.process import SimulatorProcess

PORT_DEFAULT = 8080
CALLS_MAX = 100_000
"""About two minutes of traffic; the texts and their outcomes are held in memory."""
WATCH_S = 0.2
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(KeyboardInterrupt):
    """Somebody ended the demo. asyncio lets this kind through at once."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__()


def demo_command(
    *,
    once: Annotated[bool, typer.Option("--once", help="End after the report.")] = False,
    as_json: Json = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with train.csv, test.csv (text,category) and categories.json: BANKING77's, say."),
    ] = None,
    calls: Annotated[
        int | None,
        typer.Option(min=1, max=CALLS_MAX, help="Messages; by default 1,000, with --data all of the file."),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="The gateway's port; where it is taken, a free one.")
    ] = PORT_DEFAULT,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Folder to make the project in; by default .drivetrain-demo.")
    ] = None,
) -> None:
    """Simulated providers, a gateway, traffic through a route, and what it cost against one frontier model."""
    from drivetrain.cli.demo_folder import DEFAULT_FOLDER, DemoFolder
    from drivetrain.cli.demo_texts import own_texts, texts_of

    texts = own_texts(calls) if data is None else texts_of(data, calls)
    reported = False
    try:
        with _ended_by_signals(), ExitStack() as stack:
            project = stack.enter_context(DemoFolder(folder or Path(DEFAULT_FOLDER)))
            model = _make(project, texts)
            simulator, gateway = _start(project, port, stack)
            held = _run(project, texts, model, simulator, gateway, once=once, as_json=as_json)
            reported = True
            if not once:
                _watch(gateway)
    except Ended as ended:
        _say("ended")
        raise typer.Exit(0 if reported else 128 + ended.signum) from None
    if not held:
        raise typer.Exit(1)


def _make(project: DemoFolder, texts: Texts) -> TrainedModelOfDemo | NoModel:
    """The project, and the model that it trains."""
    from drivetrain.cli.demo_training import NoModel, train_in

    _say(f"making a project in {project.path}")
    project.write(texts)
    model = train_in(project, texts, _say)
    if isinstance(model, NoModel):
        _say(f"the route is without a trained model: {model.why}")
    else:
        _say(f"{model.version} answers from a confidence of {model.threshold:.3f} on; {model.took_s:.1f} s")
    return model


def _start(project: DemoFolder, port: int, stack: ExitStack) -> tuple[SimulatorProcess, GatewayProcess]:
    from drivetrain.cli.demo_gateway import GatewayProcess, free_port, is_free
    from drivetrain.core.errors import DrivetrainError
    from drivetrain.simulator.errors import SimulatorError
    from drivetrain.simulator.process import SimulatorProcess

    try:
        simulator = stack.enter_context(SimulatorProcess(project.simulator_file))
    except SimulatorError as error:
        raise DrivetrainError(f"The simulator did not start. {error}", do=f"Look into {project.path}.") from None
    taken = port != 0 and not is_free(port)
    wanted = free_port() if taken or port == 0 else port
    project.set_ports(simulator.port, wanted)
    gateway = stack.enter_context(GatewayProcess(project.path, wanted))
    if taken:
        _say(f"port {port} is taken; this gateway is on port {gateway.port}")
    _say(f"simulator on {simulator.url}, gateway on {gateway.url}")
    return simulator, gateway


def _run(
    project: DemoFolder,
    texts: Texts,
    model: TrainedModelOfDemo | NoModel,
    simulator: SimulatorProcess,
    gateway: GatewayProcess,
    *,
    once: bool,
    as_json: bool,
) -> bool:
    """Sends, reads the ledger and prints; whether everything adds up and held."""
    from drivetrain.cli.demo_change import Change, prove_and_undo
    from drivetrain.cli.demo_folder import KEYS
    from drivetrain.cli.demo_print import Place, print_report, report_json
    from drivetrain.cli.demo_report import read_report
    from drivetrain.cli.demo_traffic import send_all
    from drivetrain.cli.demo_training import NoModel
    from drivetrain.embedded.asking import open_lake

    started_s = time.monotonic()
    made = None if isinstance(model, NoModel) else model
    keys = {name: project.key(name) for name in KEYS}
    seen = send_all(gateway.port, keys, texts, _say, trained=made is not None)
    change = prove_and_undo(project, texts, made, gateway.port, _say)
    if isinstance(change, Change):
        seen.calls += change.calls
        seen.cost_nano_usd += change.cost_nano_usd
    _say(f"{seen.calls:,} calls in {time.monotonic() - started_s:.1f} s; reading the ledger")
    models = tomllib.loads(project.simulator_file.read_text(encoding="utf-8"))["models"]
    declared = {name: model["quality"]["accuracy"] for name, model in models.items() if "quality" in model}
    report = read_report(open_lake(project.path), seen, simulator.requests(), declared, texts.examples)
    place = Place(folder=project.path, url=gateway.url, key=project.key("web-chat"), running=not once)
    if as_json:
        typer.echo(report_json(report, texts, model, place, change))
    else:
        print_report(report, texts, model, place, change)
    sys.stdout.flush()
    return report.holds and change.holds


def _watch(gateway: GatewayProcess) -> None:
    """Returns never: it ends by a signal, or because a child is gone. Raises: DrivetrainError."""
    from drivetrain.core.errors import DrivetrainError

    _say("running until Ctrl-C")
    while not gateway.ended:
        time.sleep(WATCH_S)
    raise DrivetrainError(f"The gateway has ended. It said: {gateway.said() or 'nothing'}", do="Run the demo again.")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal raise `Ended` once; then children are ended undisturbed."""

    def end(signum: int, _frame: object) -> None:
        for one in ENDING:
            signal.signal(one, signal.SIG_IGN)
        raise Ended(signum)

    before = {one: signal.signal(one, end) for one in ENDING}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _say(text: str) -> None:
    """Progress, on standard error: standard output is the report's."""
    typer.echo(f"demo: {text}", err=True)
