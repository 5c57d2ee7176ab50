"""What a training step costs, in passes of the encoder, against the count that the methods predict.

The unit U is the forward and backward pass of the whole image encoder, at its full submodel, on one step's images.
The prediction adds up passes: clean 1, masked 1, crops by their tokens, the teacher 1/3, captions by the text tower's
operations, prototype heads by theirs, all of it scaled by what the step's submodels cost. The measurement counts
every matrix product and convolution that a real step executes, forward and backward. Goal: within 15 %.

Beside it: the time of a step over the time of U, on one thread, alternating, medians. Operations are exact and the
same everywhere; times are this machine's, where small matrices are slower than their count.

    python benchmarks/step_cost.py
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from elastic.batch import Batch, Captions
from elastic.data.config import DataConfig, LocalCrops, StreamConfig
from elastic.model.config import EncoderConfig, TextConfig, VisionConfig
from elastic.model.encoder import Encoder
from elastic.objectives.base import Dimensions, ObjectiveConfig
from elastic.objectives.prototypes import Prototypes
from elastic.objectives.tips import DualImageText, MaskedPatches, SelfDistillation
from elastic.profile.device import device_fingerprint
from elastic.profile.flops import count_image, count_text
from elastic.profile.provenance import collect
from elastic.train.config import TrainConfig
from elastic.train.state import TrainState
from elastic.train.step import train_step

RESULTS = Path(__file__).parent / "results" / "step_cost.json"
GOAL = 0.15
CPU = torch.device("cpu")

IMAGE_SIZE, CROP_SIZE, NUM_CROPS = 64, 32, 4
HEAD = Prototypes(count=1024, hidden=384, bottleneck=128)
MODEL = EncoderConfig(
    vision=VisionConfig(
        image_size=IMAGE_SIZE, patch_size=8, width=192, depth=6, num_heads=3, pool="token", num_cls_tokens=2
    ),
    text=TextConfig(vocab_size=1024, max_tokens=24, width=192, depth=6, num_heads=3),
    embed_dims=(64,),
)
"""Small, with the proportions of a ViT: 64 patches, crops of 16, captions of 24 tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Operations and time of training steps, in passes of the encoder."""

    images: int = 16
    """Images of a step."""
    rounds: int = 7
    """Times that every step is timed, alternating."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One kind of step."""

    objectives: dict[str, ObjectiveConfig]
    teacher: str = "average"
    submodels: tuple[str, ...] = ("XL",)


DUAL = {"captions": DualImageText()}
CROPS, MASKED = SelfDistillation(prototypes=HEAD), MaskedPatches(prototypes=HEAD, weight=2.0)
CASES = {
    "captions": Case(objectives=DUAL),
    "captions + crops": Case(objectives=DUAL | {"crops": CROPS}),
    "TIPS": Case(objectives=DUAL | {"crops": CROPS, "masked": MASKED}),
    "TIPS at S": Case(objectives=DUAL | {"crops": CROPS, "masked": MASKED}, submodels=("S",)),
    "TIPS at XL and S": Case(objectives=DUAL | {"crops": CROPS, "masked": MASKED}, submodels=("XL", "S")),
    "TIPS v2": Case(objectives=DUAL | {"crops": CROPS, "masked": replace(MASKED, every_patch=True)}, teacher="student"),
}


def config_of(case: Case) -> TrainConfig:
    """A run that takes such steps."""
    crops = LocalCrops(count=NUM_CROPS, image_size=CROP_SIZE)
    stream = StreamConfig(captions="both", local_crops=crops)
    return TrainConfig(
        name="step",
        model=MODEL,
        data=DataConfig(streams=(stream,), image_size=IMAGE_SIZE),
        objectives=case.objectives,
        teacher=case.teacher,
        steps=100,
    )


def make_batch(num_images: int) -> Batch:
    """Random images and crops, two captions each."""

    def captions() -> Captions:
        length = MODEL.text.max_tokens
        tokens = torch.randint(1, MODEL.text.vocab_size, (num_images, length))
        return Captions(tokens=tokens, mask=tokens > 0, index=torch.arange(num_images))

    return Batch(
        images=torch.randn(num_images, 3, IMAGE_SIZE, IMAGE_SIZE),
        row_ids=torch.arange(num_images),
        domains=torch.zeros(num_images, dtype=torch.int64),
        captions=captions(),
        synthetic_captions=captions(),
        local_images=torch.randn(num_images * NUM_CROPS, 3, CROP_SIZE, CROP_SIZE),
    )


