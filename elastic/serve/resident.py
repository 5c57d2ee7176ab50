"""The resident model: one set of weights in memory, every submodel an argument of the call."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from elastic.checkpoint import WEIGHTS, Manifest, load_model
from elastic.data.tokenizer import Tokenizer
from elastic.model.encoder import Encoder
from elastic.model.preprocess import CANVAS_CHANNELS, CANVAS_SCALE
from elastic.model.traced import trace
from elastic.profile.tables import Modality
from elastic.submodel import Space, Submodel

CANARY_TOLERANCE = 1e-3
"""Largest coordinate difference of a normalised embedding between two runs of the same input."""


class ResidentModel:
    """Computes batches of prepared inputs; not thread-safe, the engine gives it one thread."""

    def __init__(
        self, encoder: Encoder, manifest: Manifest, tokenizer: Tokenizer | None, version: str, dtype: str = "float32"
    ) -> None:
        self.encoder, self.manifest, self.tokenizer, self.version = encoder, manifest, tokenizer, version
        self._dtype = dtype
        self._device = next(encoder.parameters()).device
        shape = encoder.config.vision.shape
        self._image_tokens = shape.num_patches + shape.num_prefix_tokens
        self._calls: dict[tuple[Modality, Submodel], Callable[..., Tensor]] = {}
        self._canary_answer: np.ndarray | None = None

    @classmethod
    def load(cls, run: Path, dtype: str = "float32", device: str = "cpu") -> "ResidentModel":
        """Read a run directory, onto a torch device.

        Raises:
            CheckpointError: no model there, or a damaged one.
        """
        encoder, manifest, tokenizer = load_model(run)
        encoder.eval().requires_grad_(False).to(device)
        return cls(encoder, manifest, tokenizer, weights_version(run / WEIGHTS), dtype)

    @property
    def spaces(self) -> dict[Modality, Space]:
        """What can be chosen, by modality."""
        towers: dict[Modality, Space | None] = {"image": self.encoder.space, "text": self.encoder.text_space}
        return {modality: space for modality, space in towers.items() if space is not None}

    def compute(self, modality: Modality, submodel: Submodel, inputs: Sequence[object]) -> np.ndarray:
        """Normalised embeddings `[inputs, full width]` at one submodel, which its first call traces."""
        call = self._call(modality, submodel)
        with torch.inference_mode():
            batch = (part.to(self._device) for part in _collate(modality, inputs))
            return call(*batch).cpu().numpy()

    def num_tokens(self, modality: Modality, prepared: object) -> int:
        """Positions of the transformer that one prepared input takes, padding not counted."""
        if modality == "image":
            return self._image_tokens
        _, mask = cast(tuple[Tensor, Tensor], prepared)
        return int(mask.sum())

    def example(self, modality: Modality) -> object:
        """A valid input with fixed content, for warm-up and the canary."""
        if modality == "image":
            side = CANVAS_SCALE * self.manifest.preprocess.image_size
            ramp = np.linspace(0, 255, CANVAS_CHANNELS * side * side).reshape(CANVAS_CHANNELS, side, side)
            ramp[-1] = 255  # opaque, so that every colour is one
            return ramp.astype(np.uint8)
        assert self.encoder.config.text is not None
        length = self.encoder.config.text.max_tokens
        return torch.ones(length, dtype=torch.int64), torch.ones(length, dtype=torch.bool)

    def warm_up(self, modality: Modality, submodels: Sequence[Submodel], batch_sizes: Sequence[int]) -> None:
        """Run each submodel at each batch size once, so that no request pays for first-use costs."""
        for submodel in submodels:
            for size in batch_sizes:
                self.compute(modality, submodel, [self.example(modality)] * size)

    def is_sane(self) -> bool:
        """Whether the smallest submodel still answers a fixed input as it did the first time."""
        answer = self.compute("image", self.encoder.space.smallest, [self.example("image")])
        if self._canary_answer is None:
            self._canary_answer = answer
        return bool(np.isfinite(answer).all() and np.abs(answer - self._canary_answer).max() < CANARY_TOLERANCE)

    def _call(self, modality: Modality, submodel: Submodel) -> Callable[..., Tensor]:
        if (modality, submodel) not in self._calls:
            call = trace(self.encoder, self.manifest.preprocess, modality, submodel, self._dtype)
            self._calls[modality, submodel] = call
        return self._calls[modality, submodel]


def _collate(modality: Modality, inputs: Sequence[object]) -> tuple[Tensor, ...]:
    """What the traced call takes: canvases, or tokens and their mask, padded to the longest."""
    if modality == "image":
        return (torch.from_numpy(np.stack(cast(Sequence[np.ndarray], inputs))),)
    tokens, masks = zip(*cast(Sequence[tuple[Tensor, Tensor]], inputs), strict=True)
    return tuple(pad_sequence(list(rows), batch_first=True) for rows in (tokens, masks))


def weights_version(path: Path) -> str:
    """The first 12 hex digits of the SHA-256 of a weights file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
