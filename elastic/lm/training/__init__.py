"""From prepared text to a trained decoder: the losses, the step, and the run around it."""
