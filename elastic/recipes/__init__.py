"""Named runs: one function returns the full configuration of one run, and its docstring says what to expect."""
