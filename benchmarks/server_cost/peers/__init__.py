"""Servers to compare with; each is a script that makes the call of `workload.Workload`."""
