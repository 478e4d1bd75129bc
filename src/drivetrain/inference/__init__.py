"""Running trained models: scorers, batching, model workers."""
