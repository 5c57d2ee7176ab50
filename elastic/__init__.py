"""Train one nested image-text encoder, serve it at every latency budget."""

from elastic.submodel import Choice, Slo, Space, Submodel

__version__ = "0.1.0"

__all__ = ["Choice", "Slo", "Space", "Submodel", "__version__"]
