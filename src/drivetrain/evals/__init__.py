"""Evidence from the past: other policies on past Decisions, and what moved a metric."""
