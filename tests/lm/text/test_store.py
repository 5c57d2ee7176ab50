from pathlib import Path

import numpy as np
import pytest

from elastic.errors import DataError
from elastic.lm.text.store import TokenStore, TokenWriter, token_dtype


def write(folder: Path, *documents: list[int], vocab_size: int = 500) -> np.dtype:
    dtype = token_dtype(vocab_size)
    with TokenWriter(folder, "train", dtype) as writer:
        for document in documents:
            writer.append(np.array(document, dtype), np.array([len(document)]))
    return dtype


@pytest.mark.parametrize("vocab_size, itemsize", [(2**16, 2), (2**16 + 1, 4)])
def test_tokens_take_sixteen_bits_as_long_as_they_fit(vocab_size: int, itemsize: int):
    assert token_dtype(vocab_size).itemsize == itemsize
    assert np.iinfo(token_dtype(vocab_size)).max >= vocab_size - 1


def test_documents_come_back_as_they_were_written(tmp_path: Path):
    store = TokenStore.load(tmp_path, "train", write(tmp_path, [5, 1, 0], [0], [7, 0]))
    assert store.tokens.tolist() == [5, 1, 0, 0, 7, 0]
    assert store.ends.tolist() == [3, 4, 6]
    assert (len(store), store.num_tokens) == (3, 6)


def test_tokens_are_mapped_and_not_read(tmp_path: Path):
    store = TokenStore.load(tmp_path, "train", write(tmp_path, [1, 2], vocab_size=10**5))
    assert isinstance(store.tokens, np.memmap)
    assert store.tokens.dtype == np.uint32


def test_nothing_written_is_an_empty_store(tmp_path: Path):
    store = TokenStore.load(tmp_path, "train", write(tmp_path))
    assert (len(store), store.num_tokens) == (0, 0)


def test_a_file_that_was_cut_off_is_an_error(tmp_path: Path):
    dtype = write(tmp_path, [1, 2, 3])
    (tmp_path / "train.tokens").write_bytes(b"\1\0\2\0")
    with pytest.raises(DataError, match="has 2 tokens, expected 3; delete the folder"):
        TokenStore.load(tmp_path, "train", dtype)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"train\.tokens: does not exist; prepare"):
        TokenStore.load(tmp_path, "train", token_dtype(500))
