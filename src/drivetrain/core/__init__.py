"""The nouns, declarations, stored types, money, ids and errors: data and pure functions, no I/O."""
