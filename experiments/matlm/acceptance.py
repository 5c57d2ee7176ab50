"""How many of a draft's tokens the target accepts: a nested draft against one that was trained alone.

Acceptance does not depend on the machine, the time that a draft takes does; `benchmarks/speculative.py` measures both.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from elastic.lm.drafts import Draft, DraftConfig, OwnCacheDraft
from elastic.lm.generate import GenerationConfig, Generator
from elastic.lm.sampling import Sampling
from elastic.model.decoder import Decoder
from elastic.submodel import Submodel
from experiments.harness import Metrics

GAMMA = 4
PROMPTS = 32
SAMPLINGS = {"greedy": Sampling(), "sampled": Sampling(temperature=1.0)}


def of_nested(decoder: Decoder, draft: Submodel, blocks: Sequence[Tensor]) -> Metrics:
    """Of a submodel that drafts for its own XL, reading the target's cache, and with a cache of its own."""
    found: Metrics = {}
    for name, own in (("shared", False), ("own", True)):
        found |= {
            f"acceptance/{kind}/{name}": value
            for kind, value in _rates(decoder, DraftConfig(submodel=draft, has_own_cache=own), blocks)
        }
    return found


def of_independent(target: Decoder, draft: Decoder, blocks: Sequence[Tensor]) -> Metrics:
    """Of a model that was trained alone, drafting for another one."""
    rates = _rates(target, OwnCacheDraft(draft, draft.space.full), blocks)
    return {f"acceptance/{kind}/own": value for kind, value in rates}


def _rates(target: Decoder, draft: DraftConfig | Draft, blocks: Sequence[Tensor]) -> Iterator[tuple[str, float]]:
    """Accepted tokens over drafted tokens, greedily and at temperature 1."""
    length = target.config.max_tokens // 4  # of the prompts, and of what follows
    rows = [row[:length].tolist() for batch in blocks for row in batch][:PROMPTS]
    for kind, sampling in SAMPLINGS.items():
        config = GenerationConfig(max_new_tokens=length, sampling=sampling, draft=draft, gamma=GAMMA)
        generation = Generator(target).generate(rows, config)
        for _ in generation:
            pass
        yield kind, generation.statistics.acceptance_rate
