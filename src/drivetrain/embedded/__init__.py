"""A workflow as a plain Python call: the same route, records and costs, without any server."""

from drivetrain.embedded.calls import answer, call, close

__all__ = ["answer", "call", "close"]
