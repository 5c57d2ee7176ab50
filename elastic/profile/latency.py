"""Measures what one encoder call costs, per submodel and batch size, on this machine.

A call is what serving does with a batch: decoded canvases or tokens in, L2-normalised numpy embeddings out (so a GPU
is handed the input and waited for), by the same trace. Decoding and network are not in it. Rules that make the numbers
comparable:

- every cell (modality, submodel, batch size) is called once per round, in an order shuffled anew each round, so
  that a machine that slows down, or a neighbour that wakes up, hits all cells alike and none by its place;
- the first rounds warm up caches and are thrown away;
- nothing is removed or smoothed: quantiles are of all calls. With n rounds the p99 is close to the maximum unless
  n is well above 100. `LatencyTable.isotonic` offers a smoothed view.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from elastic.errors import ConfigError
from elastic.model.config import Preprocess
from elastic.model.encoder import Encoder
from elastic.model.preprocess import CANVAS_CHANNELS, CANVAS_SCALE
from elastic.model.traced import trace
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.profile.tables import LatencyRow, LatencyTable, Modality
from elastic.submodel import Space, Submodel

Cell = tuple[Modality, Submodel, int]
"""(modality, submodel, batch size)."""
Key = TypeVar("Key")

Clock = Callable[[], float]
"""Seconds since some fixed moment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyConfig:
    """How to measure."""

    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Items per call; predictions reach from the smallest to the largest of them."""
    rounds: int = 50
    """Measured calls of each cell."""
    warmup_rounds: int = 3
    """Calls of each cell before, not counted."""
    max_s: float = 300.0
    """Stop after the round in which this much time has passed, with fewer rounds measured (seconds)."""
    num_threads: int = 1
    """Threads that torch uses inside a call."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic; bfloat16 is autocast over float32 weights."""
    seed: int = 0
    """Of the order of calls and of the random input."""

    def __post_init__(self) -> None:
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ConfigError("batch_sizes", self.batch_sizes, "needs at least one positive size")
        if self.rounds < 1 or self.warmup_rounds < 0 or self.num_threads < 1:
            raise ConfigError(
                "rounds", self.rounds, "rounds and num_threads must be positive, warmup_rounds not negative"
            )


def measure(
    encoder: Encoder,
    config: LatencyConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    submodels: Mapping[Modality, list[Submodel]] | None = None,
    on_round: Callable[[], None] = lambda: None,
    clock: Clock = time.perf_counter,
) -> LatencyTable:
    """The latency table of an encoder, which stays on `device`.

    Args:
        encoder: in eval mode.
        config: how to measure; by default `LatencyConfig()`.
        device: where to compute.
        submodels: what to measure of each tower; by default `default_submodels(encoder)`.
        on_round: called after each round, for progress.
        clock: injected by tests.
    """
    config = config or LatencyConfig()
    encoder = encoder.to(device)
    generator = torch.Generator().manual_seed(config.seed)
    preprocess = Preprocess(image_size=encoder.config.vision.image_size)  # its numbers do not change how long it takes
    calls: dict[Cell, Callable[[], np.ndarray]] = {}
    for modality, chosen in (submodels or default_submodels(encoder)).items():
        for submodel in chosen:
            embed = trace(encoder, preprocess, modality, submodel, config.dtype)
            for batch_size in config.batch_sizes:
                inputs = _inputs(encoder, modality, batch_size, generator)
                calls[modality, submodel, batch_size] = partial(_to_numpy, embed, inputs, device)
    with torch_threads(config.num_threads), torch.inference_mode():
        seconds = time_in_rounds(calls, config, on_round, clock)
    here = device_fingerprint(device)
    rows = [_row(cell, times, str(here), config) for cell, times in seconds.items()]
    return LatencyTable(rows, collect(here))


def default_submodels(encoder: Encoder) -> dict[Modality, list[Submodel]]:
    """The granularities and Mix'n'Match candidates of each tower the encoder has."""
    towers: dict[Modality, Space | None] = {"image": encoder.space, "text": encoder.text_space}
    return {modality: list(space.mixes()) for modality, space in towers.items() if space is not None}


def time_in_rounds(
    calls: Mapping[Key, Callable[[], object]],
    config: LatencyConfig,
    on_round: Callable[[], None] = lambda: None,
    clock: Clock = time.perf_counter,
) -> dict[Key, list[float]]:
    """Seconds of each call, once per round, in an order that is shuffled each round."""
    rng = np.random.default_rng(config.seed)
    keys = list(calls)
    seconds: dict[Key, list[float]] = {key: [] for key in keys}
    begin = clock()
    for number in range(config.warmup_rounds + config.rounds):
        for position in rng.permutation(len(keys)):
            start = clock()
            calls[keys[position]]()
            elapsed = clock() - start
            if number >= config.warmup_rounds:
                seconds[keys[position]].append(elapsed)
        on_round()
        if number >= config.warmup_rounds and clock() - begin > config.max_s:
            break
    return seconds


@contextmanager
def torch_threads(num_threads: int) -> Iterator[None]:
    """Run with this many intra-op threads, and put the old number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _inputs(encoder: Encoder, modality: Modality, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """A random batch, in the processor's memory."""
    if modality == "image":
        side = CANVAS_SCALE * encoder.config.vision.image_size
        shape = (batch_size, CANVAS_CHANNELS, side, side)
        return (torch.randint(256, shape, dtype=torch.uint8, generator=generator),)
    text = encoder.config.text
    assert text is not None
    tokens = torch.randint(1, text.vocab_size, (batch_size, text.max_tokens), generator=generator)
    return tokens, torch.ones_like(tokens, dtype=torch.bool)


def _to_numpy(embed: Callable[..., Tensor], inputs: tuple[Tensor, ...], device: torch.device | str) -> np.ndarray:
    return embed(*(part.to(device) for part in inputs)).cpu().numpy()


def _row(cell: Cell, seconds: list[float], device: str, config: LatencyConfig) -> LatencyRow:
    modality, submodel, batch_size = cell
    times_ms = np.array(seconds) * 1000
    p50, p90, p99 = (float(value) for value in np.quantile(times_ms, (0.5, 0.9, 0.99)))
    return LatencyRow(
        device=device,
        dtype=config.dtype,
        num_threads=config.num_threads,
        modality=modality,
        submodel=submodel,
        batch_size=batch_size,
        n=len(seconds),
        mean_ms=float(times_ms.mean()),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        min_ms=float(times_ms.min()),
        max_ms=float(times_ms.max()),
    )
