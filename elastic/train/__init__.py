"""From a recipe to a trained encoder: which submodels a step trains, the step itself, and the run around it."""
