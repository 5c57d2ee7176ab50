"""What the server costs, against the bare call in process and against other servers that make the same call."""
