"""One submodel cut out of the nested encoder, as a plain timm model that needs no `elastic`.

The result equals the slice it was cut from and holds copies of its weights alone, so it can be stored, quantised
or compiled like any timm model.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from elastic.model import standalone
from elastic.model.config import IMAGE_CHANNELS, Preprocess, exact_mlp_ratio
from elastic.model.encoder import Encoder
from elastic.model.nested import hidden_features, mlp_of, slice_mlp
from elastic.model.storage import WEIGHTS, check_new, write_weights
from elastic.submodel import Submodel


def extract(encoder: Encoder, submodel: Submodel) -> VisionTransformer:
    """The image tower of one submodel, in eval mode, with the encoder's dtype and copies of its weights.

    Raises:
        InvalidRequest: the submodel does not belong to the encoder.
    """
    encoder.space.check(submodel)
    weights = sliced_weights(encoder.image, submodel)
    with torch.device("meta"):
        vit = encoder.config.vision.create(encoder.config.embed_dim)
        standalone.fit_linear_sizes(vit, weights)
    vit.load_state_dict(weights, assign=True)
    return vit.eval()


def sliced_weights(vit: VisionTransformer, submodel: Submodel) -> dict[str, Tensor]:
    """Copies of the weights that a submodel reads, under timm's names."""
    weights = dict(vit.state_dict())
    for index, (block, ffn_dim) in enumerate(zip(vit.blocks, submodel.ffn_dims, strict=True)):
        weights |= {f"blocks.{index}.mlp.{name}": part for name, part in slice_mlp(mlp_of(block), ffn_dim).items()}
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}


def save_timm(encoder: Encoder, submodel: Submodel, preprocess: Preprocess, folder: Path) -> None:
    """Write an extracted submodel to a new folder: `model.safetensors`, timm's `config.json`, and `load.py`.

    `load.py` loads any of them without `elastic`. What timm has a configuration for, `is_timm_config`, also loads by
    `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    Raises:
        CheckpointError: the folder exists and is not empty.
        InvalidRequest: the submodel does not belong to the encoder.
    """
    check_new(folder)
    vit = extract(encoder, submodel)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_weights(temporary / WEIGHTS, vit.state_dict())
    config = timm_config(encoder, submodel, preprocess, vit)
    (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(standalone.__file__, temporary / "load.py")
    os.replace(temporary, folder)


def is_timm_config(encoder: Encoder, submodel: Submodel) -> bool:
    """Whether `timm.create_model` can build the submodel: FFNs of one size, and no attention pooling to share it.

    timm's attention pooling has an MLP of the same ratio as the blocks, which is not nested.
    """
    return submodel == encoder.space.full or (submodel.is_uniform and encoder.config.vision.pool != "map")


def timm_config(encoder: Encoder, submodel: Submodel, preprocess: Preprocess, vit: VisionTransformer) -> dict[str, Any]:
    """timm's `config.json` for an extracted model, with an `elastic` entry that says what it is a slice of."""
    vision, embed_dim = encoder.config.vision, encoder.config.embed_dim
    arguments = vision.timm_kwargs(embed_dim) | {"drop_path_rate": 0.0}
    del arguments["num_classes"]
    if is_timm_config(encoder, submodel):
        arguments["mlp_ratio"] = exact_mlp_ratio(hidden_features(mlp_of(vit.blocks[0])), vision.width)
    return {
        "architecture": vision.timm_name.partition(".")[0],
        "num_classes": embed_dim,
        "num_features": vit.num_features,
        "global_pool": vision.pool,
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": embed_dim,
            "input_size": [IMAGE_CHANNELS, preprocess.image_size, preprocess.image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "classifier": "head",
        },
        "elastic": {"submodel": str(submodel), "embed_dims": list(encoder.config.embed_dims)},
    }
