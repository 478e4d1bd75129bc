"""The lake: every Call, Outcome, Dataset and feature as named tables behind one interface."""
