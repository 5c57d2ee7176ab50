"""What a round leaves behind: the target's keys and values, no slot more than asked for, and equal random streams."""

import pytest
import torch

from elastic.lm.drafts import DraftConfig, read_prompts
from elastic.lm.generate import GenerationConfig, Generator
from elastic.lm.sampling import Chances, Sampling
from elastic.lm.speculative import Rounds
from elastic.model.cache import KvCache
from elastic.model.decoder import Decoder
from elastic.model.reader import Reader
from elastic.submodel import Submodel

SMALL, FULL = Submodel((8, 8, 8)), Submodel((128, 128, 128))
DRAFTS = {
    "shared_cache": DraftConfig(submodel=SMALL),
    "own_cache": DraftConfig(submodel=SMALL, has_own_cache=True),
    "exact_prefix": DraftConfig(submodel=Submodel((128, 8, 8))),
    "fewer_blocks": DraftConfig(submodel=SMALL, layers=(0, 2)),
}
PROMPTS = [[84, 104, 101], [97, 110, 100, 32, 116], [101]]


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def begin(taught: Decoder, config: DraftConfig | None, sampling: Sampling) -> Rounds:
    lengths = [len(prompt) - 1 for prompt in PROMPTS]
    longest = max(lengths)
    tokens = torch.tensor([[*prompt[:-1], *[0] * (longest - len(prompt) + 1)] for prompt in PROMPTS])
    cache = taught.new_cache(len(PROMPTS), num_slots=64)
    read_prompts(taught, FULL, tokens, lengths, cache)
    draft = None if config is None else config.build(taught, FULL).start(tokens, lengths, 64)
    pending = torch.tensor([prompt[-1:] for prompt in PROMPTS])
    chances = Chances([1, 2, 3], torch.device("cpu"))
    return Rounds(Reader(taught, FULL), draft, cache, pending, sampling, chances, clock=lambda: 0.0)


def committed(cache: KvCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each sequence's own tokens."""
    return [
        (cache.keys[:, row, :, :length], cache.values[:, row, :, :length]) for row, length in enumerate(cache.lengths)
    ]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_k=20)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", DRAFTS)
def test_every_committed_slot_holds_the_target_s_keys_and_values(kind: str, sampling: Sampling, taught: Decoder):
    rounds = begin(taught, DRAFTS[kind], sampling)
    rows, accepted = [list(prompt) for prompt in PROMPTS], set()
    for gamma in (3, 4, 1, 5, 2, 4):
        found = rounds.run(gamma)
        accepted |= set(found.num_accepted)
        for row, tokens in zip(rows, found.tokens, strict=True):
            row += tokens
        for row, (keys, values) in zip(rows, committed(rounds.cache), strict=True):
            cache = taught.new_cache(num_slots=64)
            taught(torch.tensor([row[:-1]]), FULL, cache)
            assert keys.shape[2] == len(row) - 1, "all but the pending token"
            torch.testing.assert_close(keys, cache.keys[:, 0, :, : len(row) - 1], rtol=0, atol=1e-5)
            torch.testing.assert_close(values, cache.values[:, 0, :, : len(row) - 1], rtol=0, atol=1e-5)
    assert len(accepted) > 2, "otherwise nothing was ragged"


def test_a_round_without_drafted_tokens_brings_one_of_each_sequence(taught: Decoder):
    rounds = begin(taught, None, Sampling())
    before = list(rounds.cache.lengths)
    found = rounds.run(0)
    assert [len(tokens) for tokens in found.tokens] == [1, 1, 1]
    assert found.num_accepted == [0, 0, 0]
    assert rounds.cache.lengths == [length + 1 for length in before]


def test_sequences_that_end_leave_the_others_as_they_were(taught: Decoder):
    for config in DRAFTS.values():
        whole, part = (begin(taught, config, Sampling()) for _ in range(2))
        whole.run(2)
        part.run(2)
        part.keep([2, 0])
        for gamma in (3, 0, 2):
            expected, found = whole.run(gamma), part.run(gamma)
            assert found.tokens == [expected.tokens[2], expected.tokens[0]]


@pytest.mark.parametrize("batch", [1, 3])
def test_drafts_on_the_target_s_cache_need_no_memory_but_their_scratch_slots(
    batch: int, taught: Decoder, monkeypatch: pytest.MonkeyPatch
):
    caches: list[KvCache] = []

    def new_cache(batch: int = 1, num_slots: int | None = None) -> KvCache:
        caches.append(Decoder.new_cache(taught, batch, num_slots))
        return caches[-1]

    monkeypatch.setattr(taught, "new_cache", new_cache)
    plain = GenerationConfig(max_new_tokens=8)
    gamma = 3
    for config in (plain, GenerationConfig(max_new_tokens=8, draft=DRAFTS["shared_cache"], gamma=gamma)):
        for _ in Generator(taught).generate(PROMPTS[:batch], config):
            pass
    assert len(caches) == 2
    slot_bytes = caches[0].num_bytes // caches[0].num_slots
    assert caches[1].num_bytes <= caches[0].num_bytes + gamma * slot_bytes
    assert caches[0].num_slots == max(map(len, PROMPTS[:batch])) - 1 + 8
