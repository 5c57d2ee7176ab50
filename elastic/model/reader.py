"""Some blocks of a submodel as one call outside of Python: what text is generated with.

Read token by token, a small decoder spends as much time between its operations as in them. A reader binds the slices
of one submodel once and records the operations on them, as `elastic.model.traced` does for images. It reads the
decoder's own weights and copies none of them, but for the rows of a head that scores only some tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from elastic.model.cache import KvCache
from elastic.model.decoder import Decoder
from elastic.model.traced import record
from elastic.submodel import Submodel

Affine = tuple[Tensor, Tensor | None]
"""Weight and bias."""
Project = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""How an input meets a weight and a bias."""
FEW_TOKENS = 8
"""Up to so many at a time, but more than one, a CPU multiplies the other way round."""


class Reader:
    """Continues cached sequences with some blocks of one submodel: `Decoder.run` and its two ends, but faster.

    To be called under `torch.inference_mode`. Weights that change in place are seen; ones that are exchanged are not.
    """

    def __init__(
        self,
        decoder: Decoder,
        submodel: Submodel,
        layers: Sequence[int] | None = None,
        *,
        embeds: bool = True,
        scores: bool = True,
        vocabulary: Int[Tensor, " words"] | None = None,
    ) -> None:
        """Bind the weights.

        Args:
            decoder: Whose.
            submodel: Its FFN sizes, one for each block of the decoder.
            layers: Which blocks, in order; all if left out.
            embeds: Whether it reads tokens; otherwise the residual stream in front of its first block.
            scores: Whether it gives logits; otherwise the residual stream behind its last block.
            vocabulary: The tokens that get logits, in this order; all if left out.
        """
        self._config = decoder.config
        self._embeds, self._scores = embeds, scores
        weights = decoder.state_dict()  # shares their memory
        head = weights["lm_head.weight"]
        self._head = head if vocabulary is None else head[vocabulary]
        self._embedding, self._norm = weights["model.embed_tokens.weight"], weights["model.norm.weight"]
        self._frequencies = decoder.frequencies(head.device)
        indices = range(decoder.config.depth) if layers is None else layers
        self._layers = [_bind(weights, index, submodel.ffn_dims[index]) for index in indices]
        self._recorded: dict[tuple[bool, bool, bool], Callable[..., Tensor]] = {}

    def __call__(self, x: Tensor, cache: KvCache) -> Float[Tensor, "batch new features"]:
        """What comes out for new tokens `[batch, new]`, or residual streams `[batch, new, width]`, of each sequence.

        Writes keys and values behind the sequences and leaves their lengths to the caller.

        Raises:
            InvalidRequest: the cache has too few slots left.
        """
        count, is_even = x.shape[1], cache.is_even
        cache.reserve(count)
        is_few = x.device.type == "cpu" and 1 < x.shape[0] * count <= FEW_TOKENS
        form = (is_even, count == 1, is_few)
        if form not in self._recorded:
            self._recorded[form] = self._record(*form)
        lengths = torch.tensor(cache.lengths[:1] if is_even else cache.lengths, device=x.device)
        seen = torch.tensor(max(cache.lengths) + count)  # never on a GPU: a slice would wait for it
        return self._recorded[form](x, lengths, seen, cache.keys, cache.values)

    def _record(self, is_even: bool, is_single: bool, is_few: bool) -> Callable[..., Tensor]:
        """Sequences of one length share one slice of slots; a single token behind such reads all it finds there."""
        project = project_few if is_few else F.linear
        config, rows, count = self._config, 2, 1 if is_single else 3
        like = self._embedding
        lengths = torch.tensor([2] if is_even else [2, 1], device=like.device)
        tokens = torch.zeros(rows, count, dtype=torch.int64, device=like.device)
        x = tokens if self._embeds else like.new_zeros(rows, count, config.width)
        shape = (config.depth, rows, config.num_kv_heads, 8, config.head_dim)
        examples = (x, lengths, torch.tensor(2 + count), like.new_zeros(shape), like.new_zeros(shape))

        def call(x: Tensor, lengths: Tensor, seen: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            positions = lengths[:, None] + torch.arange(x.shape[1], device=x.device)  # [1 or batch, new]
            slots = _Slots(keys, values, positions, seen, is_even=is_even, is_single=is_single)
            return self._forward(x, slots, project)

        weights = [self._embedding, self._head, self._norm, self._frequencies]
        weights += [tensor for layer in self._layers for tensor in layer.tensors()]
        return record(call, weights, examples)

    def _forward(self, x: Tensor, slots: "_Slots", project: Project) -> Tensor:
        hidden = F.embedding(x, self._embedding) if self._embeds else x
        angles = slots.positions[:, None, None, :, None] * self._frequencies  # [1 or batch, 1, 1, new, half]
        cos, sin = angles.cos(), angles.sin()
        turn = torch.cat([cos, cos], -1).to(hidden.dtype), torch.cat([-sin, sin], -1).to(hidden.dtype)
        for layer in self._layers:
            hidden = hidden + self._attend(layer, self._normalise(hidden, layer.norm), turn, slots, project)
            normed = self._normalise(hidden, layer.ffn_norm)
            inner = F.silu(project(normed, *layer.gate)) * project(normed, *layer.up)
            hidden = hidden + project(inner, *layer.down)
        return project(self._normalise(hidden, self._norm), self._head, None) if self._scores else hidden

    def _normalise(self, x: Tensor, gain: Tensor) -> Tensor:
        """`F.rms_norm`, which for one token takes several times as long on a CPU."""
        precision = torch.promote_types(x.dtype, torch.float32)  # of half-precision values, sums in float32
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precision)
        scale = (norm.square() / self._config.width + self._config.norm_eps).rsqrt()
        return (x * scale).to(x.dtype) * gain

    def _attend(
        self, layer: "_Layer", x: Tensor, turn: tuple[Tensor, Tensor], slots: "_Slots", project: Project
    ) -> Tensor:
        heads, dim = self._config.num_kv_heads, self._config.head_dim
        # Heads that share keys stand side by side as if they were further tokens: [batch, kv heads, group, new, dim].
        queries, keys, values = (
            project(x, *weights).unflatten(-1, (heads, -1, dim)).permute(0, 2, 3, 1, 4)
            for weights in (layer.query, layer.key, layer.value)
        )
        queries, keys = _rotate(queries, *turn), _rotate(keys, *turn)
        keys, values = slots.write(layer.place, keys.squeeze(2), values.squeeze(2))
        group = self._config.num_heads // heads
        mask = slots.mask if slots.mask is None or group == 1 else slots.mask.repeat(1, 1, group, 1)
        out = F.scaled_dot_product_attention(queries.flatten(2, 3), keys, values, attn_mask=mask)
        out = out.unflatten(2, (group, -1)).permute(0, 3, 1, 2, 4).flatten(2)  # [batch, new, heads * dim]
        return project(out, *layer.out)


