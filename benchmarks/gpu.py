"""What nesting buys on a GPU: latency of every granularity, and training steps, of a random ViT-B/16 at 224 pixels.

- latency: the table that `elastic profile --device cuda` makes (input handed over, embedding handed back), in float32
  and in bfloat16 autocast; a small batch waits for kernel launches and not for arithmetic, so submodels differ little
  there, and the table shows from which batch size on they do;
- training: one update with captions and multi-positive contrast on random images, at XL, at S, and at all four
  granularities, against the operations that the encoder's passes count.

The tables go to benchmarks/results/gpu_latency.parquet, which a simulated fleet of GPUs can be driven from, everything
else to gpu.json. One GPU, random weights, no data pipeline: it cannot show what feeding the GPU costs.

    python -m benchmarks.gpu                # a minute on an H100
    python -m benchmarks.gpu --device cpu   # to see that it runs; writes no results
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.policies.larger import candidates
from elastic.batch import Batch, Captions
from elastic.data.config import DataConfig, StreamConfig
from elastic.model.config import EncoderConfig, TextConfig, VisionConfig
from elastic.model.encoder import Encoder
from elastic.objectives.base import Dimensions
from elastic.objectives.contrastive import ImageText
from elastic.objectives.supcon import MultiPositive
from elastic.profile.device import check_device, device_fingerprint
from elastic.profile.flops import count_image, count_text
from elastic.profile.latency import LatencyConfig, measure
from elastic.profile.provenance import collect
from elastic.profile.tables import LatencyTable
from elastic.train.config import TrainConfig
from elastic.train.state import TrainState
from elastic.train.step import train_step

RESULTS = Path(__file__).parent / "results"
DTYPES: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
STEPS = {"XL": ("XL",), "S": ("S",), "all": ("XL", "L", "M", "S")}
"""Submodels that a measured update trains."""
PASSES = 3
"""A forward and a backward pass, in forward passes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Latency and training steps on a GPU."""

    device: str = "cuda"
    timm_name: str = "vit_base_patch16_224"
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    rounds: int = 50
    """Calls per cell of the latency table."""
    train_batch: int = 256
    """Images of an update."""
    updates: int = 10
    """Updates that are timed, after three that are not."""


def encoder_config(options: Options) -> EncoderConfig:
    """The nested ViT, with a text tower of CLIP's proportions at half its depth."""
    vision = VisionConfig.from_timm(options.timm_name)
    text = TextConfig(vocab_size=16384, max_tokens=32, width=512, depth=6, num_heads=8)
    return EncoderConfig(vision=vision, text=text, embed_dims=(64, 128, 256, 512))


def latency(config: EncoderConfig, options: Options) -> LatencyTable:
    """The image tower's times in both dtypes."""
    torch.manual_seed(0)
    encoder = Encoder(config).eval()
    chosen = {"image": candidates(encoder.space)}
    table: LatencyTable | None = None
    for dtype in DTYPES:
        how = LatencyConfig(batch_sizes=options.batch_sizes, rounds=options.rounds, dtype=dtype)
        measured = measure(encoder, how, device=options.device, submodels=chosen)
        table = measured if table is None else table.update(measured)
    assert table is not None
    return table


def random_batch(config: EncoderConfig, options: Options) -> Batch:
    """Images in pairs of one label, each with a caption."""
    count, size = options.train_batch, config.vision.image_size
    assert config.text is not None
    tokens = torch.randint(1, config.text.vocab_size, (count, config.text.max_tokens))
    return Batch(
        images=torch.randn(count, 3, size, size),
        row_ids=torch.arange(count),
        domains=torch.zeros(count, dtype=torch.int64),
        labels=torch.arange(count) // 2,
        captions=Captions(tokens=tokens, mask=tokens > 0, index=torch.arange(count)),
    ).to(options.device)


def train(config: EncoderConfig, options: Options) -> list[dict[str, object]]:
    """Seconds, images and operations per second of updates, by precision and submodels."""
    rows: list[dict[str, object]] = []
    for precision in ("fp32", "bf16"):
        run = TrainConfig(
            name="gpu",
            model=config,
            data=DataConfig(streams=(StreamConfig(),), image_size=config.vision.image_size),
            objectives={"captions": ImageText(), "labels": MultiPositive()},
            precision=precision,
            steps=1000,
        )
        classes = options.train_batch // 2
        dims = Dimensions(config.embed_dim, config.vision.width, classes, (0,) * classes)
        state, batch = TrainState(run, dims, torch.device(options.device)), random_batch(config, options)
        for name, granularities in STEPS.items():
            submodels = [state.space.granularities[granularity] for granularity in granularities]
            seconds = [_timed_update(state, batch, submodels, options.device) for _ in range(3 + options.updates)][3:]
            flops = PASSES * options.train_batch * sum(_flops(config, submodel) for submodel in submodels)
            middle = float(np.median(seconds))
            rows.append(
                {
                    "precision": precision,
                    "submodels": name,
                    "seconds": seconds,
                    "images_per_s": options.train_batch / middle,
                    "tflops_per_s": flops / middle / 1e12,
                }
            )
    return rows


def _timed_update(state: TrainState, batch: Batch, submodels: list, device: str) -> float:
    start = time.perf_counter()
    train_step(state, [batch], submodels, rank=0)["loss"].item()  # waits for the device
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _flops(config: EncoderConfig, submodel) -> int:
    space, text_space = config.space, config.text_space
    assert text_space is not None
    return count_image(config, submodel).flops + count_text(config, space.translate(submodel, onto=text_space)).flops


def render(table: LatencyTable, config: EncoderConfig, rows: list[dict[str, object]]) -> list[Table]:
    """The latencies by granularity and batch size, and the updates."""
    found = []
    for dtype in DTYPES:
        shown = Table("", *map(str, table.batch_sizes("image")), title=f"ms per call by batch size, {dtype}")
        cells = {(row.submodel, row.batch_size): row.p50_ms for row in table.rows if row.dtype == dtype}
        for name, submodel in config.space.granularities.items():
            shown.add_row(name, *(f"{cells[submodel, size]:.2f}" for size in table.batch_sizes("image")))
        found.append(shown)
    shown = Table("precision", "submodels", "ms per update", "images/s", "TFLOP/s", title="training")
    for row in rows:
        milliseconds = 1000 * float(np.median(row["seconds"]))
        shown.add_row(
            str(row["precision"]),
            str(row["submodels"]),
            f"{milliseconds:.1f}",
            f"{row['images_per_s']:.0f}",
            f"{row['tflops_per_s']:.1f}",
        )
    return [*found, shown]


def main(options: Options) -> None:
    """Measure, print, write."""
    check_device(options.device)
    config = encoder_config(options)
    table, rows = latency(config, options), train(config, options)
    for shown in render(table, config, rows):
        Console().print(shown)
    if options.device == "cpu":
        return
    table.save(RESULTS / "gpu_latency.parquet")
    provenance = asdict(collect(device_fingerprint(options.device)))
    results = {"options": asdict(options), "provenance": provenance, "training": rows}
    (RESULTS / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Options))
