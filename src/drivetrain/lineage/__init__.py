"""Lineage: what was made from what, and how fresh it is."""
