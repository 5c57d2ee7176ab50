"""Servers under measurement: starting and stopping them, and what their processes use."""
