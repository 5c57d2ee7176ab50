"""What submodels cost and what they are worth, as measured tables."""
