import json
from pathlib import Path

import huggingface_hub
import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from elastic.errors import CheckpointError, DataError
from elastic.lm.text.tokenizer import END_OF_TEXT, load_tokenizer, save_tokenizer, train_tokenizer

from .conftest import LINES

ODD = "Tabs\t and  spaces, \r\n line ends; na\u00efve \u4f60\u597d \U0001f600 \u0000 e\u0301 "
"""What normalising, splitting or an unknown token would lose."""


def test_every_text_comes_back_exactly():
    tokenizer = train_tokenizer(LINES, 300)
    for text in (*LINES, ODD, ""):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_same_texts_give_the_same_tokenizer():
    assert train_tokenizer(LINES, 300).to_str() == train_tokenizer(iter(LINES), 300).to_str()


def test_the_vocabulary_is_all_bytes_the_end_of_text_and_what_was_learned():
    tokenizer = train_tokenizer(LINES, 300)
    assert tokenizer.get_vocab_size() == 300
    assert tokenizer.token_to_id(END_OF_TEXT) == 0
    assert len(tokenizer.encode("document").ids) < len("document")
    assert train_tokenizer([], 300).get_vocab_size() == 257


def test_a_saved_tokenizer_loads_from_its_file_and_its_folder(tmp_path: Path):
    save_tokenizer(train_tokenizer(LINES, 300), tmp_path)
    for location in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizer, end = load_tokenizer(str(location))
        assert tokenizer.to_str() == train_tokenizer(LINES, 300).to_str()
        assert end == END_OF_TEXT


def test_transformers_loads_a_saved_tokenizer(tmp_path: Path):
    tokenizer = train_tokenizer(LINES, 300)
    save_tokenizer(tokenizer, tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(ODD)["input_ids"] == tokenizer.encode(ODD).ids
    assert loaded.decode(loaded(ODD)["input_ids"]) == ODD
    assert (loaded.eos_token, loaded.eos_token_id) == (END_OF_TEXT, 0)


def foreign(folder: Path, *special: str) -> Tokenizer:
    """A tokenizer of words with other special tokens, which was saved with padding and truncation switched on."""
    tokenizer = Tokenizer(models.WordLevel({"one": 0, "two": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=5)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def test_a_foreign_tokenizer_reads_whole_texts(tmp_path: Path):
    foreign(tmp_path, "</s>")
    tokenizer, end = load_tokenizer(str(tmp_path))
    assert tokenizer.encode("one two one").ids == [0, 1, 0]
    assert end == "</s>"


@pytest.mark.parametrize("said", ["<stop>", {"content": "<stop>", "lstrip": False}])
def test_the_end_of_text_is_what_the_configuration_beside_it_says(tmp_path: Path, said: object):
    foreign(tmp_path, "</s>", "<stop>")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": said}))
    assert load_tokenizer(str(tmp_path))[1] == "<stop>"


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path: Path):
    foreign(tmp_path)
    with pytest.raises(DataError, match=r"has no end-of-text token; looked for <\|endoftext\|> .*; name it as"):
        load_tokenizer(str(tmp_path))


def test_what_is_no_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: does not exist"):
        load_tokenizer(str(tmp_path))


def test_an_id_is_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    foreign(tmp_path / "snapshot", "</s>")
    asked: list[tuple[str, list[str]]] = []

    def download(repo_id: str, allow_patterns: list[str]) -> str:
        asked.append((repo_id, allow_patterns))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_tokenizer("someone/some-model")[1] == "</s>"
    assert asked == [("someone/some-model", ["tokenizer.json", "tokenizer_config.json"])]
