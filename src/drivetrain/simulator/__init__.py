"""A simulated provider, OpenAI- and Anthropic-compatible: time, price, quality and failures are set in TOML and seeded.

Owns the simulated provider, its invoice and the process that tests and demos start. Knows nothing of Drivetrain's
workflows: it is called over HTTP like any provider. Importing this package imports none of its parts; each is imported
when first used.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drivetrain.simulator.config import load_config
    from drivetrain.simulator.errors import SimulatorConfigError, SimulatorError
    from drivetrain.simulator.process import SimulatorProcess
    from drivetrain.simulator.server import serve
    from drivetrain.simulator.settings import SimulatorConfig

__all__ = ["SimulatorConfig", "SimulatorConfigError", "SimulatorError", "SimulatorProcess", "load_config", "serve"]

_HOMES = {
    "SimulatorConfig": "settings",
    "SimulatorConfigError": "errors",
    "SimulatorError": "errors",
    "SimulatorProcess": "process",
    "load_config": "config",
    "serve": "server",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"drivetrain.simulator has no {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(f"drivetrain.simulator.{_HOMES[name]}"), name)
