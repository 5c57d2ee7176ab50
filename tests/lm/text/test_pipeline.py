from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from elastic.errors import DataError
from elastic.lm.text.documents import find_parts
from elastic.lm.text.pipeline import tokenise_all
from elastic.lm.text.tokenise import Job, tokenise
from elastic.lm.text.tokenizer import END_OF_TEXT, train_tokenizer

from .conftest import LINES

pytestmark = [
    pytest.mark.ray,
    # Ray Data copies its own context attribute by attribute, its deprecated ones included.
    pytest.mark.filterwarnings(r"ignore:.*deprecated:DeprecationWarning:ray\."),
]


@pytest.fixture
def job() -> Job:
    return Job(
        tokenizer=train_tokenizer(LINES, 300).to_str(),
        end_of_text=END_OF_TEXT,
        text_field="text",
        validation_fraction=0.2,
        split_seed=0,
    )


@pytest.mark.usefixtures("local_ray")
def test_ray_gives_the_groups_in_order_and_as_one_process_would(tmp_path: Path, job: Job):
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(LINES[number])
    groups = [(part,) for part in find_parts(str(tmp_path))]
    found = list(tokenise_all(groups, job))
    assert len(found) == 6
    for group, its in zip(groups, found, strict=True):
        expected = tokenise(group, job)
        assert np.array_equal(its.tokens, expected.tokens)
        assert its.digests == expected.digests


@pytest.mark.usefixtures("local_ray")
def test_an_error_in_a_process_of_ray_arrives_as_it_was_raised(tmp_path: Path, job: Job):
    pq.write_table(pa.table({"body": ["one"]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="has no column 'text'"):
        list(tokenise_all([tuple(find_parts(str(tmp_path)))], job))
