"""What proposes tokens to the target: a submodel of the same weights, made cheaper still in ways that cost no truth.

Whatever a draft does only changes what it proposes; `elastic.lm.acceptance` keeps the output the target's. A draft
reads the target's keys and values where it can: those of a submodel have the same shape, and behind the sequences there
are slots to scribble on, which verification overwrites. That saves a second cache and reading the prompt twice.

Source: MatFormer (arXiv 2310.07707) section 4.1.2 (drafts from the same weights, shared cache); Draft & Verify (arXiv
2309.08168) for skipped blocks; LayerSkip (arXiv 2404.16710) section 4.3.2 for what a shared prefix of blocks need not
compute twice.
"""

import copy
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from elastic.errors import ConfigError
from elastic.model.cache import KvCache
from elastic.model.decoder import Decoder
from elastic.model.reader import Reader
from elastic.submodel import Submodel


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftConfig:
    """A draft made of the target's own weights."""

    submodel: Submodel
    """Its FFN sizes. Where the first blocks have the target's, the target does not run them again on drafted tokens."""
    layers: tuple[int, ...] | None = None
    """Blocks that it runs, ascending; all if left out."""
    vocabulary: tuple[int, ...] | None = None
    """Tokens that it can propose, so that it reads only these rows of the head; all if left out."""
    has_own_cache: bool = False
    """Whether it keeps keys and values of its own and reads the prompt itself, and not the target's."""

    def check(self, decoder: Decoder) -> None:
        """Accept what the decoder can run.

        Raises:
            InvalidRequest: the submodel is not one of the decoder's.
            ConfigError: blocks or tokens that do not exist.
        """
        config = decoder.config
        decoder.space.check(self.submodel)
        if self.layers is not None and not _ascend(self.layers, config.depth):
            raise ConfigError("draft.layers", self.layers, f"must ascend from 0 at most to {config.depth - 1}")
        if self.vocabulary is not None and not _ascend(sorted(self.vocabulary), config.vocab_size):
            rule = f"must be different tokens from 0 to {config.vocab_size - 1}"
            raise ConfigError("draft.vocabulary", f"{len(self.vocabulary)} tokens", rule)

    def build(self, decoder: Decoder, target: Submodel) -> "Draft":
        """The draft for one target."""
        device = decoder.model.embed_tokens.weight.device
        words = None if self.vocabulary is None else torch.tensor(self.vocabulary, device=device)
        layers = tuple(range(decoder.config.depth)) if self.layers is None else self.layers
        if self.has_own_cache:
            return OwnCacheDraft(decoder, self.submodel, layers, words)
        prefix = 0
        while prefix < len(layers) and layers[prefix] == prefix and self._is_exact(prefix, target):
            prefix += 1
        if prefix:
            return PrefixDraft(decoder, self.submodel, target, layers, prefix, words)
        return Draft(Reader(decoder, self.submodel, layers, vocabulary=words), decoder.config.vocab_size, words)

    def _is_exact(self, layer: int, target: Submodel) -> bool:
        return self.submodel.ffn_dims[layer] == target.ffn_dims[layer]


