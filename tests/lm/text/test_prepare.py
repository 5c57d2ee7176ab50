import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from elastic.errors import DataError
from elastic.lm.text import pipeline
from elastic.lm.text import prepare as preparing
from elastic.lm.text.config import TextConfig
from elastic.lm.text.documents import is_held_out
from elastic.lm.text.prepare import prepare
from elastic.lm.text.tokenise import tokenise
from elastic.lm.text.tokenizer import save_tokenizer, train_tokenizer

from .conftest import LINES


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokenizes in this process; holds how many groups each call had."""
    calls: list[int] = []

    def in_process(groups, job):
        calls.append(len(groups))
        return (tokenise(group, job) for group in groups)

    monkeypatch.setattr(pipeline, "tokenise_all", in_process)
    return calls


def config(source: Path | str, **more) -> TextConfig:
    return TextConfig(source=(str(source),), **{"vocab_size": 300, "block_size": 16, "batch_size": 4, **more})


def folders(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


@pytest.mark.ray
@pytest.mark.filterwarnings(r"ignore:.*deprecated:DeprecationWarning:ray\.")  # see test_pipeline
@pytest.mark.usefixtures("local_ray")
def test_two_documents_are_prepared_by_ray(tmp_path: Path):
    source = tmp_path / "two.jsonl"
    texts = ["The first of two documents.", "And the second one; no more."]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepared = prepare(config(source, validation_fraction=0.0, block_size=8, batch_size=1), 0, tmp_path / "cache")
    blocks = -(-prepared.num_train_tokens // 8)
    stream = torch.cat([prepared.batch(step)[0, :-1] for step in range(blocks)])
    assert prepared.manifest.num_train_documents == 2
    # One epoch's blocks are out of order; put together they are its tokens, each once.
    expected = [token for text in texts for token in (*prepared.tokenizer.encode(text).ids, prepared.end_of_text)]
    num_whole = prepared.num_train_tokens // 8 * 8
    shown = sorted(stream[:num_whole].tolist())
    assert len(shown) == num_whole
    assert not set(shown) - set(expected)
    assert all(shown.count(token) <= expected.count(token) for token in set(shown))


def test_what_was_prepared_is_not_prepared_again(tmp_path: Path, lines_file: Path, without_ray: list[int]):
    first = prepare(config(lines_file), 0, tmp_path / "cache")
    again = prepare(config(lines_file, block_size=32, batch_size=2), 1, tmp_path / "cache")
    assert without_ray == [1]
    assert again.folder == first.folder
    assert (again.block_size, again.batch_size, again.seed) == (32, 2, 1)
    assert folders(tmp_path / "cache") == {first.folder.name}


@pytest.mark.parametrize("change", [{"vocab_size": 280}, {"validation_fraction": 0.3}, {"split_seed": 1}])
def test_what_changes_the_tokens_is_prepared_apart(
    tmp_path: Path, lines_file: Path, without_ray: list[int], change: dict
):
    first = prepare(config(lines_file), 0, tmp_path / "cache")
    assert prepare(config(lines_file, **change), 0, tmp_path / "cache").folder != first.folder
    assert len(without_ray) == 2


def test_preparing_twice_gives_the_same_files(tmp_path: Path, lines_file: Path, without_ray: list[int]):
    one, other = (prepare(config(lines_file), 0, tmp_path / name).folder for name in ("one", "other"))
    names = {path.name for path in one.iterdir()}
    assert names == {
        *(f"{split}.{kind}" for split in ("train", "validation") for kind in ("tokens", "ends")),
        *("text.json", "tokenizer.json", "tokenizer_config.json"),
    }
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_the_tokenizer_never_sees_a_held_out_document(tmp_path: Path, lines_file: Path, without_ray: list[int]):
    prepared = prepare(config(lines_file, validation_fraction=0.3), 0, tmp_path / "cache")
    training = [text for number, text in enumerate(LINES) if not is_held_out(f"d{number}", 0.3, 0)]
    assert prepared.tokenizer.to_str() == train_tokenizer(training, 300).to_str()


def test_a_given_tokenizer_is_used_and_kept_with_the_tokens(tmp_path: Path, lines_file: Path, without_ray: list[int]):
    (tmp_path / "mine").mkdir()
    save_tokenizer(train_tokenizer(["other text"], 270), tmp_path / "mine")
    prepared = prepare(config(lines_file, tokenizer=str(tmp_path / "mine")), 0, tmp_path / "cache")
    assert prepared.tokenizer.to_str() == train_tokenizer(["other text"], 270).to_str()


def test_prepared_text_is_a_source_that_needs_nothing_else(tmp_path: Path, lines_file: Path, without_ray: list[int]):
    prepared = prepare(config(lines_file), 5, tmp_path / "cache")
    lines_file.unlink()
    again = prepare(config(prepared.folder), 5, tmp_path / "other")
    assert torch.equal(again.batch(3), prepared.batch(3))
    assert not (tmp_path / "other").exists()


def test_equal_texts_are_one_document_on_the_side_of_the_first(tmp_path: Path, without_ray: list[int]):
    keys = [f"k{number}" for number in range(200)]
    held = next(key for key in keys if is_held_out(key, 0.5, 0))
    free, other, *_ = (key for key in keys if not is_held_out(key, 0.5, 0))
    source = tmp_path / "repeated.jsonl"
    rows = [(held, "the same text"), (free, "the same text"), (other, "another text")]
    source.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in rows))
    manifest = prepare(config(source, validation_fraction=0.5), 0, tmp_path / "cache").manifest
    assert (manifest.num_train_documents, manifest.num_validation_documents) == (1, 1)
    assert manifest.num_duplicates == 1


def test_what_was_skipped_is_counted_and_warned_of(
    tmp_path: Path, without_ray: list[int], caplog: pytest.LogCaptureFixture
):
    source = tmp_path / "odd.jsonl"
    source.write_text('{"text": "good"}\n{"text": \n[]\n')
    prepared = prepare(config(source, validation_fraction=0.0), 0, tmp_path / "cache")
    assert prepared.manifest.num_skipped == 2
    assert "skipped 2 lines, rows or files without readable text" in caplog.text


@pytest.mark.parametrize(
    "content, fraction, found",
    [
        ("[]\n", 0.0, r"\(0 documents were read, 0 of them held out, 1 lines, rows or files skipped\)"),
        ('{"text": "x"}\n', 0.999999, r"\(1 documents were read, 1 of them held out, 0 lines"),
    ],
)
def test_a_corpus_without_a_document_to_train_on_is_an_error(
    tmp_path: Path, without_ray: list[int], content: str, fraction: float, found: str
):
    source = tmp_path / "empty.jsonl"
    source.write_text(content)
    with pytest.raises(DataError, match=f"no document to train on {found}"):
        prepare(config(source, validation_fraction=fraction), 0, tmp_path / "cache")
    assert folders(tmp_path / "cache") == set()


def test_an_error_while_the_tokenizer_reads_arrives_as_it_was_raised(tmp_path: Path):
    pq.write_table(pa.table({"body": ["one"]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="has no column 'text'; found body"):
        prepare(config(tmp_path / "rows.parquet"), 0, tmp_path / "cache")


def test_a_corpus_that_was_never_fetched_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataError, match="run `elastic data fetch gcide`"):
        prepare(config("gcide"), 0)


def test_whoever_is_faster_with_the_same_folder_wins(tmp_path: Path, lines_file: Path, without_ray: list[int]):
    folder = prepare(config(lines_file), 0, tmp_path / "cache").folder
    made = tmp_path / "made"
    made.mkdir()
    preparing._rename(made, folder)
    assert (folder / "text.json").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(OSError):
        preparing._rename(made, tmp_path / "taken")
