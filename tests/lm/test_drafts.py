"""What each kind of draft proposes, against the decoder's own forward pass on the text it has seen."""

import pytest
import torch

from elastic.errors import ConfigError, InvalidRequest
from elastic.lm.drafts import Draft, DraftConfig, OwnCacheDraft, PrefixDraft, most_frequent, read_prompts
from elastic.model.cache import KvCache
from elastic.model.decoder import Decoder
from elastic.model.reader import Reader
from elastic.submodel import Submodel

SMALL, FULL = Submodel((8, 8, 8)), Submodel((128, 128, 128))
ROWS = torch.tensor([[84, 104, 101, 32, 99, 97], [97, 110, 100, 32, 116, 104]])


def begin(taught: Decoder, config: DraftConfig, lengths: tuple[int, int] = (5, 5)) -> tuple[Draft, KvCache]:
    """A draft behind the first tokens of both rows, which the target has read."""
    cache = taught.new_cache(2, num_slots=16)
    read_prompts(taught, FULL, ROWS[:, :5], lengths, cache)
    return config.build(taught, FULL).start(ROWS[:, :5], lengths, 16), cache


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def test_a_draft_reads_what_the_target_wrote(taught: Decoder):
    draft, cache = begin(taught, DraftConfig(submodel=SMALL))
    expected = taught.logits(taught.run(taught.embed(ROWS[:, 5:]), SMALL, cache))[:, -1]
    torch.testing.assert_close(draft.step(ROWS[:, 5:], cache), expected, rtol=0, atol=1e-5)
    alone = taught(ROWS, SMALL)[:, -1]
    assert (expected - alone).abs().max() > 1e-3, "with its own keys and values it would say something else"


def test_a_draft_with_its_own_cache_is_the_submodel_alone(taught: Decoder):
    draft, cache = begin(taught, DraftConfig(submodel=SMALL, has_own_cache=True))
    before = cache.keys.clone()
    torch.testing.assert_close(draft.step(ROWS[:, 5:], cache), taught(ROWS, SMALL)[:, -1], rtol=0, atol=1e-5)
    assert torch.equal(cache.keys, before)


@pytest.mark.parametrize("drafted", [0, 2])
def test_its_own_cache_follows_what_was_accepted(drafted: int, taught: Decoder):
    draft, cache = begin(taught, DraftConfig(submodel=SMALL, has_own_cache=True), lengths=(5, 3))
    texts = [ROWS[0, :5].tolist(), ROWS[1, :3].tolist()]
    pending = torch.tensor([[65], [66]])
    for counts in (torch.tensor([0, drafted]), torch.tensor([drafted, 0])):
        tokens = torch.cat([pending, torch.tensor([[70, 71], [72, 73]])[:, :drafted]], dim=1)
        for place in range(drafted):
            draft.step(tokens[:, place : place + 1], cache)
        draft.settle(tokens, counts)
        for text, row, count in zip(texts, tokens.tolist(), counts.tolist(), strict=True):
            text += row[: count + 1]
        pending = pending + 1
    found = draft.step(pending, cache)
    for row, text in enumerate(texts):
        expected = taught(torch.tensor([[*text, int(pending[row])]]), SMALL)[0, -1]
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-5)


def test_verification_starts_behind_the_blocks_that_the_draft_ran_whole(taught: Decoder):
    draft, cache = begin(taught, DraftConfig(submodel=Submodel((128, 128, 8))), lengths=(5, 4))
    tokens = torch.tensor([[65, 66, 67], [68, 69, 70]])
    starts = list(cache.lengths)
    for place in range(2):
        draft.step(tokens[:, place : place + 1], cache)
        cache.advance(1)
    cache.rewind(starts)
    expected_cache = cache.keep([0, 1])
    target = Reader(taught, FULL)
    expected = target(tokens, expected_cache)
    cache.keys[0, 0, :, :5] += 9  # would show if the first block were run again on drafted tokens
    found = draft.verify(target, tokens, cache)
    torch.testing.assert_close(found[:, :2], expected[:, :2], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-5)
    assert (found[0, 2] - expected[0, 2]).abs().max() > 1e-3, "the last token has yet to go through every block"


def test_a_short_vocabulary_is_spread_over_all_tokens(taught: Decoder):
    draft, cache = begin(taught, DraftConfig(submodel=SMALL, vocabulary=(32, 101, 97)))
    logits = draft.step(ROWS[:, 5:], cache)
    full = Reader(taught, SMALL)(ROWS[:, 5:], cache)[:, -1]
    torch.testing.assert_close(logits, full[:, [32, 101, 97]], rtol=0, atol=1e-5)
    assert draft.tokens(torch.tensor([2, 0])).tolist() == [97, 32]
    spread = draft.spread(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]))
    assert spread.shape == (2, 128)
    assert spread[:, [32, 101, 97]].sum() == spread.sum()
    assert spread[1, 97] == pytest.approx(0.7)


def test_the_most_frequent_tokens_are_counted():
    assert most_frequent([5, 3, 5, 9, 9, 5, 2, 9], 2) == (5, 9)
    assert most_frequent([5, 3], 9) == (3, 5)


def test_the_kind_follows_from_the_configuration(taught: Decoder):
    kinds = {
        DraftConfig(submodel=SMALL): Draft,
        DraftConfig(submodel=Submodel((128, 8, 8))): PrefixDraft,
        DraftConfig(submodel=Submodel((128, 8, 8)), layers=(1, 2)): Draft,
        DraftConfig(submodel=Submodel((8, 8, 128))): Draft,
        DraftConfig(submodel=Submodel((128, 8, 8)), has_own_cache=True): OwnCacheDraft,
    }
    assert {config: type(config.build(taught, FULL)) for config in kinds} == kinds


def test_a_decoder_that_is_not_the_target_s_can_draft_too(taught: Decoder):
    draft = OwnCacheDraft(taught, SMALL).start(ROWS[:, :5], (5, 5), 16)
    found = draft.step(ROWS[:, 5:], taught.new_cache(2))
    torch.testing.assert_close(found, taught(ROWS, SMALL)[:, -1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (DraftConfig(submodel=Submodel((7, 7, 7))), "not trained"),
        (DraftConfig(submodel=SMALL, layers=(1, 0)), "layers"),
        (DraftConfig(submodel=SMALL, layers=()), "layers"),
        (DraftConfig(submodel=SMALL, layers=(0, 3)), "layers"),
        (DraftConfig(submodel=SMALL, vocabulary=()), "vocabulary"),
        (DraftConfig(submodel=SMALL, vocabulary=(1, 128)), "vocabulary"),
    ],
)
def test_what_the_decoder_has_not_is_refused(config: DraftConfig, problem: str, taught: Decoder):
    with pytest.raises((InvalidRequest, ConfigError), match=problem):
        config.check(taught)
