import pyarrow as pa
import pytest

from elastic.data.schema import METADATA, conform
from elastic.errors import DataError


def test_missing_columns_are_filled():
    found = conform(pa.table({"label": ["a", "b"]}), "here")
    assert found.schema.equals(METADATA)
    row = found.to_pylist()[0]
    assert row["domain"] == "default"
    assert row["source"] == "real"
    assert row["split"] == "train"
    assert row["caption"] is None
    assert row["synthetic_captions"] is None


def test_numbers_become_names_and_nulls_stay():
    assert conform(pa.table({"label": [7, None]}), "here")["label"].to_pylist() == ["7", None]


def test_a_null_split_takes_the_default():
    assert conform(pa.table({"split": ["val", None]}), "here")["split"].to_pylist() == ["val", "train"]


def test_foreign_columns_are_dropped():
    assert "price" not in conform(pa.table({"label": ["a"], "price": [3]}), "here").column_names


def test_a_column_of_the_wrong_kind_names_both_kinds():
    with pytest.raises(DataError, match=r"here: column 'caption' is list<.*>, wanted string"):
        conform(pa.table({"caption": [["a"]]}), "here")


def test_an_unknown_split_is_named():
    with pytest.raises(DataError, match=r"column 'split' holds \['validation'\]; use only train, val, test"):
        conform(pa.table({"split": ["train", "validation"]}), "here")
