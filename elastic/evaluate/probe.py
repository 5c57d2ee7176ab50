"""Every frozen-feature protocol on one source: what an encoder is worth beyond retrieval.

Each granularity is measured at every trained width where a protocol reads the embedding (zero-shot, captions,
neighbours), and once where it reads tokens (linear, segments, depth). So are fresh weights of the same shape, at the
full submodel: some of what a trained encoder reaches it owes to its shape alone. A protocol that model or data do not
allow is left out, with the reason; one that was asked for by name is an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from typing import TypeAlias

import torch

from elastic.data.dense import DenseSet
from elastic.data.schema import SEGMENTS
from elastic.data.tokenizer import Tokenizer
from elastic.errors import ConfigError
from elastic.evaluate.features import read_images
from elastic.evaluate.probe_result import METRIC_KINDS, ProbeMetric, Probes, ProbeScore, ProbeTask, Scale
from elastic.evaluate.probe_set import ProbeSet, dense_columns, load_dense, load_probe_set
from elastic.evaluate.probe_tasks import (
    TASKS,
    Bench,
    Images,
    ProbesConfig,
    Values,
    View,
    embed,
    synthetic_caption_token,
)
from elastic.evaluate.run import OnProgress
from elastic.model.config import Preprocess
from elastic.model.encoder import Encoder
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.submodel import Submodel

_SEED = 0
"""Of the fresh weights."""
_FRESH = "untrained weights"

_Subjects: TypeAlias = dict[str, tuple[Bench, Submodel]]
"""What is measured, by its name in the progress: an encoder on its bench, and which submodel runs."""


def probe(
    encoder: Encoder,
    preprocess: Preprocess,
    tokenizer: Tokenizer | None,
    config: ProbesConfig,
    *,
    name: str,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> Probes:
    """Measure an encoder (in eval mode, on its device) by every protocol that its data allow.

    Args:
        encoder: what is measured.
        preprocess: of its manifest.
        tokenizer: of its run; without one, nothing that reads text is measured.
        config: what, on what.
        name: of the run, for the report.
        on_progress: told of every task of every granularity.

    Raises:
        DataError: the data cannot be opened, lack such rows, or an image or a label is broken.
        ConfigError: a task that was asked for is impossible, all are, or the encoder has no such token.
    """
    if config.token == "second_cls_token" and encoder.config.vision.num_cls_tokens < 2:
        raise ConfigError("token", config.token, "this encoder has no second class token; use cls_token")
    data = load_probe_set(config.source, config.split, config.domains, config.max_images)
    dense = _load_dense(data, config.tasks)
    bench = Bench(encoder=encoder, tokenizer=tokenizer, config=config, data=data, dense=dense)
    tasks, not_measured = choose_tasks(bench)
    scales: dict[ProbeMetric, Scale] = {}
    for task in tasks:
        scales |= TASKS[task].scales(bench)
    subjects = _subjects(bench)
    on_progress("reading images", 0, len(tasks) * len(subjects))
    splits = dict.fromkeys((data.split, *(split for task in tasks for split in TASKS[task].fitted_on)))
    images = {split: read_images(data.source, data.parts[split].row_ids, preprocess) for split in splits}
    scores = _measure(subjects, tasks, images, on_progress)
    fresh = scores.pop(_FRESH, ())
    return Probes(
        run_name=name,
        space=encoder.space,
        source=config.source,
        domains=data.domains,
        split=config.split,
        class_names=config.class_names,
        token=config.token,
        synthetic_caption_token=synthetic_caption_token(encoder),
        num_images={split: len(part) for split, part in images.items()},
        max_images=config.max_images,
        scores=tuple(chain.from_iterable(scores.values())),
        untrained=fresh,
        scales={metric: scales[metric] for metric in METRIC_KINDS if metric in scales},
        not_measured=not_measured,
        provenance=collect(device_fingerprint(next(encoder.parameters()).device)),
    )


def choose_tasks(bench: Bench) -> tuple[list[ProbeTask], dict[ProbeTask, str]]:
    """The possible tasks of those that were asked for (by default of all), and why the others are not possible.

    Raises:
        ConfigError: one that was asked for by name is impossible, or all are.
    """
    asked = bench.config.tasks
    reasons: dict[ProbeTask, str | None] = {
        name: task.obstacle(bench) for name, task in TASKS.items() if not asked or name in asked
    }
    obstacles: dict[ProbeTask, str] = {name: reason for name, reason in reasons.items() if reason is not None}
    possible: list[ProbeTask] = [name for name in reasons if name not in obstacles]
    if obstacles and (asked or not possible):
        why = "; ".join(f"{name} is impossible, {reason}" for name, reason in obstacles.items())
        raise ConfigError("tasks", asked, f"{why}; leave such tasks out, or choose other data")
    return possible, obstacles


def untrained(encoder: Encoder) -> Encoder:
    """Fresh weights of the same shape, in eval mode on the same device; always the same ones, no checkpoint read.

    The caller's random numbers go on as if this had not been called.
    """
    with torch.random.fork_rng(devices=()):
        # Not torch.manual_seed, which would seed other devices too. Weights are drawn on the CPU.
        torch.default_generator.manual_seed(_SEED)
        fresh = Encoder(encoder.config)
    return fresh.eval().to(next(encoder.parameters()).device)


def _load_dense(data: ProbeSet, asked: Sequence[ProbeTask]) -> dict[str, DenseSet]:
    wanted = not asked or not {"segments", "depth"}.isdisjoint(asked)
    return load_dense(data) if wanted and len(data.train) and SEGMENTS in dense_columns(data.source) else {}


def _subjects(bench: Bench) -> _Subjects:
    encoder = bench.encoder
    found: _Subjects = {name: (bench, submodel) for name, submodel in encoder.space.granularities.items()}
    if bench.config.untrained:
        found[_FRESH] = (replace(bench, encoder=untrained(encoder)), encoder.space.full)
    return found


def _measure(
    subjects: _Subjects, tasks: Sequence[ProbeTask], images: Mapping[str, Images], on_progress: OnProgress
) -> dict[str, tuple[ProbeScore, ...]]:
    steps = count()
    scores: dict[str, tuple[ProbeScore, ...]] = {}
    for name, (bench, submodel) in subjects.items():
        embedded = embed(bench, images[bench.data.split], submodel)
        view = View(submodel=submodel, images=images, embedded=embedded)
        values: Values = {}
        for task in tasks:
            on_progress(f"{task} of {name}", next(steps), len(tasks) * len(subjects))
            values |= TASKS[task].measure(bench, view)
        scores[name] = tuple(
            ProbeScore(metric=metric, submodel=submodel, embed_dim=width, value=value)
            for (metric, width), value in values.items()
        )
    return scores
