"""Training by one command: recipes, calibration, thresholds for a stated risk, and the Report."""
