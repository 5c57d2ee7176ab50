"""Starting from trained weights: timm checkpoints and image towers of earlier runs into that of a nested encoder.

Nesting changes no parameter's name or shape, so a full-size checkpoint fits as it is. What a plain one cannot give is
the quality of the smaller submodels: they are trained afterwards (MatFormer section 9 item 3: plain slices of a model
that was not trained nested are far worse).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from timm.models import load_state_dict, load_state_dict_from_hf
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from elastic.errors import CheckpointError
from elastic.model.config import EncoderConfig
from elastic.model.encoder import Encoder

BUNDLED = "bundled"
"""Stands for the image tower of the trained model that is part of the package."""
BUNDLED_RUN = Path(__file__).parents[1] / "bundled" / "icons_vit"
"""The directory of that model."""

_HEAD = ("head.weight", "head.bias")
_TOKENS = ("cls_token", "reg_token")
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.pth")
_LOCAL, _HUB = "local-dir:", "hf-hub:"
_TOWER = "image."
"""What a run's parameter names of the image tower begin with."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a checkpoint did not decide."""

    fresh: tuple[str, ...]
    """Parameters left as initialised: the embedding head of a classifier, tokens the checkpoint does not have."""


def build_encoder(config: EncoderConfig) -> Encoder:
    """A new encoder, its image tower loaded from `config.vision.checkpoint` if there is one.

    Raises:
        CheckpointError: the checkpoint cannot be read, or does not fit.
    """
    encoder = Encoder(config)
    if config.vision.checkpoint is not None:
        load_timm_checkpoint(encoder.image, config.vision.checkpoint)
    return encoder


def load_timm_checkpoint(vit: VisionTransformer, location: str) -> LoadReport:
    """Load a file (.safetensors, .pth), a timm folder, a run directory, a hub id, or `BUNDLED`.

    Positions and patches of another size are resampled as timm does. Only the embedding head may differ in shape,
    and only it, class tokens and register tokens may be missing: they keep their initial values, and those of their
    positions, and the report names them. The last norm is the same whether patches are averaged before or after it.

    Raises:
        CheckpointError: nothing readable there, or other names or shapes differ.
    """
    expected = vit.state_dict()
    weights = checkpoint_filter_fn(_with_prefix(_name_norm(_read(location), expected), vit), vit)
    for name in _HEAD:
        if name in weights and weights[name].shape != expected[name].shape:
            del weights[name]
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    reshaped = [name for name in weights.keys() & expected.keys() if weights[name].shape != expected[name].shape]
    lacking = [name for name in missing if name not in (*_HEAD, *_TOKENS)]
    if lacking or unexpected or reshaped:
        problem = (
            f"does not fit the model (missing {lacking[:4]}, unknown {unexpected[:4]}, other shape {reshaped[:4]})"
        )
        raise CheckpointError(location, problem, "take the sizes from its timm name with VisionConfig.from_timm")
    vit.load_state_dict(weights, strict=False)
    return LoadReport(tuple(missing))


def _name_norm(weights: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm calls the last norm `norm`, or `fc_norm` where it averages patches first."""
    for found, wanted in (("norm", "fc_norm"), ("fc_norm", "norm")):
        if f"{found}.weight" in weights and f"{found}.weight" not in expected and f"{wanted}.weight" in expected:
            for part in ("weight", "bias"):
                weights[f"{wanted}.{part}"] = weights.pop(f"{found}.{part}")
    return weights


def _with_prefix(weights: dict[str, Tensor], vit: VisionTransformer) -> dict[str, Tensor]:
    """Positions for all prefix tokens of `vit`: the checkpoint's own come first, and fresh ones stand behind them."""
    if vit.pos_embed is None or vit.no_embed_class or "pos_embed" not in weights:
        return weights
    trained = sum(weights[name].shape[1] for name in _TOKENS if name in weights)
    if trained < vit.num_prefix_tokens:
        fresh = vit.pos_embed.detach()[:, trained : vit.num_prefix_tokens]
        prefix, patches = weights["pos_embed"][:, :trained], weights["pos_embed"][:, trained:]
        weights["pos_embed"] = torch.cat([prefix, fresh.to(prefix.dtype), patches], dim=1)
    return weights


def _read(location: str) -> dict[str, Tensor]:
    path = BUNDLED_RUN if location == BUNDLED else Path(location.removeprefix(_LOCAL))
    try:
        if path.is_dir():
            path = next((path / name for name in _WEIGHT_FILES if (path / name).is_file()), path / _WEIGHT_FILES[0])
        if path.is_file() or path.suffix or location.startswith(_LOCAL):
            weights = dict(load_state_dict(str(path)))
            tower = {name.removeprefix(_TOWER): weights[name] for name in weights if name.startswith(_TOWER)}
            return tower or weights
        return dict(load_state_dict_from_hf(location.removeprefix(_HUB)))
    except (OSError, EOFError, ValueError, RuntimeError, UnpicklingError, SafetensorError) as error:
        advice = "name a .safetensors or .pth file, a timm folder, a run directory, or a hub id that can be reached"
        raise CheckpointError(location, f"cannot be read ({type(error).__name__}: {error})", advice) from error
