"""Who may call a server, and how much at once."""
