"""Whether one batch should hold inputs of several submodels: shared attention, each row its own FFN prefix.

Prefixes are nested, so the rows of a batch can share everything but the last FFN columns. Sorted from the largest
submodel to the smallest, those that want a column block are a prefix of the rows, and two ways to run a block's FFN
copy nothing:

- blocks: the columns of the smallest submodel for all rows, the next columns for the rows that want more, and so on,
  each adding to the output of the one before;
- groups: the rows of each submodel through all of its columns.

Both are timed against what a server can do without them: a batch per submodel, one after the other, or the whole
batch at the largest submodel that somebody needs. Two answers are asked for:

1. Time until all are done: mixed over separate. Below 1 the model thread gets more work done.
2. Mean time until an input is done: separate batches, smallest first, answer the cheap inputs early; a mixed batch
   answers everybody last.

One thread. Every round calls all ways of a cell directly after each other in a new random order. Times are CPU times of
the thread, which on a quiet machine are the time that passes, and otherwise leave out what other processes took.

It cannot show: several threads, a GPU (where small batches leave it idle, so mixing has more to win), other shapes.

    python benchmarks/mixed_batches.py              # about seven minutes
    python benchmarks/mixed_batches.py --quick      # one minute, to see that it works
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from elastic.checkpoint import load_model, resolve_run
from elastic.model.config import IMAGE_CHANNELS, EncoderConfig, VisionConfig
from elastic.model.encoder import Encoder
from elastic.model.nested import nested_mlp
from elastic.model.vit import forward_vit
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.submodel import Space, Submodel

RESULTS = Path(__file__).parent / "results" / "mixed_batches.json"
TOLERANCE = 1e-5
"""Largest difference of an output from that of its submodel alone, relative to the largest output."""
GOAL = 0.95
"""Mixing is worth a place in the server if it saves a twentieth of the time in most cells, of every model."""

MIXES = {
    "half S, half XL": (4, 0, 0, 4),
    "half S, half M": (4, 4, 0, 0),
    "a quarter each": (2, 2, 2, 2),
    "mostly S": (6, 0, 0, 2),
    "mostly XL": (2, 0, 0, 6),
}
"""Eighths of a batch at each granularity, smallest first."""

Way = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Time of mixed batches against separate ones."""

    batch_sizes: tuple[int, ...] = (8, 16, 32)
    """Images of a mixed batch for the bundled model; multiples of eight."""
    large_batch_sizes: tuple[int, ...] = (8,)
    """The same for the ViT-S/16, whose batches of eight take a second and more."""
    rounds: int = 20
    """Times that every way of a cell is timed, at most."""
    min_rounds: int = 3
    """The same, at least."""
    max_s: float = 10.0
    """CPU time after which a cell gets no further round (seconds)."""
    quick: bool = False
    """One round of the smallest batch; writes no results."""
    seed: int = 0
    """Of images, random weights and the order of calls."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a batch that run at one submodel."""

    submodel: Submodel
    count: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One mix at one batch size. Times are medians of CPU milliseconds, ratios are of medians."""

    model: str
    mix: str
    batch_size: int
    rounds: int
    separate_ms: float
    largest_ms: float
    smallest_ms: float
    blocks_over_separate: float
    groups_over_separate: float
    spread: tuple[float, float]
    """Quartiles over rounds of the faster mixed way over separate batches."""
    mixed_over_largest: float
    """The faster mixed way over the whole batch at the largest submodel in it."""
    mean_wait_over_separate: float
    """Mean time until an input is done: the faster mixed way over separate batches, smallest first."""
    max_difference: float
    samples_ms: dict[str, list[float]] = field(repr=False)


def mixed_blocks(mlp: Mlp, x: Tensor, bounds: Sequence[tuple[int, int]]) -> Tensor:
    """FFN outputs of rows sorted from the largest FFN to the smallest, one block of columns after the other.

    `bounds` are (FFN size, rows that want at least it): sizes ascend, counts descend.
    """
    flat, tokens = x.flatten(0, 1), x.shape[1]
    output: Tensor | None = None
    for (start, _), (end, rows) in pairwise([(0, 0), *bounds]):
        inputs = flat[: rows * tokens]
        hidden = mlp.act(F.linear(inputs, mlp.fc1.weight[start:end], mlp.fc1.bias[start:end]))
        if output is None:
            output = F.linear(hidden, mlp.fc2.weight[:, start:end], mlp.fc2.bias)
        else:
            output[: rows * tokens].addmm_(hidden, mlp.fc2.weight[:, start:end].t())
    assert output is not None
    return output.view_as(x)


def mixed_groups(mlp: Mlp, x: Tensor, parts: Sequence[tuple[int, int]]) -> Tensor:
    """FFN outputs of rows in groups; `parts` are (FFN size, rows of it)."""
    groups = x.split([count for _, count in parts])
    return torch.cat([nested_mlp(mlp, rows, ffn_dim) for rows, (ffn_dim, _) in zip(groups, parts, strict=True)])


def forward_mixed(vit: VisionTransformer, images: Tensor, parts: Sequence[Part], *, in_blocks: bool) -> Tensor:
    """Embeddings of images whose rows run at several submodels, `parts` from the largest to the smallest."""
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    for layer, block in enumerate(vit.blocks):
        assert type(block) is Block and type(block.mlp) is Mlp, "only plain blocks are mixed"
        x = x + block.ls1(block.attn(block.norm1(x)))
        sizes = [(part.submodel.ffn_dims[layer], part.count) for part in parts]
        h = block.norm2(x)
        x = x + block.ls2(mixed_blocks(block.mlp, h, wanted(sizes)) if in_blocks else mixed_groups(block.mlp, h, sizes))
    return vit.head(vit.forward_head(vit.norm(x), pre_logits=True))


def wanted(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """From (FFN size, rows of it), largest first, to (FFN size, rows that want at least it), smallest first."""
    rows = accumulate(count for _, count in sizes)
    return [(ffn_dim, total) for (ffn_dim, _), total in zip(sizes, rows, strict=True)][::-1]


def parts_of(space: Space, mix: str, batch_size: int) -> list[Part]:
    """The rows of a mix, largest submodel first."""
    assert batch_size % 8 == 0, "batch sizes are multiples of eight"
    shares = zip(space.granularities.values(), MIXES[mix], strict=True)
    return [Part(submodel, share * batch_size // 8) for submodel, share in shares if share][::-1]


def measure_cell(encoder: Encoder, model: str, mix: str, batch_size: int, options: Options) -> Cell:
    """Time all ways of one mix."""
    vit, parts = encoder.image, parts_of(encoder.space, mix, batch_size)
    size = encoder.config.vision.image_size
    generator = torch.Generator().manual_seed(options.seed)
    images = torch.randn(batch_size, IMAGE_CHANNELS, size, size, generator=generator)
    rows = dict(zip(parts, images.split([part.count for part in parts]), strict=True))
    ways: dict[str, Way] = {
        "blocks": lambda: forward_mixed(vit, images, parts, in_blocks=True),
        "groups": lambda: forward_mixed(vit, images, parts, in_blocks=False),
        "largest": lambda: forward_vit(vit, images, parts[0].submodel).embedding,
        "smallest": lambda: forward_vit(vit, images, parts[-1].submodel).embedding,
    }
    alone: dict[str, Way] = {
        f"alone {part.submodel}": lambda part=part: forward_vit(vit, rows[part], part.submodel).embedding
        for part in parts
    }
    expected = torch.cat([way() for way in alone.values()])
    difference = max(float((ways[name]() - expected).abs().max()) for name in ("blocks", "groups"))
    assert difference <= TOLERANCE * float(expected.abs().max()), f"mixed rows differ by {difference}"
    return summarise(model, mix, parts, time_ways(ways | alone, options), difference)


def time_ways(ways: dict[str, Way], options: Options) -> dict[str, list[float]]:
    """CPU milliseconds of every way, a new order each round."""
    rng = np.random.default_rng(options.seed)
    names = list(ways)
    samples: dict[str, list[float]] = {name: [] for name in names}
    begin = time.thread_time()
    for number in range(options.rounds):
        if number >= options.min_rounds and time.thread_time() - begin > options.max_s:
            break
        for name in (names[position] for position in rng.permutation(len(names))):
            start = time.thread_time()
            ways[name]()
            samples[name].append(1e3 * (time.thread_time() - start))
    return samples


def summarise(model: str, mix: str, parts: Sequence[Part], samples: dict[str, list[float]], difference: float) -> Cell:
    """Medians, ratios and the mean wait of one cell."""
    times = {name: np.array(values) for name, values in samples.items()}
    alone = [times[f"alone {part.submodel}"] for part in reversed(parts)]  # smallest first
    separate = np.sum(alone, axis=0)
    mixed = min(times["blocks"], times["groups"], key=np.median)
    counts = np.array([part.count for part in reversed(parts)])
    wait_ms = float(counts @ np.cumsum([np.median(part) for part in alone]) / counts.sum())
    low, high = np.quantile(mixed / separate, (0.25, 0.75))
    return Cell(
        model=model,
        mix=mix,
        batch_size=int(counts.sum()),
        rounds=len(separate),
        separate_ms=float(np.median(separate)),
        largest_ms=float(np.median(times["largest"])),
        smallest_ms=float(np.median(times["smallest"])),
        blocks_over_separate=float(np.median(times["blocks"]) / np.median(separate)),
        groups_over_separate=float(np.median(times["groups"]) / np.median(separate)),
        spread=(float(low), float(high)),
        mixed_over_largest=float(np.median(mixed) / np.median(times["largest"])),
        mean_wait_over_separate=float(np.median(mixed)) / wait_ms,
        max_difference=difference,
        samples_ms={name: [round(value, 3) for value in values] for name, values in samples.items()},
    )


def models(options: Options) -> dict[str, tuple[Encoder, tuple[int, ...]]]:
    """The bundled model and a random one of the usual size, with their batch sizes."""
    bundled, _, _ = load_model(resolve_run(None))
    small = Encoder(EncoderConfig(vision=VisionConfig.from_timm("vit_small_patch16_224")))
    return {
        "bundled": (bundled.eval(), options.batch_sizes),
        "ViT-S/16 at 224": (small.eval(), options.large_batch_sizes),
    }


def render(cells: Sequence[Cell]) -> Table:
    """The results as a table."""
    columns = ("model", "batch", "mix", "separate ms", "blocks", "groups", "quartiles", "over largest", "mean wait")
    table = Table(*columns, title="a mixed batch over separate batches (over largest: over the batch at the largest)")
    for cell in cells:
        low, high = cell.spread
        ratios = (cell.blocks_over_separate, cell.groups_over_separate)
        others = (cell.mixed_over_largest, cell.mean_wait_over_separate)
        table.add_row(
            *(cell.model, str(cell.batch_size), cell.mix, f"{cell.separate_ms:.1f}"),
            *(f"{ratio:.2f}" for ratio in ratios),
            f"{low:.2f} to {high:.2f}",
            *(f"{ratio:.2f}" for ratio in others),
        )
    table.caption = "ratios of median CPU times; below 1 mixing is faster"
    return table


def verdict(cells: Sequence[Cell]) -> dict[str, Any]:
    """By model: geometric means of the ratios, and in how many cells the faster way reaches the goal."""
    found: dict[str, Any] = {}
    for model in dict.fromkeys(cell.model for cell in cells):
        of_model = [cell for cell in cells if cell.model == model]
        best = [min(cell.blocks_over_separate, cell.groups_over_separate) for cell in of_model]
        found[model] = {
            "blocks_over_separate": geometric_mean([cell.blocks_over_separate for cell in of_model]),
            "groups_over_separate": geometric_mean([cell.groups_over_separate for cell in of_model]),
            "mean_wait_over_separate": geometric_mean([cell.mean_wait_over_separate for cell in of_model]),
            "cells_within_goal": f"{sum(ratio <= GOAL for ratio in best)} of {len(best)}",
        }
    return found


def geometric_mean(ratios: Sequence[float]) -> float:
    """The mean that a ratio and its inverse share."""
    return float(np.exp(np.log(ratios).mean()))


def main(options: Options) -> None:
    """Measure, print, and write the results."""
    if options.quick:
        options = replace(options, batch_sizes=(8,), large_batch_sizes=(8,), rounds=1, min_rounds=1)
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    load_before = os.getloadavg()[0]
    plan = [
        (name, encoder, size, mix)
        for name, (encoder, sizes) in models(options).items()
        for size in sizes
        for mix in MIXES
    ]
    cells = []
    with Progress() as progress, torch.inference_mode():
        task = progress.add_task("cells", total=len(plan))
        for name, encoder, size, mix in plan:
            cells.append(measure_cell(encoder, name, mix, size, options))
            progress.advance(task)
    Console(width=140).print(render(cells))
    summary = verdict(cells)
    print(json.dumps(summary, indent=2))
    if options.quick:
        return
    report = asdict(collect(device_fingerprint("cpu"))) | {
        "options": asdict(options),
        "goal": GOAL,
        "num_threads": 1,
        "busy": {"load_before": load_before, "load_after": os.getloadavg()[0]},
        "summary": summary,
        "cells": [asdict(cell) for cell in cells],
    }
    RESULTS.write_text(json.dumps(report) + "\n", encoding="utf-8")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
