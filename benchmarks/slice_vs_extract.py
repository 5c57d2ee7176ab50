"""What serving slices of one resident encoder costs, against one extracted timm model per submodel.

Three questions, on one thread:

1. Latency: is a slice as fast as the plain smaller model that is equal to it? Each round calls both, in random
   order, directly after each other, so that a busy neighbour hits both alike, and each after one call that is not
   timed, so that both find their own weights in the cache. Goal: ratio of medians <= 1.05.
   A slice may be faster: it calls functions where timm calls modules. So the extracted weights are timed in our
   loop over blocks too; that ratio shows what views instead of compact matrices cost, and nothing else.
2. Switching: what does running another submodel than last time cost? The choice is an argument, so there is nothing
   to do but take other views. Goal: < 1 ms.
3. Copies: does any operation of a forward pass copy weights? Every ATen operation of it is inspected.

It cannot show: what several threads or a GPU do; copies inside a BLAS call, except by their time; other shapes.

    python benchmarks/slice_vs_extract.py                  # the model inside the package
    python benchmarks/slice_vs_extract.py runs/icons       # another run
    python benchmarks/slice_vs_extract.py --fresh          # a random ViT-S/16: the usual size of such encoders
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from elastic.checkpoint import load_model, resolve_run
from elastic.model.config import IMAGE_CHANNELS, EncoderConfig, VisionConfig
from elastic.model.encoder import Encoder
from elastic.model.extract import extract
from elastic.model.nested import mlp_of
from elastic.model.vit import forward_vit
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.submodel import Space, Submodel

RESULTS = Path(__file__).parent / "results"
GOAL_RATIO, GOAL_SWITCH_MS = 1.05, 1.0
COPIES = {"clone", "copy_", "_to_copy", "contiguous", "index_select", "cat"}
"""ATen operations that would copy a weight if they were given one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Latency of slices against extracted models, switching cost, and proof that no weights are copied."""

    run: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="RUN")] = None
    """Directory of a finished run; the model inside the package if left out."""
    fresh: bool = False
    """Measure a random ViT-S/16 at 224 pixels instead of a run."""
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    """Images per call."""
    rounds: int = 60
    """Measured pairs of calls per cell, at most."""
    min_rounds: int = 7
    """Measured pairs per cell whatever the time."""
    max_s: float = 60.0
    """Time after which a batch size gets no further round (seconds)."""
    seed: int = 0
    """Of the images, the order of calls, the bootstrap and random weights."""
    out: Path | None = None
    """Where the JSON goes; by default benchmarks/results/slice_vs_extract[_fresh].json."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Medians of one submodel at one batch size; ratios are slice over extracted, with a 95% bootstrap interval."""

    submodel: str
    name: str
    batch_size: int
    rounds: int
    slice_ms: float
    extracted_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    cpu_ratio: float
    """The same ratio in CPU time of this thread, which leaves out the time other processes took."""
    same_loop_ratio: float
    """Slice over the extracted weights run by the same loop over blocks."""
    max_difference: float
    """Largest absolute difference of the two outputs."""


