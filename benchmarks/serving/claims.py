"""Quality tables that are claimed, not measured, for models with random weights: no server looks at an embedding."""

from collections.abc import Mapping
from pathlib import Path

from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.profile.store import QUALITY
from elastic.profile.tables import QualityRow, QualityTable
from elastic.select import TASK_OF
from elastic.submodel import Space, Submodel


def write_quality(run: Path, space: Space, recall: Mapping[Submodel, float]) -> None:
    """Write the table of a run: for these submodels' queries, at every width, against an index of the full one."""
    rows = [
        QualityRow(
            task=TASK_OF["image"],
            query_submodel=submodel,
            index_submodel=space.full,
            embed_dim=width,
            domain="mean",
            recall_at_1=claimed,
            mmp_at_5=0.0,
            num_queries=1,
        )
        for submodel, claimed in recall.items()
        for width in space.embed_dims
    ]
    QualityTable(rows, collect(device_fingerprint())).save(run / QUALITY)
