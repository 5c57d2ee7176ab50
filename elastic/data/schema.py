"""One row of a data set: what every source must be able to say about an image.

The names are the contract between files on disk, the plan and the objectives. Only the image is required; a column
that a source lacks reads as null, or as the value in `DEFAULTS`. A file may carry more columns (the bundled icons
carry their attribution); they are ignored.
"""

import pyarrow as pa

from elastic.errors import DataError

IMAGE = "image"
"""Column of the encoded image (PNG, JPEG, WebP, ...)."""

METADATA = pa.schema(
    [
        pa.field("caption", pa.string(), metadata={"is": "what a person would write about the image"}),
        pa.field("synthetic_captions", pa.list_(pa.string()), metadata={"is": "machine-made captions"}),
        pa.field("domain", pa.string(), nullable=False, metadata={"is": "what kind of thing: one retrieval task"}),
        pa.field("label", pa.string(), metadata={"is": "instance class; unique within its domain"}),
        pa.field("caption_id", pa.string(), metadata={"is": "images made from one caption share it"}),
        pa.field("source", pa.string(), nullable=False, metadata={"is": "real or synthetic"}),
        pa.field("split", pa.string(), nullable=False, metadata={"is": "train, val or test"}),
    ]
)
"""Every column but the image, in order; cheap to read whole."""

ROW = pa.schema([pa.field(IMAGE, pa.binary(), nullable=False), *METADATA])
"""The full row."""

COLUMNS = tuple(ROW.names)

SEGMENTS, INSTANCES, DEPTH = "segments", "instances", "depth_mm"
"""Further columns of sets with a label at every pixel; what they hold is said in `dense`."""

SEGMENT_NAMES_KEY = "segment_names"
"""Key of a file's schema metadata: a JSON list that names the classes of `segments` by number."""

SPLITS = ("train", "val", "test")

SOURCES = ("real", "synthetic")

DEFAULTS = {"domain": "default", "source": "real", "split": "train"}
"""What a missing column or a null means where the row needs a value."""


def conform(table: pa.Table, source: str) -> pa.Table:
    """A source's own columns as `METADATA`: cast, completed with defaults or nulls, others dropped.

    Raises:
        DataError: a column cannot be cast, or `split` or `source` hold an unknown value.
    """
    columns: list[pa.Array | pa.ChunkedArray] = []
    for field in METADATA:
        if field.name not in table.column_names:
            column = pa.nulls(table.num_rows, field.type)
        else:
            column = _cast(table[field.name], field, source)
        if field.name in DEFAULTS:
            column = column.fill_null(DEFAULTS[field.name])
        columns.append(column)
    conformed = pa.Table.from_arrays(columns, schema=METADATA)
    for name, allowed in (("split", SPLITS), ("source", SOURCES)):
        unknown = sorted(set(conformed[name].unique().to_pylist()) - set(allowed))
        if unknown:
            raise DataError(source, f"column {name!r} holds {unknown[:5]}", f"use only {', '.join(allowed)}")
    return conformed


def _cast(column: pa.ChunkedArray, field: pa.Field, source: str) -> pa.ChunkedArray:
    # Labels and ids may be numbers in a file; inside they are names.
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        problem = f"column {field.name!r} is {column.type}, wanted {field.type}"
        raise DataError(source, problem, "convert the column") from error
