"""Serving: every request gets the best submodel and width that meet its latency objective."""
