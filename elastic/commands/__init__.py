"""Verbs of the command line that no single sub-package owns."""
