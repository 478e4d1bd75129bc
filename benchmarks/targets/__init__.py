"""Everything that is measured, one file per target, in the order of the tables."""

from __future__ import annotations

from targets.drivetrain import Drivetrain
from targets.litellm import LiteLLM
from targets.nginx import Nginx
from targets.portkey import Portkey
from targets.target import NotReady, Running, Target
from targets.tensorzero import TensorZero

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Nginx(),
        Drivetrain(retention="none"),
        Drivetrain(retention="full"),
        Drivetrain(retention="none", limited=True),
        Drivetrain(retention="full", limited=True),
        TensorZero(),
        Portkey(),
        LiteLLM(),
    )
}

__all__ = ["TARGETS", "Drivetrain", "NotReady", "Running", "Target"]
