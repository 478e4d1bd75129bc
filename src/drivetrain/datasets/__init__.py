"""Datasets: frozen, numbered selections of records or files, with schema, hash and lineage."""
