"""run(workflow, input) -> Call: one path, live, embedded and replayed, streaming or not."""
