"""The ledger: Calls and Outcomes as frames in append-only segments, read back as joined records and totals.

Owns the segment format, the journal that writes it, the reader that folds it and the queries above it.
It does not encrypt (adapters/files.py does) and keeps no control log (adapters/sqlite.py does).
The format and the names for Python are in docs/reference/ledger.md.
"""
