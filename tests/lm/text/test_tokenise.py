from pathlib import Path

import pytest

from elastic.lm.text.documents import find_parts, is_held_out
from elastic.lm.text.tokenise import Job, tokenise
from elastic.lm.text.tokenizer import END_OF_TEXT, train_tokenizer

from .conftest import LINES


@pytest.fixture
def job() -> Job:
    return Job(
        tokenizer=train_tokenizer(LINES, 300).to_str(),
        end_of_text=END_OF_TEXT,
        text_field="text",
        validation_fraction=0.2,
        split_seed=0,
    )


def test_documents_become_tokens_that_end_in_end_of_text(lines_file: Path, job: Job):
    found = tokenise(find_parts(str(lines_file)), job)
    tokenizer = train_tokenizer(LINES, 300)
    end = tokenizer.token_to_id(END_OF_TEXT)
    expected = [[*tokenizer.encode(line).ids, end] for line in LINES]
    assert found.tokens.tolist() == [token for row in expected for token in row]
    assert found.lengths.tolist() == [len(row) for row in expected]
    assert found.num_bytes.tolist() == [len(line) for line in LINES]
    assert found.held_out.tolist() == [is_held_out(f"d{number}", 0.2, 0) for number in range(60)]
    assert len(set(found.digests)) == 60


def test_a_text_that_spells_out_a_special_token_does_not_end(tmp_path: Path, job: Job):
    (tmp_path / "page.txt").write_text(f"before {END_OF_TEXT} after")
    found = tokenise(find_parts(str(tmp_path / "page.txt")), job)
    tokenizer = train_tokenizer(LINES, 300)
    end = tokenizer.token_to_id(END_OF_TEXT)
    assert found.tokens.tolist().index(end) == len(found.tokens) - 1
    assert tokenizer.decode(found.tokens[:-1].tolist()) == f"before {END_OF_TEXT} after"


def test_parts_without_text_are_no_tokens(tmp_path: Path, job: Job):
    (tmp_path / "odd.jsonl").write_text("[]\n")
    found = tokenise(find_parts(str(tmp_path)), job)
    assert (len(found.tokens), len(found.lengths), found.num_skipped) == (0, 0, 1)
