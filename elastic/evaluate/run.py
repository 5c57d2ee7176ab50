"""One evaluation from start to end: embed, measure every combination, put the baselines beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import numpy as np

from elastic.data.tokenizer import Tokenizer
from elastic.errors import ConfigError
from elastic.evaluate.baselines import BaselineName, evaluate_baseline
from elastic.evaluate.compatibility import image_cells, image_rows, text_cells, text_rows
from elastic.evaluate.dataset import caption_queries, load_retrieval_set
from elastic.evaluate.embed import EmbeddedImages, embed_captions, embed_images
from elastic.evaluate.result import Evaluation
from elastic.model.config import Preprocess
from elastic.model.encoder import Encoder
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.profile.tables import QualityRow, QualityTable

OnProgress = Callable[[str, int, int], None]
"""(stage, done, total)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """What to evaluate on, beside what; the fields are explained at `elastic.evaluate.command.Evaluate`."""

    source: str = "icons"
    split: str = "test"
    baselines: tuple[BaselineName, ...] = ("chance", "pixels")
    batch_size: int = 256
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError("batch_size", self.batch_size, "must be at least 1")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ConfigError("max_bad_fraction", self.max_bad_fraction, "must be between 0 and 1")


def evaluate(
    encoder: Encoder,
    preprocess: Preprocess,
    tokenizer: Tokenizer | None,
    config: EvaluateConfig,
    *,
    name: str,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> Evaluation:
    """Measure an encoder (in eval mode, on its device) on one split of one source.

    Args:
        encoder: what is measured.
        preprocess: of its manifest.
        tokenizer: of its run; without one, captions are not measured.
        config: on what.
        name: of the run, for the report.
        on_progress: told of every step.

    Raises:
        DataError: the data cannot be opened, lacks labels, or has too many broken images.
        ConfigError: a baseline's weights are not installed.
    """
    data = load_retrieval_set(config.source, config.split)
    embedded = embed_images(
        encoder,
        data,
        preprocess,
        list(encoder.space.mixes()),
        batch_size=config.batch_size,
        max_bad_fraction=config.max_bad_fraction,
        on_batch=_accumulate("embedding", len(data), on_progress),
    )
    sizes = np.bincount(embedded.data.classes)
    rows = _rows(encoder, tokenizer, embedded, on_progress)
    baselines = {}
    for done, baseline in enumerate(config.baselines):
        on_progress(f"baseline {baseline}", done, len(config.baselines))
        baselines[baseline] = evaluate_baseline(baseline, embedded.data)
    return Evaluation(
        run_name=name,
        config=encoder.config,
        quality=QualityTable(rows, collect(device_fingerprint(next(encoder.parameters()).device))),
        baselines=baselines,
        source=config.source,
        split=config.split,
        num_images=len(embedded.data),
        num_classes=int((sizes > 0).sum()),
        num_broken=embedded.num_broken,
        num_lonely=int((sizes == 1).sum()),
    )


def _rows(
    encoder: Encoder, tokenizer: Tokenizer | None, embedded: EmbeddedImages, on_progress: OnProgress
) -> list[QualityRow]:
    """Every measured combination of both tasks; captions where the model and the data have them."""
    space, text_space = encoder.space, encoder.text_space
    rows = image_rows(embedded, space, _count("searching", len(image_cells(space)), on_progress))
    captions = caption_queries(embedded.data)
    if tokenizer is None or text_space is None or not captions.captions:
        return rows
    queries = embed_captions(encoder, tokenizer, captions.captions, list(text_space.mixes()))
    total = len(text_cells(text_space, space))
    spaces = (text_space, space)
    return rows + text_rows(captions, queries, embedded, spaces, _count("searching by text", total, on_progress))


def _accumulate(stage: str, total: int, on_progress: OnProgress) -> Callable[[int], None]:
    done = 0

    def add(number: int) -> None:
        nonlocal done
        done += number
        on_progress(stage, done, total)

    return add


def _count(stage: str, total: int, on_progress: OnProgress) -> Callable[[], None]:
    numbers = count(1)
    return lambda: on_progress(stage, next(numbers), total)
