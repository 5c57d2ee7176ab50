"""The server's policy, and those of other systems to compare it with; `serve.policy` says what a policy is."""
