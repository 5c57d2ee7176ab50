"""Loads the model in this folder with torch, timm and safetensors alone.

    from load import load_model
    model = load_model()                 # a timm VisionTransformer, in eval mode
    embedding = model(images)            # [batch, embed_dim]; cut to a width of `embed_dims`, then L2-normalise

Preprocessing (size, mean, std) and what the model was cut from stand in config.json. `elastic` itself is not
needed: it copies this file beside the weights that it exports.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import timm
from safetensors.torch import load_file
from torch import Tensor, nn


def load_model(folder: str | Path = Path(__file__).parent) -> nn.Module:
    """The timm model saved in `folder`, whose blocks may have FFNs of different sizes."""
    config = json.loads((Path(folder) / "config.json").read_text())
    weights = load_file(Path(folder) / "model.safetensors")
    model = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])
    fit_linear_sizes(model, weights)
    model.load_state_dict(weights)
    return model.eval()


def fit_linear_sizes(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Replace every linear layer whose size differs from its weights by an empty one that fits them."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and layer.weight.shape != weights[f"{name}.weight"].shape:
            out_features, in_features = weights[f"{name}.weight"].shape
            resized = nn.Linear(in_features, out_features, layer.bias is not None, layer.weight.device)
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, resized)
