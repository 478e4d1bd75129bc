"""Is an upgrade worth it: a candidate's answers beside those that were given, and what follows from them."""
