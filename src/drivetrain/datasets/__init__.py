"""Datasets: frozen, numbered, checked selections of rows, with lineage."""

from __future__ import annotations

from drivetrain.datasets.checks import DatasetRefused, Violation
from drivetrain.datasets.datasets import Created, Datasets
from drivetrain.datasets.numbers import parquet_paths, sweep_strays
from drivetrain.datasets.schema import NOTHING_DECLARED, Declared, parse_schema, read_schema
from drivetrain.datasets.sources import FromCalls, FromFile, FromQuery
from drivetrain.datasets.workplaces import staging_folder, sweep_staging

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
    "staging_folder",
    "sweep_staging",
    "sweep_strays",
]
