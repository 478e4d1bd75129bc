"""Budgets that cannot be overspent, rate limits and concurrency limits, in slices leased from one counter store."""
