import json
from collections.abc import Callable
from pathlib import Path

import pytest

from elastic.lm.text.config import TextConfig
from elastic.lm.text.documents import find_parts, group_parts
from elastic.lm.text.prepare import write_split
from elastic.lm.text.prepared import PreparedText
from elastic.lm.text.store import token_dtype
from elastic.lm.text.tokenise import Job, tokenise
from elastic.lm.text.tokenizer import END_OF_TEXT, save_tokenizer, train_tokenizer

LINES = [f"document {number} tells of {number * number} things, in {number % 7 + 1} ways." for number in range(60)]


@pytest.fixture
def lines_file(tmp_path: Path) -> Path:
    """Sixty short documents of different lengths, one a line."""
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(LINES)))
    return path


@pytest.fixture
def make_prepared(tmp_path: Path, lines_file: Path) -> Callable[..., PreparedText]:
    """Prepared text of those, made in this process."""

    def make(block_size: int = 16, batch_size: int = 4, seed: int = 3) -> PreparedText:
        folder = tmp_path / "prepared"
        if not folder.exists():
            folder.mkdir()
            config = TextConfig(source=(str(lines_file),), validation_fraction=0.2)
            tokenizer = train_tokenizer(LINES, 300)
            job = Job(
                tokenizer=tokenizer.to_str(),
                end_of_text=END_OF_TEXT,
                text_field=config.text_field,
                validation_fraction=config.validation_fraction,
                split_seed=config.split_seed,
            )
            groups = group_parts(find_parts(str(lines_file)))
            made = [tokenise(group, job) for group in groups]
            save_tokenizer(tokenizer, folder)
            write_split(made, config, folder, token_dtype(300)).save(folder)
        return PreparedText.load(folder, block_size=block_size, batch_size=batch_size, seed=seed)

    return make
