"""What an evaluation found, as a value: the quality table, the baselines, and the facts to read them by."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from elastic.errors import ProfileError
from elastic.evaluate.baselines import BaselineName
from elastic.evaluate.uned import Score
from elastic.model.config import EncoderConfig
from elastic.profile.tables import MEAN, Metric, QualityTable
from elastic.submodel import Submodel

BASELINES = "baselines.json"

Baselines = dict[BaselineName, dict[str, Score]]
"""Scores by domain (`mean` and `all` included) of each baseline."""

BASELINE_LABELS: dict[BaselineName, str] = {
    "chance": "chance",
    "pixels": "pixels (12 x 12)",
    "efficientnet_lite0": "EfficientNet-Lite0 (ImageNet)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One run of `elastic evaluate`."""

    run_name: str
    config: EncoderConfig
    quality: QualityTable
    baselines: Baselines
    source: str
    """Location of the data."""
    split: str
    num_images: int
    """Labelled images that were decoded: the queries, and the index."""
    num_classes: int
    num_broken: int
    """Images left out because they could not be decoded."""
    num_lonely: int
    """Queries whose class has no other image: they count as failed."""

    def value(
        self,
        query: Submodel,
        index: Submodel | None = None,
        embed_dim: int | None = None,
        *,
        metric: Metric = "recall_at_1",
        domain: str = MEAN,
    ) -> float:
        """An image-retrieval score; by default against the query's own index, at full width."""
        row = self.quality.row(query, index or query, embed_dim or self.config.embed_dim, domain=domain)
        return getattr(row, metric)

    def standard_error(self, query: Submodel, index: Submodel | None = None, embed_dim: int | None = None) -> float:
        """Of R@1, mean over domains, when queries count as independent draws within each domain."""
        width, index = embed_dim or self.config.embed_dim, index or query
        domains = self.quality.domains()
        rows = [self.quality.row(query, index, width, domain=domain) for domain in domains]
        variances = [row.recall_at_1 * (1 - row.recall_at_1) / row.num_queries for row in rows]
        return math.sqrt(sum(variances)) / len(domains)


def save_baselines(path: Path, baselines: Baselines) -> None:
    """Write JSON that `load_baselines` reads back."""
    values = {name: {domain: asdict(score) for domain, score in by.items()} for name, by in baselines.items()}
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def load_baselines(path: Path) -> Baselines:
    """Read what `save_baselines` wrote.

    Raises:
        ProfileError: there is no such file.
    """
    if not path.is_file():
        raise ProfileError("baselines", f"{path} does not exist", "run `elastic evaluate` first")
    values = json.loads(path.read_text(encoding="utf-8"))
    return {name: {domain: Score(**score) for domain, score in by.items()} for name, by in values.items()}
