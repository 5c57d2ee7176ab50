"""What a decoder can be served with: its submodels with their losses, timed on this machine when a replica starts."""

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import median

from elastic.errors import CheckpointError
from elastic.lm.drafts import DraftConfig
from elastic.lm.generate import GenerationConfig, Generator
from elastic.profile.store import SCORES
from elastic.serve.generation.choice import Option
from elastic.submodel import Submodel

NUM_STEPS = 24
"""Steps of each submodel that are timed; the median counts."""
WARM_GAMMA = 2
"""Tokens of the drafts that are made so that no request is the first to need one."""


def read_nats(run: Path) -> dict[Submodel, float]:
    """Validation losses of submodels in nats per token; none if the run was not evaluated.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = run / SCORES
    if not path.is_file():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["submodels"]
        return {Submodel.parse(row["submodel"]): float(row["nats"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(str(path), f"is damaged ({error})", "run `elastic evaluate` again") from error


def measured_options(generator: Generator, nats: Mapping[Submodel, float]) -> list[Option]:
    """What is worth choosing, ascending in quality: granularities, and where losses are known, mixed submodels too.

    Quality is the loss; without losses it is the size.
    """
    space = generator.decoder.space
    submodels = list(nats) or list(space.granularities.values())
    token_ms = measure_token_ms(generator, submodels)
    warm_drafts(generator, submodels)
    found = [Option(submodel, space.name(submodel), nats.get(submodel), token_ms[submodel]) for submodel in submodels]
    return front(sorted(found, key=_badness))


def front(ascending: Sequence[Option]) -> list[Option]:
    """Without those that a better one beats in time; without losses all stay, as none is known to be better."""
    kept: list[Option] = []
    for option in reversed(ascending):
        if option.nats is None or not kept or option.token_ms < kept[-1].token_ms:
            kept.append(option)
    return kept[::-1]


def measure_token_ms(generator: Generator, submodels: Sequence[Submodel]) -> dict[Submodel, float]:
    """Median milliseconds of a plain step of each, from the middle of the context on.

    They take turns, so that a machine that grows slower does so for all.
    """
    length = max(1, generator.decoder.config.max_tokens // 2)
    num_steps = min(NUM_STEPS, generator.decoder.config.max_tokens - length)
    prompt = [0] * length
    running = {
        submodel: generator.generate([prompt], GenerationConfig(max_new_tokens=num_steps, target=submodel))
        for submodel in submodels
    }
    seconds: dict[Submodel, list[float]] = {submodel: [] for submodel in submodels}
    for _ in range(num_steps):
        for submodel, generation in running.items():
            seconds[submodel].append(next(generation).seconds)
    # The first step reads the prompt.
    return {submodel: 1000 * median(taken[1:] or taken) for submodel, taken in seconds.items()}


def warm_drafts(generator: Generator, submodels: Sequence[Submodel]) -> None:
    """Draft and verify once with each as the target, as `auto` would."""
    smallest = generator.decoder.space.smallest
    room = min(2 * WARM_GAMMA, generator.decoder.config.max_tokens - 1)
    for target in submodels:
        if target != smallest and room > WARM_GAMMA:
            draft = DraftConfig(submodel=smallest)
            config = GenerationConfig(max_new_tokens=room, target=target, draft=draft, gamma=WARM_GAMMA)
            list(islice(generator.generate([[0]], config), 2))


def _badness(option: Option) -> tuple[float, int]:
    return (-option.nats if option.nats is not None else 0.0, sum(option.submodel.ffn_dims))
