"""One row of a data set: what every source must be able to say about an image.

The names are the contract between files on disk, the plan and the objectives. `domain` and `image` are required
in a file; `SPLITS` restricts `split`; every other column may be absent, and then reads as null or as the default
in `DEFAULTS`. A file may carry more columns (the bundled icons carry their attribution); they are kept and ignored.
"""

import pyarrow as pa

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

SPLITS = ("train", "val", "test")

SOURCES = ("real", "synthetic")

DEFAULTS = {"domain": "default", "source": "real", "split": "train"}
"""What a missing column means in sources that are not Parquet (an image folder rarely names its split)."""
