"""The text tower: a small nested transformer from caption tokens into the images' embedding space."""

import torch
from jaxtyping import Bool, Float, Int
from timm.layers.weight_init import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from elastic.model.config import TextConfig
from elastic.model.nested import RunBlock, nested_block
from elastic.submodel import Submodel

INIT_STD = 0.02
"""Standard deviation of every matrix at the start, as in timm's ViT."""


class TextTower(nn.Module):
    """Bidirectional transformer over tokens, mean of the real tokens, linear embedding head."""

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.token_embed = nn.Embedding(config.vocab_size, config.width)
        self.pos_embed = nn.Parameter(torch.empty(1, config.max_tokens, config.width))
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads, config.mlp_ratio, qkv_bias=True) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, embed_dim)
        self._initialise()

    def forward(
        self,
        tokens: Int[Tensor, "captions length"],
        mask: Bool[Tensor, "captions length"],
        submodel: Submodel,
        run_block: RunBlock = nested_block,
    ) -> Float[Tensor, "captions embed_dim"]:
        """Un-normalised embeddings at a submodel of the text space; `mask` is True at real tokens.

        A caption without any token counts as one padding token, so that its embedding is defined.
        """
        length = tokens.shape[1]
        assert length <= self.config.max_tokens, f"{length} tokens, at most {self.config.max_tokens}"
        mask = mask | (torch.arange(length, device=mask.device) == 0)
        x = self.token_embed(tokens) + self.pos_embed[:, :length]
        for block, ffn_dim in zip(self.blocks, submodel.ffn_dims, strict=True):
            x = run_block(block, x, ffn_dim, mask[:, None, None, :])
        weights = mask / mask.sum(dim=1, keepdim=True)  # [captions, length]
        pooled = (self.norm(x) * weights.unsqueeze(-1)).sum(dim=1)
        return self.head(pooled)

    def _initialise(self) -> None:
        trunc_normal_(self.pos_embed, std=INIT_STD)
        trunc_normal_(self.token_embed.weight, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)
