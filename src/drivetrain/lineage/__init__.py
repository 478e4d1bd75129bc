"""Lineage: what was made from what, how fresh it is, and the same as OpenLineage events.

Owns the records of kind `made` and `erased` in the control log, the graph over them and a project's declarations, and
the freshness of sources and views. It reads and writes no data of its own.
"""
