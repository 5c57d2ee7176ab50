"""The encoder: images and captions into one nested embedding space, at any submodel.

One set of weights serves every submodel; which one runs is an argument of each call, so that threads may run
different submodels of the same encoder at once.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from elastic.batch import Batch, Captions, Features
from elastic.model.config import EncoderConfig
from elastic.model.nested import RunBlock, nested_block
from elastic.model.text import TextTower
from elastic.model.vit import Mask, embed_second, forward_vit
from elastic.submodel import Space, Submodel


class Encoder(nn.Module):
    """A timm ViT (`image`) and, if configured, a text tower (`text`), freshly initialised.

    `pretrained.build_encoder` also loads `config.vision.checkpoint`.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.space: Space = config.space
        self.text_space: Space | None = config.text_space
        self.image = config.vision.create(config.embed_dim)
        self.text = None if config.text is None else TextTower(config.text, config.embed_dim)
        # A block that must be entered through its own call, as sharded weights are, has another way to run.
        self.run_block: RunBlock = nested_block

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks of both towers."""
        return [*self.image.blocks, *(() if self.text is None else self.text.blocks)]

    def forward(self, batch: Batch, submodel: Submodel) -> Features:
        """Un-normalised features of a batch; captions run at the text submodel of the same granularity."""
        features = embed_second(self.image, self.see(batch.images, submodel))
        if self.text is None:
            return features
        first, second = self._read((batch.captions, batch.synthetic_captions), submodel)
        return replace(features, text_embedding=first, second_text_embedding=second)

    def see(
        self, images: Float[Tensor, "batch channels height width"], submodel: Submodel, mask: Mask | None = None
    ) -> Features:
        """Un-normalised features of images alone, whole, masked or smaller than the model's."""
        return forward_vit(self.image, images, submodel, mask, self.run_block)

    def _read(self, captions: Sequence[Captions | None], submodel: Submodel) -> list[Tensor | None]:
        """Embeddings of several sets of captions, all of them in one pass."""
        assert self.text is not None and self.text_space is not None
        found = [item for item in captions if item is not None]
        if not found:
            return [None] * len(captions)
        length = max(item.tokens.shape[1] for item in found)
        tokens = torch.cat([F.pad(item.tokens, (0, length - item.tokens.shape[1])) for item in found])
        mask = torch.cat([F.pad(item.mask, (0, length - item.mask.shape[1])) for item in found])
        embedded = self.text(tokens, mask, self.space.translate(submodel, self.text_space), self.run_block)
        parts = iter(embedded.split([len(item.tokens) for item in found]))
        return [None if item is None else next(parts) for item in captions]

    def encode_images(
        self, images: Float[Tensor, "batch channels height width"], submodel: Submodel, embed_dim: int
    ) -> Float[Tensor, "batch embed_dim"]:
        """L2-normalised image embeddings of the first `embed_dim` coordinates."""
        embedding = self.see(images, submodel).embedding
        return F.normalize(embedding[:, :embed_dim].float(), dim=1)

    def encode_texts(
        self,
        tokens: Int[Tensor, "captions length"],
        mask: Bool[Tensor, "captions length"],
        submodel: Submodel,
        embed_dim: int,
    ) -> Float[Tensor, "captions embed_dim"]:
        """L2-normalised caption embeddings; `submodel` belongs to `text_space`."""
        assert self.text is not None, "this encoder has no text tower"
        return F.normalize(self.text(tokens, mask, submodel, self.run_block)[:, :embed_dim].float(), dim=1)
