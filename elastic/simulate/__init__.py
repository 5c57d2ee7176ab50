"""The server's policies on simulated machines and arrivals: what a fleet would have answered, in seconds."""
