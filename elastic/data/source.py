"""One opened data set: what it says about every row, and the rows' encoded images by number.

A row's number (`row_id`) is its place in the source, counted over files in name order; it never changes while the
files do not. `open_source` in `elastic.data.sources` opens one from a location.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Int


class ImageStore(ABC):
    """Encoded images by row number. Pickles without what it has read, so that it can move between processes."""

    @abstractmethod
    def read(self, row_ids: Int[np.ndarray, " rows"]) -> list[bytes]:
        """The encoded images of these rows, in this order; rows may repeat.

        Raises:
            DataError: a file became unreadable. An image that is merely broken is returned as it is.
        """


@dataclass(frozen=True, slots=True)
class Source:
    """One opened data set."""

    name: str
    """The location it was opened by."""
    metadata: pa.Table
    """Every column of `schema.METADATA`; row order is row number."""
    images: ImageStore

    def read_images(self, row_ids: Int[np.ndarray, " rows"]) -> list[bytes]:
        """The encoded images of these rows, in this order; see `ImageStore.read`."""
        return self.images.read(row_ids)

    def __len__(self) -> int:
        return self.metadata.num_rows
