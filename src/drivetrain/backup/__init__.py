"""Backup: a project's stores copied while they are used, brought back, and brought up to this version."""
