import pickle
from pathlib import Path

import pytest

from elastic.data.tokenizer import PAD_ID, UNKNOWN_ID, Tokenizer, train_tokenizer
from elastic.errors import DataError

CAPTIONS = ["a red fox", "the flag of Andorra", "a drawing of a fox: animal, face", "red flag"] * 5


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(CAPTIONS, vocab_size=80)


def test_ids_stay_below_the_vocabulary(tokenizer: Tokenizer):
    tokens, _ = tokenizer.encode(CAPTIONS, 16)
    assert tokenizer.vocab_size <= 80
    assert tokens.max().item() < tokenizer.vocab_size


def test_the_mask_is_true_exactly_on_tokens(tokenizer: Tokenizer):
    tokens, mask = tokenizer.encode(["red", "the flag of Andorra"], 16)
    assert ((tokens != PAD_ID) == mask).all()
    assert mask.sum(dim=1).tolist() == [1, 4]


def test_long_texts_are_cut(tokenizer: Tokenizer):
    tokens, mask = tokenizer.encode(["red fox flag of red"], 3)
    assert tokens.shape == (1, 3)
    assert mask.all()


def test_case_and_accents_make_no_difference(tokenizer: Tokenizer):
    first, _ = tokenizer.encode(["Red F\u00f3x"], 8)
    second, _ = tokenizer.encode(["red fox"], 8)
    assert first.tolist() == second.tolist()


def test_a_text_without_tokens_still_has_one(tokenizer: Tokenizer):
    tokens, mask = tokenizer.encode(["", "  "], 8)
    assert tokens.tolist() == [[UNKNOWN_ID], [UNKNOWN_ID]]
    assert mask.all()


def test_no_texts_give_no_rows(tokenizer: Tokenizer):
    tokens, mask = tokenizer.encode([], 8)
    assert len(tokens) == len(mask) == 0


def test_training_is_deterministic(tokenizer: Tokenizer):
    assert train_tokenizer(CAPTIONS, vocab_size=80).to_json() == tokenizer.to_json()


def test_it_survives_files_and_processes(tokenizer: Tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path / "tokenizer.json")
    for copy in (Tokenizer.load(tmp_path / "tokenizer.json"), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.encode(CAPTIONS, 9)[0].tolist() == tokenizer.encode(CAPTIONS, 9)[0].tolist()


def test_a_missing_or_foreign_file_is_a_clear_error(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="is not a tokenizer"):
        Tokenizer.load(tmp_path / "tokenizer.json")
