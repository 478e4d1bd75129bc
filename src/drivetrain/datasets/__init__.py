"""Datasets: frozen, numbered, checked selections of rows, with lineage."""

from __future__ import annotations

from drivetrain.datasets.checks import DatasetRefused, Violation
from drivetrain.datasets.datasets import Created, Datasets
from drivetrain.datasets.numbers import parquet_paths
from drivetrain.datasets.schema import NOTHING_DECLARED, Declared, parse_schema, read_schema
from drivetrain.datasets.sources import FromCalls, FromFile, FromQuery

__all__ = [
    "NOTHING_DECLARED",
    "Created",
    "DatasetRefused",
    "Datasets",
    "Declared",
    "FromCalls",
    "FromFile",
    "FromQuery",
    "Violation",
    "parquet_paths",
    "parse_schema",
    "read_schema",
]
