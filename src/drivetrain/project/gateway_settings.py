"""`[gateway]` of drivetrain.toml: where it listens, and what it takes."""

from __future__ import annotations

from collections.abc import Mapping

from drivetrain.project.files import SETTINGS_FILE
from drivetrain.project.names import model_mistake
from drivetrain.project.problems import shown
from drivetrain.project.snapshot import GatewaySettings
from drivetrain.project.tables import Table

GATEWAY_RANGES: Mapping[str, tuple[int, int]] = {
    "port": (0, 65_535),
    "body_bytes_max": (1_024, 2**30),
    "header_bytes_max": (1_024, 2**20),
    "header_timeout_ms": (1, 600_000),
    "body_timeout_ms": (1, 3_600_000),
    "idle_timeout_ms": (1, 3_600_000),
    "write_timeout_ms": (1, 3_600_000),
    "connections_max": (1, 1_000_000),
    "messages_max": (1, 100_000),
    "cache_bytes_max": (0, 2**40),
}
GATEWAY_KEYS = ("host", "direct_models", "direct_team", *GATEWAY_RANGES)


def read_gateway(table: Table, providers: frozenset[str]) -> GatewaySettings:
    """What is said, and else the defaults; mistakes are noted. providers: the declared ones, wrong ones included."""
    table.only(GATEWAY_KEYS)
    defaults = GatewaySettings()
    numbers = {
        key: table.whole(key, getattr(defaults, key), least=least, most=most)
        for key, (least, most) in GATEWAY_RANGES.items()
    }
    direct: list[str] = []
    for index, model in enumerate(table.texts("direct_models") or ()):
        mistake = model_mistake(model, providers)
        if mistake is not None:
            table.problems.add(
                f"`{table.label('direct_models', index)}` {mistake[0]}", file=SETTINGS_FILE,
                line=table.line("direct_models", index), value=shown(model), do=mistake[1],
            )  # fmt: skip
        elif model not in direct:
            direct.append(model)
    return GatewaySettings(host=table.text("host", defaults.host), direct_models=tuple(direct), **numbers)
