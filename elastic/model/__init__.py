"""The nested image-text encoder: one set of weights, every submodel a slice of it."""
