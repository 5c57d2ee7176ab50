"""Memory of several processes that serve the same model: weights mapped from one file, against a copy in each.

`load_model` maps the weights file, so the kernel keeps one copy of its pages for all processes that only read them.
Here 1, 2, ... processes load a model and embed one image with all of it, which touches every weight. Then the kernel
is asked for each process's proportional set size (PSS: its private pages, and its share of those it shares), which
adds up to the memory that all of them take together. Once with the weights as `load_model` leaves them, once with every
parameter cloned into private memory, in the same run and alternating.

It cannot show: what a GPU holds; what Ray adds to a process; time (private pages may be huge pages).

    python benchmarks/shared_weights.py          # the model inside the package, and a random ViT-B/16
"""

import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import torch
import tyro

from elastic.checkpoint import WEIGHTS, Manifest, load_model, resolve_run, save_model
from elastic.model.config import EncoderConfig, Preprocess, VisionConfig
from elastic.model.encoder import Encoder
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect

RESULTS = Path(__file__).parent / "results"
MIB = 1024.0
"""Of the kB that the kernel counts in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Memory of 1, 2, ... processes with one model, its weights shared or copied."""

    num_processes: tuple[int, ...] = (1, 2, 3)
    """Processes at the same time, for each measurement."""
    fresh: str = "vit_base_patch16_224"
    """timm's name of the random model that is measured beside the one in the package."""
    timeout_s: float = 300.0
    """Give up when a process has not loaded by then (seconds)."""
    seed: int = 0
    """Of the random weights."""
    out: Path = RESULTS / "shared_weights.json"
    """Where the JSON goes."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What processes with one model take together."""

    source: str
    weights_mib: float
    """Size of the weights file."""
    num_processes: int
    shared: bool
    """Whether the weights were left as `load_model` maps them."""
    pss_mib: float
    """Of all processes together."""
    anonymous_mib: float
    """The part of it that is private and not of a file."""
    mapped_weights_mib: float
    """The part of it that is the mapped weights file."""


def main(options: Options) -> None:
    """Measure, print, and write the JSON."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [resolve_run(None), write_fresh(Path(folder) / options.fresh, options)]
        found = []
        for run in runs:
            for number in options.num_processes:
                for shared in (True, False):
                    found.append(measure(run, number, shared, options.timeout_s))
                    print(describe(found[-1]))
    per_process = {source: added_per_process(found, source) for source in dict.fromkeys(m.source for m in found)}
    print(json.dumps(per_process, indent=2))
    provenance = collect(device_fingerprint("cpu"))
    report = {"added_mib_per_further_process": per_process, "memory": [asdict(memory) for memory in found]}
    settings = asdict(options) | {"out": None}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(asdict(provenance) | {"options": settings} | report, indent=2) + "\n")


def write_fresh(run: Path, options: Options) -> Path:
    """A run with random weights of a usual size."""
    torch.manual_seed(options.seed)
    vision = VisionConfig.from_timm(options.fresh)
    encoder = Encoder(EncoderConfig(vision=vision)).eval()
    save_model(run, encoder, Manifest(encoder=encoder.config, preprocess=Preprocess(image_size=vision.image_size)))
    return run


def measure(run: Path, num_processes: int, shared: bool, timeout_s: float) -> Memory:
    """Load the model in so many processes at once and add up what they take."""
    with holders(run, num_processes, shared, timeout_s) as pids:
        rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
        weights = [pss_of_file(Path(f"/proc/{pid}/smaps").read_text(), str(run / WEIGHTS)) for pid in pids]
    return Memory(
        source=run.name,
        weights_mib=(run / WEIGHTS).stat().st_size / 2**20,
        num_processes=num_processes,
        shared=shared,
        pss_mib=sum(kib(text, "Pss") for text in rollups) / MIB,
        anonymous_mib=sum(kib(text, "Pss_Anon") for text in rollups) / MIB,
        mapped_weights_mib=sum(weights) / MIB,
    )


@contextmanager
def holders(run: Path, num_processes: int, shared: bool, timeout_s: float) -> Iterator[list[int]]:
    """Ids of processes that have loaded the model and run it, until the block ends."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(num_processes + 1), context.Event()
    processes = [context.Process(target=hold, args=(run, shared, ready, done)) for _ in range(num_processes)]
    for process in processes:
        process.start()
    try:
        ready.wait(timeout_s)
        yield [process.pid for process in processes if process.pid is not None]
    finally:
        done.set()
        for process in processes:
            process.join()


def hold(run: Path, shared: bool, ready: Barrier, done: Event) -> None:
    """Load a model, embed one image with all of it, and keep it."""
    torch.set_num_threads(1)
    encoder, manifest, _ = load_model(run)
    encoder.requires_grad_(False)
    if not shared:
        for module in encoder.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, torch.nn.Parameter(parameter.clone(), requires_grad=False))
    size = manifest.preprocess.image_size
    with torch.inference_mode():
        encoder.encode_images(torch.zeros(1, 3, size, size), encoder.space.full, encoder.space.full_embed_dim)
        sum(parameter.sum() for parameter in encoder.parameters())  # those that this image did not need
    ready.wait()
    done.wait()


def kib(rollup: str, field: str) -> int:
    """One field of `smaps_rollup`."""
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith(f"{field}:"))


def pss_of_file(smaps: str, path: str) -> int:
    """PSS of the mappings of one file in `smaps`."""
    total, inside = 0, False
    for line in smaps.splitlines():
        if "-" in line.split(maxsplit=1)[0]:  # the head of a mapping: its addresses, and its file last
            inside = line.endswith(path)
        elif inside and line.startswith("Pss:"):
            total += int(line.split()[1])
    return total


def added_per_process(found: list[Memory], source: str) -> dict[str, Any]:
    """What each process after the first adds, on average."""
    added = {}
    for shared in (True, False):
        rows = [memory for memory in found if memory.source == source and memory.shared is shared]
        first, last = rows[0], rows[-1]
        steps = last.num_processes - first.num_processes
        added["shared" if shared else "copied"] = (last.pss_mib - first.pss_mib) / steps if steps else None
    return added


def describe(memory: Memory) -> str:
    """One measurement in words."""
    how = "shared" if memory.shared else "copied"
    return (
        f"{memory.source} ({memory.weights_mib:.0f} MiB) {how}, {memory.num_processes} process(es): "
        f"PSS {memory.pss_mib:.0f} MiB, of it anonymous {memory.anonymous_mib:.0f}, "
        f"mapped weights {memory.mapped_weights_mib:.0f}"
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(tyro.cli(Options))