class Draft:
    """Proposes one token after another behind the target's own cached sequences."""

    def __init__(self, reader: Reader, vocab_size: int, words: Int[Tensor, " words"] | None = None) -> None:
        self._reader, self._vocab_size, self._words = reader, vocab_size, words

    def start(self, prompts: Int[Tensor, "batch longest"], lengths: Sequence[int], num_slots: int) -> "Draft":
        """One for a batch whose target's cache holds the first tokens of each row, as many as `lengths` says."""
        return copy.copy(self)

    def step(self, tokens: Int[Tensor, "batch 1"], cache: KvCache) -> Float[Tensor, "batch words"]:
        """Logits of what follows the next token of each sequence of the target's cache, over its own vocabulary."""
        return self._reader(tokens, cache)[:, -1]

    def verify(
        self, target: Reader, tokens: Int[Tensor, "batch gamma_and_one"], cache: KvCache
    ) -> Float[Tensor, "batch gamma_and_one vocab"]:
        """The target's logits behind the token that was pending and each drafted one."""
        return target(tokens, cache)

    def settle(self, tokens: Int[Tensor, "batch gamma_and_one"], num_accepted: Int[Tensor, " batch"]) -> None:
        """Take in a round: of each row the first token and the accepted ones behind it now belong to the sequence."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with only these sequences."""

    def tokens(self, words: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """From places in its vocabulary to tokens."""
        return words if self._words is None else self._words[words]

    def spread(self, probabilities: Float[Tensor, "batch words"]) -> Float[Tensor, "batch vocab"]:
        """From a distribution over its vocabulary to one over all tokens."""
        if self._words is None:
            return probabilities
        full = probabilities.new_zeros(len(probabilities), self._vocab_size)
        full[:, self._words] = probabilities
        return full


class OwnCacheDraft(Draft):
    """Keeps its own keys and values; also what a draft of other weights would have to do."""

    def __init__(
        self,
        decoder: Decoder,
        submodel: Submodel,
        layers: Sequence[int] | None = None,
        words: Int[Tensor, " words"] | None = None,
    ) -> None:
        super().__init__(Reader(decoder, submodel, layers, vocabulary=words), decoder.config.vocab_size, words)
        self._decoder, self._submodel, self._layers = decoder, submodel, layers
        self._cache: KvCache
        self._unread: Tensor

    def start(self, prompts: Int[Tensor, "batch longest"], lengths: Sequence[int], num_slots: int) -> "Draft":
        """Read the prompts into a cache of its own."""
        started = copy.copy(self)
        started._cache = self._decoder.new_cache(len(prompts), num_slots)
        started._unread = prompts[:, :0]
        read_prompts(self._decoder, self._submodel, prompts, lengths, started._cache, self._layers)
        return started

    def step(self, tokens: Int[Tensor, "batch 1"], cache: KvCache) -> Float[Tensor, "batch words"]:
        """Read what it missed, then as any draft."""
        tokens, self._unread = torch.cat([self._unread, tokens], dim=1), tokens[:, :0]
        logits = self._reader(tokens, self._cache)[:, -1]
        self._cache.advance(tokens.shape[1])
        return logits

    def settle(self, tokens: Int[Tensor, "batch gamma_and_one"], num_accepted: Int[Tensor, " batch"]) -> None:
        """Keep what stands, but for its last token: a draft never read the last one it proposed."""
        drafted = tokens.shape[1] - 1
        if drafted:
            read = [length - drafted for length in self._cache.lengths]
            self._cache.rewind([start + count for start, count in zip(read, num_accepted.tolist(), strict=True)])
        last = tokens.gather(1, num_accepted[:, None])
        self._unread = torch.cat([self._unread, last], dim=1)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with only these sequences."""
        self._cache, self._unread = self._cache.keep(rows), self._unread[list(rows)]


class PrefixDraft(Draft):
    """Begins with whole blocks of the target, whose keys, values and residual stream verification takes over."""

    def __init__(
        self,
        decoder: Decoder,
        submodel: Submodel,
        target: Submodel,
        layers: Sequence[int],
        prefix: int,
        words: Tensor | None,
    ) -> None:
        rest = Reader(decoder, submodel, layers[prefix:], embeds=False, vocabulary=words)
        super().__init__(rest, decoder.config.vocab_size, words)
        self._prefix = Reader(decoder, target, range(prefix), scores=False)
        self._target_rest = Reader(decoder, target, range(prefix, decoder.config.depth), embeds=False)
        self._hidden: list[Tensor] = []

    def start(self, prompts: Int[Tensor, "batch longest"], lengths: Sequence[int], num_slots: int) -> "Draft":
        """One with nothing remembered."""
        started = copy.copy(self)
        started._hidden = []
        return started

    def step(self, tokens: Int[Tensor, "batch 1"], cache: KvCache) -> Float[Tensor, "batch words"]:
        """As any draft, and remember what the target will ask for."""
        self._hidden.append(self._prefix(tokens, cache))
        return self._reader(self._hidden[-1], cache)[:, -1]

    def verify(
        self, target: Reader, tokens: Int[Tensor, "batch gamma_and_one"], cache: KvCache
    ) -> Float[Tensor, "batch gamma_and_one vocab"]:
        """Only the last token has not been through the first blocks."""
        starts, drafted = cache.lengths, tokens.shape[1] - 1
        cache.advance(drafted)
        self._hidden.append(self._prefix(tokens[:, -1:], cache))
        cache.rewind(starts)
        hidden, self._hidden = torch.cat(self._hidden, dim=1), []
        return self._target_rest(hidden, cache)


def most_frequent(tokens: Iterable[int], count: int) -> tuple[int, ...]:
    """The tokens that occur most often, ascending; fewer than `count` if there are no more."""
    return tuple(sorted(token for token, _ in Counter(tokens).most_common(count)))


def read_prompts(
    decoder: Decoder,
    submodel: Submodel,
    prompts: Int[Tensor, "batch longest"],
    lengths: Sequence[int],
    cache: KvCache,
    layers: Sequence[int] | None = None,
) -> None:
    """Fill an empty cache with the first tokens of each row, as many as `lengths` says."""
    if prompts.shape[1]:
        decoder.run(decoder.embed(prompts), submodel, cache, layers)
        cache.advance(prompts.shape[1])
        cache.rewind(lengths)


def _ascend(numbers: Sequence[int], end: int) -> bool:
    inside = all(0 <= number < end for number in numbers)
    return inside and bool(numbers) and all(a < b for a, b in itertools.pairwise(numbers))
