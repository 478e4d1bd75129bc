"""Features: defined once, the same offline and online."""
