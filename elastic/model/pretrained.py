"""Starting from someone else's weights: timm checkpoints into the image tower of a nested encoder.

Nesting changes no parameter's name or shape, so a full-size checkpoint fits as it is. What it cannot give is the
quality of the smaller submodels: they are trained afterwards (MatFormer section 9 item 3: plain slices of a model
that was not trained nested are far worse).
"""

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError
from timm.models import load_state_dict, load_state_dict_from_hf
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from elastic.errors import CheckpointError
from elastic.model.config import EncoderConfig
from elastic.model.encoder import Encoder

_HEAD = ("head.weight", "head.bias")
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.pth")
_LOCAL, _HUB = "local-dir:", "hf-hub:"


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
    """Load a file (.safetensors, .pth), a timm folder, or a hub id (`timm/vit_small_patch16_224.augreg_in21k`).

    Positions and patches of another size are resampled as timm does. Only the embedding head may differ in shape,
    and only it and register tokens may be missing: they keep their initial values, which the report names.

    Raises:
        CheckpointError: nothing readable there, or other names or shapes differ.
    """
    weights = checkpoint_filter_fn(_read(location), vit)
    expected = vit.state_dict()
    for name in _HEAD:
        if name in weights and weights[name].shape != expected[name].shape:
            del weights[name]
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    reshaped = [name for name in weights.keys() & expected.keys() if weights[name].shape != expected[name].shape]
    lacking = [name for name in missing if name not in (*_HEAD, "reg_token")]
    if lacking or unexpected or reshaped:
        problem = (
            f"does not fit the model (missing {lacking[:4]}, unknown {unexpected[:4]}, other shape {reshaped[:4]})"
        )
        raise CheckpointError(location, problem, "take the sizes from its timm name with VisionConfig.from_timm")
    vit.load_state_dict(weights, strict=False)
    return LoadReport(tuple(missing))


def _read(location: str) -> dict[str, Tensor]:
    path = Path(location.removeprefix(_LOCAL))
    try:
        if path.is_dir():
            path = next((path / name for name in _WEIGHT_FILES if (path / name).is_file()), path / _WEIGHT_FILES[0])
        if path.is_file() or path.suffix or location.startswith(_LOCAL):
            return dict(load_state_dict(str(path)))
        return dict(load_state_dict_from_hf(location.removeprefix(_HUB)))
    except (OSError, EOFError, ValueError, RuntimeError, UnpicklingError, SafetensorError) as error:
        advice = "name a .safetensors or .pth file, a timm folder, or a hub id that this machine can reach"
        raise CheckpointError(location, f"cannot be read ({type(error).__name__}: {error})", advice) from error
