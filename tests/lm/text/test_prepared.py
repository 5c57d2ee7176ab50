import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from elastic.errors import ConfigError, DataError
from elastic.lm.text.documents import is_held_out
from elastic.lm.text.prepared import PreparedText

from .conftest import LINES

Make = Callable[..., PreparedText]


def test_a_batch_is_blocks_of_one_token_more(make_prepared: Make):
    batch = make_prepared(block_size=16, batch_size=4).batch(0)
    assert batch.shape == (4, 17)
    assert batch.dtype == torch.int64


@pytest.mark.parametrize("world", [2, 4])
def test_workers_share_the_batch_that_one_alone_would_get(make_prepared: Make, world: int):
    prepared = make_prepared()
    parts = [prepared.batch(9, rank=rank, world=world) for rank in range(world)]
    assert torch.equal(torch.cat(parts), prepared.batch(9))


def test_a_batch_that_does_not_divide_is_refused(make_prepared: Make):
    with pytest.raises(ConfigError, match=r"text\.batch_size=4: must be a multiple of 3 workers"):
        make_prepared().batch(0, rank=0, world=3)


def test_resuming_gives_what_an_uninterrupted_run_would_have_given(make_prepared: Make):
    uninterrupted = make_prepared()
    batches = [uninterrupted.batch(step) for step in range(60)]
    resumed = make_prepared()
    assert all(torch.equal(resumed.batch(step), batches[step]) for step in range(35, 60))


def test_another_seed_gives_another_order(make_prepared: Make):
    assert not torch.equal(make_prepared(seed=1).batch(0), make_prepared(seed=2).batch(0))


def test_pickling_moves_the_path_and_no_tokens(make_prepared: Make):
    prepared = make_prepared()
    payload = pickle.dumps(prepared)
    assert len(payload) < 1000
    assert torch.equal(pickle.loads(payload).batch(7), prepared.batch(7))


def test_training_blocks_hold_training_documents_only_and_all_of_them(make_prepared: Make):
    prepared = make_prepared(block_size=16, batch_size=4)
    steps = -(-2 * prepared.num_train_tokens // prepared.tokens_per_step)
    shown = torch.cat([prepared.batch(step) for step in range(steps)])
    # An epoch later every document was in some block, or cut in two by neighbours.
    text = prepared.tokenizer.decode_batch(shown.tolist())
    numbers = {n for n in range(60) if any(f"document {n} tells" in block for block in text)}
    held_out = {n for n in range(60) if is_held_out(f"d{n}", 0.2, 0)}
    assert 5 < len(held_out) < 20
    assert not numbers & held_out
    assert len(numbers) > 0.8 * (60 - len(held_out))


def test_validation_is_whole_blocks_of_the_held_out_documents(make_prepared: Make):
    prepared = make_prepared(block_size=16)
    batches = list(prepared.validation(3))
    blocks = torch.cat(batches)
    assert [len(batch) for batch in batches[:-1]] == [3] * (len(batches) - 1)
    assert len(blocks) == (prepared.num_validation_tokens - 1) // 16
    assert torch.equal(blocks[1:, 0], blocks[:-1, -1])
    stream = torch.cat([blocks[:, :-1].flatten(), blocks[-1, -1:]]).tolist()
    whole = prepared.tokenizer.decode(stream, skip_special_tokens=False).split("<|endoftext|>")[:-1]
    held_out = {text for n, text in enumerate(LINES) if is_held_out(f"d{n}", 0.2, 0)}
    assert len(whole) >= len(held_out) - 1
    assert set(whole) <= held_out


def test_validation_does_not_depend_on_the_run_or_the_batch_size(make_prepared: Make):
    one, other = make_prepared(seed=1).validation(2), make_prepared(seed=2, batch_size=8).validation(5)
    assert torch.equal(torch.cat(list(one)), torch.cat(list(other)))


def test_validation_text_shorter_than_a_block_is_an_error(make_prepared: Make):
    with pytest.raises(DataError, match=r"fewer than a block of 100001; add documents"):
        make_prepared(block_size=100_000).validation(2)


def test_counts_of_tokens_and_bytes_are_those_of_the_text(make_prepared: Make):
    prepared = make_prepared()
    held_out = [text for n, text in enumerate(LINES) if is_held_out(f"d{n}", 0.2, 0)]
    encoded = prepared.tokenizer.encode_batch(LINES)
    num_tokens = sum(len(found.ids) + 1 for found in encoded)
    assert prepared.num_train_tokens + prepared.num_validation_tokens == num_tokens
    per_token = sum(map(len, held_out)) / prepared.num_validation_tokens
    assert prepared.validation_bytes_per_token == pytest.approx(per_token)
    assert prepared.tokenizer.id_to_token(prepared.end_of_text) == "<|endoftext|>"


def test_a_folder_that_is_not_there_says_what_to_do(tmp_path: Path):
    with pytest.raises(DataError, match="is not a folder of prepared text on this machine; copy the folder here"):
        PreparedText.load(tmp_path / "nothing")


def test_a_damaged_or_foreign_manifest_is_an_error(make_prepared: Make):
    folder = make_prepared().folder
    fields = json.loads((folder / "text.json").read_text())
    (folder / "text.json").write_text(json.dumps(fields | {"format": 99}))
    with pytest.raises(DataError, match=r"text\.json: has format 99, expected 1; prepare the text again"):
        PreparedText.load(folder)
    (folder / "text.json").write_text("{")
    with pytest.raises(DataError, match=r"text\.json: cannot be read"):
        PreparedText.load(folder)