def main(options: Options) -> None:
    """Measure, print, and write the JSON."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    load_before = os.getloadavg()[0]
    encoder, source = load(options)
    submodels = chosen_submodels(encoder.space)
    extracted = {submodel: extract(encoder, submodel) for submodel in submodels}
    print(f"{source}: {encoder.space}; {device_fingerprint('cpu')}, one thread")
    with torch.inference_mode():
        pairs = [
            pair
            for batch_size in options.batch_sizes
            for pair in measure_batch_size(encoder, extracted, batch_size, options)
        ]
        switching = measure_switching(encoder, submodels, options)
        copies = copied_weights(encoder, submodels, options)
    ratios = np.array([pair.ratio for pair in pairs])
    summary = {
        "geometric_mean_ratio": float(np.exp(np.log(ratios).mean())),
        "worst_ratio": float(ratios.max()),
        "worst_cpu_ratio": max(pair.cpu_ratio for pair in pairs),
        "worst_same_loop_ratio": max(pair.same_loop_ratio for pair in pairs),
        "cells_within_goal": f"{int((ratios <= GOAL_RATIO).sum())} of {len(pairs)}",
        "copied_weights": copies,
    }
    busy = {"load_before": load_before, "load_after": os.getloadavg()[0]}
    report = {
        "source": source,
        "busy": busy,
        "summary": summary,
        "switching": switching,
        "pairs": [asdict(pair) for pair in pairs],
    }
    write(report, options)
    print(json.dumps(summary | switching, indent=2))


def load(options: Options) -> tuple[Encoder, str]:
    """The encoder to measure, and what to call it."""
    if options.fresh:
        vision = VisionConfig.from_timm("vit_small_patch16_224")
        return Encoder(EncoderConfig(vision=vision)).eval(), "random vit_small_patch16_224"
    path = resolve_run(options.run)
    return load_model(path)[0], path.name


def chosen_submodels(space: Space) -> list[Submodel]:
    """Every granularity and the mixed one half way between the two middle ones."""
    mixes = [submodel for submodel in space.mixes() if not submodel.is_uniform]
    return [*space.granularities.values(), mixes[len(mixes) // 2]]


def measure_batch_size(
    encoder: Encoder, extracted: dict[Submodel, VisionTransformer], batch_size: int, options: Options
) -> list[Pair]:
    """One `Pair` per submodel; rounds go over all submodels in a new order each time."""
    images = random_images(encoder, batch_size, options.seed)
    rng = np.random.default_rng(options.seed)
    submodels = list(extracted)
    calls: list[tuple[Callable[[], Tensor], ...]] = [
        (
            lambda s=s: forward_vit(encoder.image, images, s).embedding,
            lambda vit=vit: vit(images),
            lambda s=s, vit=vit: forward_vit(vit, images, s).embedding,
        )
        for s, vit in extracted.items()
    ]
    differences = [float((sliced() - plain()).abs().max()) for sliced, plain, _ in calls]
    for side in (side for sides in calls * 2 for side in sides):
        side()
    seconds: list[list[list[tuple[float, float]]]] = [[] for _ in calls]
    begin = time.perf_counter()
    for number in range(options.rounds):
        if number >= options.min_rounds and time.perf_counter() - begin > options.max_s:
            break
        for index in rng.permutation(len(calls)):
            sides = calls[index]
            times = {side: timed_warm(sides[side]) for side in rng.permutation(len(sides))}
            seconds[index].append([times[side] for side in range(len(sides))])
    found = [
        summarise(encoder.space, submodel, batch_size, np.array(times), difference)
        for submodel, times, difference in zip(submodels, seconds, differences, strict=True)
    ]
    for pair in found:
        print(
            f"batch {batch_size:3d}  {pair.name:>18s}  slice {pair.slice_ms:9.3f} ms  extracted "
            f"{pair.extracted_ms:9.3f} ms  ratio {pair.ratio:.3f} [{pair.ratio_low:.3f}, {pair.ratio_high:.3f}]  "
            f"cpu {pair.cpu_ratio:.3f}  same loop {pair.same_loop_ratio:.3f}  n={pair.rounds}",
            flush=True,
        )
    return found


def timed(call: Callable[[], Tensor]) -> tuple[float, float]:
    """Wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.thread_time()
    call()
    return time.perf_counter() - wall, time.thread_time() - cpu


def timed_warm(call: Callable[[], Tensor]) -> tuple[float, float]:
    """Wall and CPU seconds of the second of two calls."""
    call()
    return timed(call)


