"""Faults put upon a running server, and what it does about them; `tests/serve/test_faults.py` puts the cheap ones."""
