"""What submodels of a MatLM run are worth on held-out text: loss, cost, and how well they stand in for the largest."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elastic.lm.checkpoint import load_matlm
from elastic.lm.text.config import TextConfig
from elastic.lm.text.prepare import prepare
from elastic.lm.text.prepared import PreparedText
from elastic.lm.training.validation import Scores, measure
from elastic.model.decoder import DecoderConfig
from elastic.model.storage import tuples
from elastic.profile.device import device_fingerprint
from elastic.profile.flops import Cost, count_token
from elastic.profile.provenance import Provenance, collect
from elastic.submodel import Submodel
from elastic.train.record import read_record

OnProgress = Callable[[int, int], None]
"""(batches done, in all)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LmEvaluation:
    """The scores of a run's submodels, and on what."""

    run_name: str
    config: DecoderConfig
    block_size: int
    """Tokens that were read at once."""
    num_tokens: int
    """Tokens that were predicted."""
    bytes_per_token: float
    """Of the held-out text; nats per token over it are nats per byte, which compare between tokenizers."""
    scores: Mapping[Submodel, Scores]
    """Of every granularity and every Mix'n'Match submodel, ascending in size."""
    provenance: Provenance

    def cost(self, submodel: Submodel) -> Cost:
        """Parameters, and FLOPs of one token at the end of a block."""
        return count_token(self.config, submodel, self.block_size)

    def above_line(self, submodel: Submodel) -> float:
        """Nats above the straight line, in parameters, between the two granularities around a mixed submodel."""
        sizes = {s: self.cost(s).params for s in self.config.space.granularities.values()}
        own = self.cost(submodel).params
        low = max((s for s in sizes if sizes[s] <= own), key=lambda s: sizes[s])
        high = min((s for s in sizes if sizes[s] >= own), key=lambda s: sizes[s])
        share = (own - sizes[low]) / max(sizes[high] - sizes[low], 1)
        line = self.scores[low].nats + share * (self.scores[high].nats - self.scores[low].nats)
        return self.scores[submodel].nats - line

    def to_json(self) -> dict[str, Any]:
        """As JSON values: a row per submodel."""
        rows = [
            {"submodel": str(submodel), "name": self.config.space.name(submodel)}
            | asdict(scores)
            | {"perplexity": math.exp(scores.nats)}
            | asdict(self.cost(submodel))
            for submodel, scores in self.scores.items()
        ]
        facts = {name: getattr(self, name) for name in ("run_name", "block_size", "num_tokens", "bytes_per_token")}
        return facts | {"provenance": asdict(self.provenance), "submodels": rows}

    def save(self, path: Path) -> None:
        """Write `scores.json`."""
        path.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")


def evaluate_matlm(
    run: Path,
    text: PreparedText,
    *,
    device: torch.device,
    batch_size: int = 32,
    max_blocks: int = 0,
    on_progress: OnProgress = lambda done, total: None,
) -> LmEvaluation:
    """Measure every granularity and Mix'n'Match submodel on the held-out documents, `max_blocks` of them unless 0.

    Raises:
        CheckpointError: `run` holds no language model.
        DataError: too little text is held out.
    """
    decoder, manifest, _ = load_matlm(run)
    decoder = decoder.to(device)
    num_blocks = (text.num_validation_tokens - 1) // text.block_size
    num_blocks = min(num_blocks, max_blocks or num_blocks)
    batches = islice(text.validation(min(batch_size, num_blocks)), math.ceil(num_blocks / batch_size))
    total = math.ceil(num_blocks / batch_size)
    scores = measure(decoder, _count(batches, total, on_progress), tuple(manifest.decoder.space.mixes()))
    return LmEvaluation(
        run_name=run.name,
        config=manifest.decoder,
        block_size=text.block_size,
        num_tokens=num_blocks * text.block_size,
        bytes_per_token=text.validation_bytes_per_token,
        scores=scores,
        provenance=collect(device_fingerprint(device)),
    )


def held_out_text(run: Path, source: str | None) -> PreparedText:
    """The text to evaluate on: documents that the run held out, or those of another source, in the run's tokens.

    Raises:
        CheckpointError: the directory holds no record of a run.
        DataError: the text cannot be used.
    """
    recorded: dict[str, Any] = read_record(run)["config"]["text"]
    config = TextConfig(**tuples({name: value for name, value in recorded.items() if name != "class"}))
    if source is not None:
        config = replace(config, source=(source,), tokenizer=str(run))
    return prepare(config, seed=0)


def _count(batches: Iterable[Tensor], total: int, on_progress: OnProgress) -> Iterator[Tensor]:
    for done, batch in enumerate(batches, start=1):
        yield batch
        on_progress(done, total)
