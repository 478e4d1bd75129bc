"""Statistics as pure functions: intervals, tests, estimators; each names its source."""
