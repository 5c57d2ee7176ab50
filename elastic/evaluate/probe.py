"""Every frozen-feature protocol on one source: what an encoder is worth beyond retrieval.

Each granularity is measured at every trained width where a protocol reads the embedding (zero-shot, captions,
neighbours), and once where it reads tokens (linear, segments, depth). A protocol that model or data do not allow is
left out, with the reason; one that was asked for by name is an error.
"""

from collections.abc import Sequence
from itertools import count

from elastic.data.dense import DenseSet
from elastic.data.schema import SEGMENTS
from elastic.data.tokenizer import Tokenizer
from elastic.errors import ConfigError
from elastic.evaluate.features import read_images
from elastic.evaluate.probe_result import METRIC_KINDS, ProbeMetric, Probes, ProbeScore, ProbeTask, Scale
from elastic.evaluate.probe_set import ProbeSet, dense_columns, load_dense, load_probe_set
from elastic.evaluate.probe_tasks import TASKS, Bench, Images, ProbesConfig, View, embed, synthetic_caption_token
from elastic.evaluate.run import OnProgress
from elastic.model.config import Preprocess
from elastic.model.encoder import Encoder
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect


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
    on_progress("reading images", 0, len(tasks) * len(encoder.space.granularities))
    splits = dict.fromkeys((data.split, *(split for task in tasks for split in TASKS[task].fitted_on)))
    images = {split: read_images(data.source, data.parts[split].row_ids, preprocess) for split in splits}
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
        scores=_measure(bench, tasks, images, on_progress),
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


def _load_dense(data: ProbeSet, asked: Sequence[ProbeTask]) -> dict[str, DenseSet]:
    wanted = not asked or not {"segments", "depth"}.isdisjoint(asked)
    return load_dense(data) if wanted and len(data.train) and SEGMENTS in dense_columns(data.source) else {}


def _measure(
    bench: Bench, tasks: Sequence[ProbeTask], images: dict[str, Images], on_progress: OnProgress
) -> tuple[ProbeScore, ...]:
    granularities = bench.encoder.space.granularities
    steps = count(0)
    scores: list[ProbeScore] = []
    for granularity, submodel in granularities.items():
        embedded = embed(bench, images[bench.data.split], submodel)
        view = View(submodel=submodel, images=images, embedded=embedded)
        for task in tasks:
            on_progress(f"{task} of {granularity}", next(steps), len(tasks) * len(granularities))
            values = TASKS[task].measure(bench, view)
            scores += [
                ProbeScore(metric=metric, submodel=submodel, embed_dim=width, value=value)
                for (metric, width), value in values.items()
            ]
    return tuple(scores)
