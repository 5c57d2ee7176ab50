"""Speculative decoding is plain decoding, only in other steps: for every kind of draft, batch and end."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import transformers

from elastic.errors import ConfigError, ElasticError, InvalidRequest
from elastic.lm.drafts import DraftConfig, OwnCacheDraft
from elastic.lm.generate import Generation, GenerationConfig, Generator
from elastic.lm.sampling import Sampling
from elastic.model.decoder import Decoder
from elastic.submodel import Submodel

CONFIG = GenerationConfig(max_new_tokens=16)
SMALL, FULL = Submodel((8, 8, 8)), Submodel((128, 128, 128))
DRAFTS = {
    "shared_cache": DraftConfig(submodel=SMALL),
    "own_cache": DraftConfig(submodel=SMALL, has_own_cache=True),
    "exact_prefix": DraftConfig(submodel=Submodel((128, 8, 8))),
    "fewer_blocks": DraftConfig(submodel=SMALL, layers=(0, 2)),
    "fewer_blocks_behind_a_prefix": DraftConfig(submodel=Submodel((128, 128, 8)), layers=(0, 2)),
    "fewer_words": DraftConfig(submodel=Submodel((16, 16, 16)), vocabulary=tuple(range(97, 123))),
    "everything_own": DraftConfig(submodel=SMALL, layers=(0, 1), vocabulary=(32, 97, 101), has_own_cache=True),
}


def collect(generation: Generation, count: int) -> list[list[int]]:
    """All tokens of each sequence."""
    rows: list[list[int]] = [[] for _ in range(count)]
    for step in generation:
        for row, tokens in zip(rows, step.tokens, strict=True):
            row += tokens
    return rows


def continue_in_batches(
    generator: Generator, prompts: Sequence[list[int]], config: GenerationConfig, batch: int
) -> tuple[list[list[int]], float]:
    """All continuations, and the acceptance rate."""
    rows, accepted, drafted = [], 0, 0
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generation = generator.generate(part, config)
        rows += collect(generation, len(part))
        accepted += generation.statistics.num_accepted_tokens
        drafted += generation.statistics.num_draft_tokens
    return rows, accepted / max(1, drafted)


@pytest.fixture(scope="module")
def generator(taught: Decoder) -> Generator:
    return Generator(taught)


@pytest.fixture(scope="module")
def plain(generator: Generator, prompts: list[list[int]]) -> list[list[int]]:
    return continue_in_batches(generator, prompts, CONFIG, 1)[0]


def test_plain_decoding_is_the_best_token_of_the_whole_text_again_and_again(
    taught: Decoder, prompts: list[list[int]], plain: list[list[int]]
):
    for prompt, continuation in list(zip(prompts, plain, strict=True))[:20]:
        tokens = list(prompt)
        for _ in range(CONFIG.max_new_tokens):
            tokens.append(int(taught(torch.tensor([tokens]), FULL)[0, -1].argmax()))
        assert tokens[len(prompt) :] == continuation


@pytest.mark.parametrize("batch", [1, 7, 40])
@pytest.mark.parametrize("kind", DRAFTS)
def test_greedy_tokens_are_those_of_plain_decoding(
    kind: str, batch: int, generator: Generator, prompts: list[list[int]], plain: list[list[int]]
):
    if kind != "shared_cache":  # one kind gets all of them in every batch; small batches take long
        count = {1: 25, 7: 70, 40: 200}[batch]
        prompts, plain = prompts[:count], plain[:count]
    found, rate = continue_in_batches(generator, prompts, replace(CONFIG, draft=DRAFTS[kind], gamma=3), batch)
    assert len(found) == len(prompts) >= 25
    assert found == plain
    assert 0.05 < rate < 0.95, "otherwise only one side of the rule was tested"


@pytest.mark.parametrize("gamma", [0, 1, 8, "auto"])
def test_greedy_tokens_do_not_depend_on_how_many_are_drafted(
    gamma: int | str, generator: Generator, prompts: list[list[int]], plain: list[list[int]]
):
    config = replace(CONFIG, draft=DRAFTS["own_cache"], gamma=gamma)
    assert continue_in_batches(generator, prompts[:60], config, 3)[0] == plain[:60]


def test_greedy_tokens_are_those_of_transformers(
    taught: Decoder, generator: Generator, prompts: list[list[int]], plain: list[list[int]]
):
    config = taught.config
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.ffn_dims[-1],
            max_position_embeddings=config.max_tokens,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_theta": config.rope_theta, "rope_type": "default"},
            tie_word_embeddings=config.tied,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    llama.load_state_dict(taught.state_dict())
    for prompt, continuation in list(zip(prompts, plain, strict=True))[:40]:
        tokens = torch.tensor([prompt])
        found = llama.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=16, do_sample=False, pad_token_id=0
        )
        assert found[0, len(prompt) :].tolist() == continuation


def test_other_weights_can_draft_too(taught: Decoder, generator: Generator, prompts: list[list[int]]):
    other = copy.deepcopy(taught)
    for parameter in other.parameters():
        parameter.mul_(1.02)
    config = replace(CONFIG, draft=OwnCacheDraft(other, SMALL), gamma=3)
    found, rate = continue_in_batches(generator, prompts[:40], config, 4)
    assert found == continue_in_batches(generator, prompts[:40], CONFIG, 4)[0]
    assert 0.05 < rate < 0.95


def test_a_draft_that_is_the_target_is_always_accepted(generator: Generator, prompts: list[list[int]]):
    draft = DraftConfig(submodel=FULL)
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        config = replace(CONFIG, draft=draft, gamma=4, sampling=sampling)
        assert continue_in_batches(generator, prompts[:40], config, 5)[1] == 1


def test_a_smaller_target_is_decoded_as_exactly(generator: Generator, prompts: list[list[int]]):
    config = replace(CONFIG, target=Submodel((32, 32, 32)))
    expected = continue_in_batches(generator, prompts[:60], config, 1)[0]
    found, rate = continue_in_batches(generator, prompts[:60], replace(config, draft=DRAFTS["shared_cache"]), 4)
    assert found == expected
    assert expected != continue_in_batches(generator, prompts[:60], CONFIG, 1)[0]
    assert 0 < rate < 1


def test_an_end_inside_a_draft_ends_the_sequence_there(
    generator: Generator, prompts: list[list[int]], plain: list[list[int]]
):
    space = 32
    expected = [row[: row.index(space) + 1] if space in row else row for row in plain]
    config = replace(CONFIG, draft=DRAFTS["shared_cache"], gamma=5, eos=(space,))
    assert continue_in_batches(generator, prompts, config, 8)[0] == expected
    inside = 0
    for step in generator.generate(prompts[:40], config):
        for tokens, finished, accepted in zip(step.tokens, step.finished, step.num_accepted_tokens, strict=True):
            assert (finished == "eos") >= (space in tokens)
            inside += bool(tokens) and tokens[-1] == space and len(tokens) <= accepted
    assert inside > 0, "no draft ran beyond an end"


@pytest.mark.parametrize("max_new_tokens", [1, 2, 5])
def test_no_more_tokens_come_than_asked_for(
    max_new_tokens: int, generator: Generator, prompts: list[list[int]], plain: list[list[int]]
):
    config = replace(CONFIG, max_new_tokens=max_new_tokens, draft=DRAFTS["shared_cache"], gamma=4)
    expected = [row[:max_new_tokens] for row in plain]
    assert continue_in_batches(generator, prompts, config, 9)[0] == expected


def test_a_sequence_can_be_stopped_between_steps(
    generator: Generator, prompts: list[list[int]], plain: list[list[int]]
):
    generation = generator.generate(prompts[:3], replace(CONFIG, draft=DRAFTS["own_cache"], gamma=2))
    rows = [list(tokens) for tokens in next(generation).tokens]
    generation.stop(1)
    length = len(rows[1])
    for step in generation:
        assert step.finished[1] == "stopped"
        for row, tokens in zip(rows, step.tokens, strict=True):
            row += tokens
    assert [rows[0], rows[2]] == [plain[0], plain[2]]
    assert len(rows[1]) == length


def test_two_generations_can_take_turns(generator: Generator, prompts: list[list[int]], plain: list[list[int]]):
    for kind in ("own_cache", "exact_prefix"):
        config = replace(CONFIG, draft=DRAFTS[kind], gamma=2)
        turns = [generator.generate([prompt], config) for prompt in prompts[:2]]
        rows: list[list[int]] = [[], []]
        while any(len(row) < CONFIG.max_new_tokens for row in rows):
            for row, generation in zip(rows, turns, strict=True):
                row += next(generation).tokens[0] if len(row) < CONFIG.max_new_tokens else []
        assert rows == plain[:2]


@pytest.mark.parametrize("kind", ["shared_cache", "own_cache", "fewer_words"])
def test_sampled_tokens_have_the_target_s_joint_distribution(kind: str, taught: Decoder, generator: Generator):
    """Total variation of two tokens, on the few that top-k leaves, from 20,000 draws."""
    sampling, prompt, count = Sampling(temperature=0.9, top_k=4), [116, 104], 20_000
    config = GenerationConfig(max_new_tokens=2, sampling=sampling, draft=DRAFTS[kind], gamma=1)
    found = torch.zeros(128, 128, dtype=torch.float64)
    rate = 0.0
    for seed in range(4):
        generation = generator.generate([prompt] * (count // 4), replace(config, seed=seed))
        for first, second in collect(generation, count // 4):
            found[first, second] += 1 / count
        rate += generation.statistics.acceptance_rate / 4
    first = sampling.probabilities(taught(torch.tensor([prompt]), FULL)[0, -1])
    each = torch.cat([torch.tensor([prompt]).expand(128, -1), torch.arange(128)[:, None]], dim=1)
    expected = first[:, None] * sampling.probabilities(taught(each, FULL)[:, -1])
    # Of an n-fold draw E|f - p| <= sqrt(p (1 - p) / n) for each cell, and half their sum is the distance's mean bound;
    # it exceeds its mean by t with probability <= exp(-2 n t^2): 0.02 once in nine million.
    bound = (expected * (1 - expected) / count).sqrt().sum() / 2 + 0.02
    assert (found - expected).abs().sum() / 2 < bound
    assert 0.05 < rate < 0.98


@pytest.mark.parametrize("kind", ["shared_cache", "own_cache"])
def test_the_same_seed_gives_the_same_tokens_whoever_is_beside(kind: str, taught: Decoder, prompts: list[list[int]]):
    # In float64: what a product over more rows rounds differently does not reach a decision.
    generator = Generator(copy.deepcopy(taught).double())
    config = replace(CONFIG, sampling=Sampling(temperature=1.0), draft=DRAFTS[kind], gamma=3)
    together = collect(generator.generate(prompts[:20], config, seeds=range(20)), 20)
    for row in range(20):
        alone = collect(generator.generate(prompts[row : row + 1], config, seeds=[row]), 1)
        assert alone == together[row : row + 1]
    assert collect(generator.generate(prompts[:20], config, seeds=range(20, 40)), 20) != together


def test_what_lies_behind_a_sequence_s_end_was_not_drafted(generator: Generator, prompts: list[list[int]]):
    config = replace(CONFIG, draft=DRAFTS["shared_cache"], gamma=5)
    remaining = [CONFIG.max_new_tokens] * 10
    for step in generator.generate(prompts[:10], config):
        for row, tokens in enumerate(step.tokens):
            assert step.num_draft_tokens[row] <= max(0, remaining[row] - 1)
            assert len(tokens) == (step.num_accepted_tokens[row] + 1 if remaining[row] else 0)
            remaining[row] -= len(tokens)
    assert remaining == [0] * 10


def test_the_same_configuration_gives_the_same_tokens(generator: Generator, prompts: list[list[int]]):
    config = replace(CONFIG, sampling=Sampling(temperature=1.0), draft=DRAFTS["shared_cache"], gamma=2)
    assert collect(generator.generate(prompts[:3], config), 3) == collect(generator.generate(prompts[:3], config), 3)


def test_counts_add_up(generator: Generator, prompts: list[list[int]]):
    generation = generator.generate(prompts[:20], replace(CONFIG, draft=DRAFTS["shared_cache"], gamma=3))
    steps = list(generation)
    counts = generation.statistics
    assert counts.num_tokens == 20 * 16 == sum(len(row) for step in steps for row in step.tokens)
    assert counts.num_accepted_tokens == sum(counts.num_accepted_tokens_per_position)
    assert counts.num_accepted_tokens == sum(sum(step.num_accepted_tokens) for step in steps)
    assert counts.acceptance_rate == counts.num_accepted_tokens / counts.num_draft_tokens
    assert counts.mean_acceptance_length == 1 + counts.num_accepted_tokens / counts.num_drafts
    assert counts.tokens_per_s == pytest.approx(320 / sum(step.seconds for step in steps))


def test_time_is_taken_from_the_generator_s_clock(taught: Decoder, prompts: list[list[int]]):
    ticks = iter(range(10**6))
    generation = Generator(taught, clock=lambda: float(next(ticks))).generate(prompts[:1], CONFIG)
    assert {step.seconds for step in generation} == {generation.statistics.seconds / CONFIG.max_new_tokens}


def test_the_cost_of_a_draft_is_its_pass_in_passes_of_the_target(taught: Decoder, prompts: list[list[int]]):
    ticks = iter(range(10**6))
    generator = Generator(taught, clock=lambda: float(next(ticks)))
    generation = generator.generate(prompts[:1], replace(CONFIG, draft=DRAFTS["shared_cache"], gamma=3))
    steps = [step for step in generation if step.num_draft_tokens[0]]
    draft_s, verify_s = sum(step.draft_s for step in steps), sum(step.verify_s for step in steps)
    drafted = sum(step.num_draft_tokens[0] for step in steps)
    assert draft_s > 0 and verify_s > 0
    assert generation.statistics.draft_cost == pytest.approx((draft_s / drafted) / (verify_s / len(steps)))


@pytest.mark.parametrize(
    ("prompts", "config", "problem"),
    [
        ([], CONFIG, "none were given"),
        ([[1], []], CONFIG, r"prompts\[1\]: holds no token"),
        ([[128]], CONFIG, "outside the vocabulary of 128"),
        ([[1] * 500], CONFIG, "500 tokens and 16 new ones are more than the model's 512"),
        ([[1]], replace(CONFIG, target=Submodel((9, 9, 9))), "not trained"),
        ([[1]], replace(CONFIG, draft=DraftConfig(submodel=Submodel((8, 8)))), "2 layers"),
        ([[1]], replace(CONFIG, draft=replace(DRAFTS["fewer_blocks"], layers=(1, 3))), "must ascend"),
        ([[1]], replace(CONFIG, draft=replace(DRAFTS["fewer_words"], vocabulary=(5, 5))), "different tokens"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is(
    prompts: list[list[int]], config: GenerationConfig, problem: str, generator: Generator
):
    with pytest.raises(ElasticError, match=problem) as refused:
        generator.generate(prompts, config)
    assert isinstance(refused.value, InvalidRequest | ConfigError)


@pytest.mark.parametrize(("field", "value"), [("max_new_tokens", 0), ("gamma", -1), ("gamma", 17)])
def test_numbers_without_a_meaning_are_refused(field: str, value: int):
    with pytest.raises(ConfigError, match=field):
        replace(CONFIG, **{field: value})
