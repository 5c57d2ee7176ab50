"""How good the model is while it trains: retrieval on held-out classes, one number per granularity."""

from elastic.evaluate.dataset import load_retrieval_set
from elastic.evaluate.embed import embed_images
from elastic.evaluate.uned import image_retrieval
from elastic.model.config import Preprocess
from elastic.model.encoder import Encoder
from elastic.profile.tables import ALL

SPLIT = "val"
"""The classes that are neither trained on nor reported at the end."""


class Validation:
    """Recall@1 on the validation split of one source, every image against all the others."""

    def __init__(self, location: str, preprocess: Preprocess) -> None:
        """Open the split.

        Raises:
            DataError: the source has no labelled validation rows.
        """
        self._data = load_retrieval_set(location, SPLIT)
        self._preprocess = preprocess

    def measure(self, encoder: Encoder) -> dict[str, float]:
        """`val/recall_at_1/<granularity>` at the full width."""
        named = encoder.space.granularities
        embedded = embed_images(encoder, self._data, self._preprocess, tuple(named.values()))
        report = {}
        for name, submodel in named.items():
            embeddings = embedded.by_submodel[submodel]
            scores = image_retrieval(embeddings, embeddings, embedded.data)
            report[f"val/recall_at_1/{name}"] = scores[ALL].recall_at_1
        return report
