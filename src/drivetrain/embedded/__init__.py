"""Without any server: a workflow as a plain Python call, questions to the lake, features, upkeep; each wired here."""
