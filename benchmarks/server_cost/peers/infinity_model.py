"""The same network for infinity_emb, which serves Hugging Face models that embed both images and texts.

A folder with the `config.json` that `infinity_folder.py` makes and a copy of this file is such a model: infinity loads
it with transformers' `trust_remote_code`. Infinity decodes images itself, so the processor here starts from a PIL
image. It cannot be given the package's decoding; an opaque canvas is one call of Pillow instead.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin

from benchmarks.server_cost.workload import Workload
from elastic.model.preprocess import CANVAS_SCALE


class NestedConfig(PretrainedConfig):
    """Where the run is."""

    model_type = "elastic_run"


class NestedModel(PreTrainedModel):
    """`get_image_features` at the largest submodel."""

    config_class = NestedConfig
    base_model_prefix = ""

    def __init__(self, config: NestedConfig) -> None:
        super().__init__(config)
        self.anchor = torch.nn.Parameter(torch.zeros(1))  # infinity asks the model for its dtype and device
        self._workload = Workload(Path(config.run))

    @classmethod
    def from_pretrained(cls, path: str, **kwargs: Any) -> "NestedModel":
        """The weights lie in the run, not in the folder."""
        return cls(NestedConfig.from_pretrained(path))

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Embeddings of a batch."""
        return torch.from_numpy(self._workload.embed(list(pixel_values.numpy())))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Infinity warms text up as well; there is none here."""
        return torch.zeros(len(input_ids), 1)


class NestedProcessor(ProcessorMixin):
    """Images to canvases; texts to placeholders."""

    attributes: list[str] = []  # noqa: RUF012 (transformers' own name and type)

    def __init__(self, image_size: int = 224, **kwargs: Any) -> None:
        self.image_size = image_size

    @classmethod
    def from_pretrained(cls, path: str, **kwargs: Any) -> "NestedProcessor":
        """Read the size of images from the model's configuration."""
        return cls(json.loads((Path(path) / "config.json").read_text())["vision_config"]["image_size"])

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> dict[str, Tensor]:
        """What the model takes."""
        found: dict[str, Tensor] = {}
        if images is not None:
            found["pixel_values"] = torch.stack([self._canvas(image) for image in images])
        if text is not None:
            found["input_ids"] = torch.zeros(len(text), 1, dtype=torch.int64)
            found["attention_mask"] = torch.ones(len(text), 1, dtype=torch.int64)
        return found

    def _canvas(self, image: Image.Image) -> Tensor:
        side = CANVAS_SCALE * self.image_size
        resized = image.convert("RGBA").resize((side, side), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1)))
