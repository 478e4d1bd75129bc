"""Whether a rule answers, whether an answer is good enough (the user's code, at a measured boundary), and which models
may be asked now (`health`)."""
