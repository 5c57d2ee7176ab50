"""Policies compared on simulated replicas and on a live server, and the simulator held against the server."""