def project_few(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of a few tokens on a CPU.

    For two to eight rows MKL takes twice as long as for one, although it reads the same weights, unless the weights
    stand on the left. That does not hold for weights that are wider than tall.
    """
    if weight.shape[0] < weight.shape[1]:
        return F.linear(x, weight, bias)
    rows = torch.mm(weight, x.flatten(0, 1).t()).t().contiguous()
    return (rows if bias is None else rows + bias).unflatten(0, x.shape[:2])


class _Layer(NamedTuple):
    """The weights of one block, cut to a submodel."""

    place: int
    norm: Tensor
    query: Affine
    key: Affine
    value: Affine
    out: Affine
    ffn_norm: Tensor
    gate: Affine
    up: Affine
    down: Affine

    def tensors(self) -> list[Tensor]:
        """All of them."""
        affine = (self.query, self.key, self.value, self.out, self.gate, self.up, self.down)
        return [self.norm, self.ffn_norm, *(tensor for pair in affine for tensor in pair if tensor is not None)]


class _Slots:
    """Where new tokens are written and which slots they read, for all layers."""

    def __init__(
        self, keys: Tensor, values: Tensor, positions: Tensor, seen: Tensor, *, is_even: bool, is_single: bool
    ) -> None:
        self.keys, self.values, self.positions, self.seen, self.is_even = keys, values, positions, seen, is_even
        self.mask: Tensor | None = None
        if not (is_even and is_single):
            slots = torch.arange(keys.shape[3], device=keys.device)[:seen]
            self.mask = slots <= positions[:, None, :, None]  # [1 or batch, 1, new, seen]
        self._rows = torch.arange(keys.shape[1], device=keys.device)[:, None]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store `[batch, heads, new, dim]`; returns all slots up to the longest sequence's last new token."""
        held = self.keys[layer], self.values[layer]  # [batch, heads, slots, dim]
        for slots, new in zip(held, (keys, values), strict=True):
            if self.is_even:
                slots.index_copy_(2, self.positions[0], new)
            else:
                slots.transpose(1, 2).index_put_((self._rows, self.positions), new.transpose(1, 2))
        return held[0][:, :, : self.seen], held[1][:, :, : self.seen]


def _rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Turn pairs of features, the first half with the second: `elastic.model.decoder.rotate` in fewer operations."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin)


def _bind(weights: Mapping[str, Tensor], index: int, ffn_dim: int) -> _Layer:
    """One block's weights by their names in a checkpoint, as they stand in memory."""
    of_block = f"model.layers.{index}."

    def affine(name: str, rows: int | None = None) -> Affine:
        bias = weights.get(f"{of_block}{name}.bias")
        return weights[f"{of_block}{name}.weight"][:rows], None if bias is None else bias[:rows]

    down, bias = affine("mlp.down_proj")
    return _Layer(
        place=index,
        norm=weights[f"{of_block}input_layernorm.weight"],
        query=affine("self_attn.q_proj"),
        key=affine("self_attn.k_proj"),
        value=affine("self_attn.v_proj"),
        out=affine("self_attn.o_proj"),
        ffn_norm=weights[f"{of_block}post_attention_layernorm.weight"],
        gate=affine("mlp.gate_proj", ffn_dim),
        up=affine("mlp.up_proj", ffn_dim),
        down=(down[:, :ffn_dim], bias),
    )
