"""`python -m drivetrain.simulator --config demo.toml`: runs the simulator until it is interrupted."""

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from drivetrain.simulator.config import load_config
from drivetrain.simulator.errors import SimulatorError
from drivetrain.simulator.process import READY_LINE
from drivetrain.simulator.server import serve
from drivetrain.simulator.settings import SimulatorConfig


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m drivetrain.simulator", description="A simulated OpenAI- and Anthropic-compatible provider."
    )
    parser.add_argument("--config", required=True, type=Path, help="TOML file with the models")
    parser.add_argument("--host", help="address to listen on; default: the TOML's, else 127.0.0.1")
    parser.add_argument("--port", type=int, help="port to listen on; default: the TOML's, else any free one")
    parser.add_argument(
        "--end-with-stdin", action="store_true", help="end when standard input closes, as a child of tests does"
    )
    chosen = parser.parse_args(arguments)
    try:
        config = load_config(chosen.config)
        _run(config, chosen.host, chosen.port, end_with_stdin=chosen.end_with_stdin)
    except SimulatorError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"The simulator cannot listen: {error}. Choose another --host or --port.", file=sys.stderr)
        return 1
    return 0


def _run(config: SimulatorConfig, host: str | None, port: int | None, *, end_with_stdin: bool) -> None:
    shown = host or config.server.host

    def ready(actual_port: int) -> None:
        print(f"{READY_LINE}{shown}:{actual_port}", flush=True)

    async def until_ended() -> None:
        loop = asyncio.get_running_loop()
        serving = asyncio.ensure_future(serve(config, host, port, ready))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, serving.cancel)
        if end_with_stdin:
            await loop.connect_read_pipe(lambda: _EndOfInput(serving), sys.stdin)
        try:
            await serving
        except asyncio.CancelledError:
            return

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(until_ended())


def _loop_factory() -> "type[asyncio.AbstractEventLoop] | None":
    """uvloop's loop; the standard one where uvloop does not exist."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop


class _EndOfInput(asyncio.Protocol):
    """Ends the simulator when the process that started it goes away."""

    def __init__(self, serving: "asyncio.Future[None]") -> None:
        self._serving = serving

    def connection_lost(self, exc: Exception | None) -> None:
        self._serving.cancel()


if __name__ == "__main__":
    sys.exit(main())
