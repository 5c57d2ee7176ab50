"""Training objectives: one file per method, composed by name in a recipe."""
