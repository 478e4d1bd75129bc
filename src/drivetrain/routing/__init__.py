"""Whether a rule answers and whether a variant's answer is good enough: the user's code, at a measured boundary."""