def summarise(space: Space, submodel: Submodel, batch_size: int, times: np.ndarray, difference: float) -> Pair:
    """Medians and the bootstrap interval of their ratio; `times` is [round, side, wall or cpu]."""
    rng = np.random.default_rng(0)
    resampled = times[rng.integers(len(times), size=(2000, len(times)))]  # [resample, round, side, clock]
    medians = np.median(resampled[..., 0], axis=1)
    low, high = np.quantile(medians[:, 0] / medians[:, 1], (0.025, 0.975))
    (slice_s, slice_cpu), (extracted_s, extracted_cpu), (same_loop_s, _) = np.median(times, axis=0)
    return Pair(
        submodel=str(submodel),
        name=space.name(submodel),
        batch_size=batch_size,
        rounds=len(times),
        slice_ms=1e3 * slice_s,
        extracted_ms=1e3 * extracted_s,
        ratio=slice_s / extracted_s,
        ratio_low=float(low),
        ratio_high=float(high),
        cpu_ratio=slice_cpu / extracted_cpu,
        same_loop_ratio=slice_s / same_loop_s,
        max_difference=difference,
    )


def measure_switching(encoder: Encoder, submodels: Sequence[Submodel], options: Options) -> dict[str, float]:
    """Milliseconds: taking all views of a submodel, and one image after another submodel against after the same."""
    image = random_images(encoder, 1, options.seed)
    rng = np.random.default_rng(options.seed)
    views_s = [timed(lambda s=s: take_views(encoder, s))[0] for _ in range(options.rounds) for s in submodels]
    stay: list[float] = []
    switch: list[float] = []
    for _ in range(options.rounds):
        for submodel in (submodels[i] for i in rng.permutation(len(submodels))):
            # the same submodel twice: the first call comes after another one, the second after itself
            switch.append(timed(lambda s=submodel: forward_vit(encoder.image, image, s).embedding)[1])
            stay.append(timed(lambda s=submodel: forward_vit(encoder.image, image, s).embedding)[1])
    difference_s = np.median(np.array(switch) - np.array(stay))
    return {
        "take_views_ms": 1e3 * float(np.median(views_s)),
        "first_call_minus_second_cpu_ms": 1e3 * float(difference_s),
    }


def take_views(encoder: Encoder, submodel: Submodel) -> Tensor:
    """All that selecting a submodel does: views of every block's two matrices."""
    assert all(isinstance(mlp_of(block), Mlp) for block in encoder.image.blocks), "only plain MLPs are timed"
    view = torch.empty(0)
    for block, ffn_dim in zip(encoder.image.blocks, submodel.ffn_dims, strict=True):
        view = block.mlp.fc1.weight[:ffn_dim]
        view = block.mlp.fc2.weight[:, :ffn_dim]
    return view


class CopyFinder(TorchDispatchMode):
    """Records every operation that copies memory belonging to a block's parameters, which are what is sliced."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.storages = {parameter.untyped_storage().data_ptr() for parameter in encoder.image.blocks.parameters()}
        self.found: list[str] = []
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        if any(leaf.untyped_storage().data_ptr() in self.storages for leaf in inputs):
            self.reads += 1
            name = func.overloadpacket.__name__
            if name in COPIES:
                self.found.append(name)
        return func(*args, **(kwargs or {}))


def copied_weights(encoder: Encoder, submodels: Sequence[Submodel], options: Options) -> int:
    """How many operations of one forward pass per submodel copy memory that belongs to a block's parameters."""
    image = random_images(encoder, 2, options.seed)
    with CopyFinder(encoder) as finder:
        for submodel in submodels:
            tokens = forward_vit(encoder.image, image, submodel).patch_tokens
    assert finder.reads > len(submodels) * len(encoder.image.blocks) and tokens.isfinite().all()
    return len(finder.found)


def random_images(encoder: Encoder, batch_size: int, seed: int) -> Tensor:
    """Normalised noise of the model's size; what is in an image does not change its cost."""
    size = encoder.config.vision.image_size
    return torch.randn(batch_size, IMAGE_CHANNELS, size, size, generator=torch.Generator().manual_seed(seed))


def write(report: dict[str, Any], options: Options) -> None:
    """Add where it was measured, and write the JSON."""
    path = options.out or RESULTS / f"slice_vs_extract{'_fresh' if options.fresh else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    provenance = asdict(collect(device_fingerprint("cpu")))
    report |= {"goal_ratio": GOAL_RATIO, "goal_switch_ms": GOAL_SWITCH_MS, "num_threads": 1, "seed": options.seed}
    path.write_text(json.dumps(provenance | report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
