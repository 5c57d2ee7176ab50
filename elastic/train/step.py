"""The algorithm on one screen."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from elastic.batch import Batch
from elastic.objectives.base import Terms
from elastic.submodel import Submodel
from elastic.train.alarm import embedding_health
from elastic.train.seeding import derive_seed
from elastic.train.state import TrainState


def train_step(state: TrainState, batches: Sequence[Batch], submodels: Sequence[Submodel], *, rank: int) -> Terms:
    """Average one joint loss per submodel and batch, share the gradients once, then update once.

    Every submodel, largest first, sees the same batches, masks and teacher and, because the generator is set before
    each, the same dropped paths. Returns the step's detached scalars by name, `<objective>/<term>/<granularity>` for
    the terms, and how much this worker's embeddings vary.
    """
    report: Terms = {"loss": torch.zeros((), device=batches[0].images.device)}
    share = 1 / (len(batches) * len(submodels))
    for number, planned in enumerate(batches):
        batch, given = state.prepare(planned, number, submodels)
        for submodel in submodels:
            torch.manual_seed(derive_seed(state.config.seed, "step", state.step, rank, number))
            is_last = number == len(batches) - 1 and submodel is submodels[-1]
            loss, terms, features = state.learn(batch, submodel, given, share=share, sync=is_last)
            terms |= {f"embedding/{name}": value for name, value in embedding_health(features.embedding).items()}
            if submodel == state.space.full:
                given = replace(given, largest=features)
            report["loss"] += share * loss
            granularity = state.space.name(submodel)
            for name, value in terms.items():
                key = f"{name}/{granularity}"
                report[key] = report.get(key, 0) + value.detach() / len(batches)
    report["grad_norm"] = state.update()
    return report
