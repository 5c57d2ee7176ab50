import numpy as np

from elastic.data.source import ImageStore, Source

from .drawing import table


class Listed(ImageStore):
    """Images in a list."""

    def __init__(self, images: list[bytes]) -> None:
        self.images = images

    def read(self, row_ids: np.ndarray) -> list[bytes]:
        return [self.images[row] for row in row_ids]


def test_a_source_counts_its_rows_and_reads_them_in_the_order_asked():
    rows = table(2, 2)
    source = Source("listed", rows.drop_columns(["image"]), Listed(rows["image"].to_pylist()))
    assert len(source) == 4
    images = rows["image"].to_pylist()
    assert source.read_images(np.array([3, 0, 3])) == [images[3], images[0], images[3]]
