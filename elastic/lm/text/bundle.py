"""Makes the bundled text anew: the fetched corpora it consists of, in one file, with their licences beside it."""

from pathlib import Path

import pyarrow as pa

from elastic.data.fetch import fetch
from elastic.lm.text.corpora import BUNDLED_TEXT, CORPORA, write_documents

BUNDLED_CORPORA = ("wordnet", "wikipedia", "shakespeare")
"""Those that may be passed on without taking the package's own licence with them."""

NUM_DOCUMENTS = {"wordnet": 117_659, "wikipedia": 10_033, "shakespeare": 42}
"""What the file holds of each."""

LICENSES = BUNDLED_TEXT.with_name("LICENSES.md")


def build_text(out: Path) -> pa.Table:
    """Write the bundled text to `out` with `LICENSES.md` beside it; returns the rows.

    Raises:
        DataError: a package cannot be fetched, or is not the pinned one.
    """
    table = write_documents({name: CORPORA[name].read(fetch(name)) for name in BUNDLED_CORPORA}, out)
    out.with_name(LICENSES.name).write_bytes(LICENSES.read_bytes())
    return table