def predicted(case: Case) -> float:
    """Passes of the full encoder on one step's images, by the count of the methods."""
    space, shape = MODEL.space, MODEL.vision.shape
    full = count_image(MODEL, space.full).flops
    patches, prefix = shape.num_patches, shape.num_prefix_tokens
    crop_patches = patches * (CROP_SIZE / IMAGE_SIZE) ** 2
    crop_share = NUM_CROPS * (crop_patches + prefix) / (patches + prefix)
    head = 2 * (
        shape.width * HEAD.hidden + HEAD.hidden**2 + HEAD.hidden * HEAD.bottleneck + HEAD.bottleneck * HEAD.count
    )
    passes = 0.0
    for name in case.submodels:
        submodel = space.granularities[name]
        share = count_image(MODEL, submodel).flops / full
        text = count_text(MODEL, space.translate(submodel, MODEL.text_space)).flops / full
        passes += share + 2 * text
        if "crops" in case.objectives:
            passes += share * crop_share + NUM_CROPS * head / full + head / full / 3
        if "masked" in case.objectives:
            counted = patches if case.objectives["masked"].every_patch else round(0.75 * patches)
            passes += share + counted * head / full * (1 + 1 / 3)
    needs_teacher = case.teacher == "average" and any(c.passes & {"teacher"} for c in case.objectives.values())
    return passes + (1 / 3 if needs_teacher else 0)


def step_of(case: Case, num_images: int) -> Callable[[], object]:
    """A call that takes one training step."""
    torch.manual_seed(0)
    dims = Dimensions(MODEL.embed_dim, MODEL.vision.width, num_classes=0, num_patches=MODEL.vision.shape.num_patches)
    state, batch = TrainState(config_of(case), dims, CPU), make_batch(num_images)
    submodels = [state.space.granularities[name] for name in case.submodels]
    return lambda: train_step(state, [batch], submodels, rank=0)


def unit_of(num_images: int) -> Callable[[], object]:
    """A call that makes one U."""
    encoder = Encoder(MODEL)
    images = torch.randn(num_images, 3, IMAGE_SIZE, IMAGE_SIZE)

    def unit() -> None:
        features = encoder.see(images, encoder.space.full)
        (features.embedding.sum() + features.patch_tokens.sum()).backward()

    return unit


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and convolutions, attention included."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def seconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median time of each call, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number > 0:  # the first warms up
                times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}


def measure(options: Options) -> dict[str, dict[str, float]]:
    """By case: predicted and counted passes, their ratio, and the ratio of times."""
    calls = {"unit": unit_of(options.images)} | {name: step_of(case, options.images) for name, case in CASES.items()}
    counts = {name: operations(call) for name, call in calls.items()}
    times = seconds(calls, options.rounds)
    found = {}
    for name, case in CASES.items():
        count = counts[name] / counts["unit"]
        time_ratio = times[name] / times["unit"]
        found[name] = {
            "predicted": predicted(case),
            "counted": count,
            "ratio": count / predicted(case),
            "time": time_ratio,
        }
    return found


def render(found: dict[str, dict[str, float]]) -> Table:
    """The results as a table."""
    table = Table("step", "predicted U", "counted U", "counted / predicted", "time / time of U", title="cost of a step")
    for name, row in found.items():
        within = "" if abs(row["ratio"] - 1) <= GOAL else " (outside)"
        cells = (
            f"{row['predicted']:.2f}",
            f"{row['counted']:.2f}",
            f"{row['ratio']:.3f}{within}",
            f"{row['time']:.2f}",
        )
        table.add_row(name, *cells)
    return table


def main() -> None:
    """Measure, print, and write the results."""
    options = tyro.cli(Options)
    torch.set_num_threads(1)
    found = measure(options)
    Console().print(render(found))
    results: dict[str, Any] = {
        "options": asdict(options),
        "provenance": asdict(collect(device_fingerprint())),
        "steps": found,
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
