"""Dialect x endpoint x capability facts: how each provider is spoken to, and what it charges."""

from drivetrain.providers.checking import check

__all__ = ["check"]
