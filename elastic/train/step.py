"""The algorithm on one screen."""

from collections.abc import Sequence

import torch

from elastic.batch import Batch
from elastic.objectives.base import Terms
from elastic.submodel import Submodel
from elastic.train.seeding import derive_seed
from elastic.train.state import TrainState


def train_step(state: TrainState, batches: Sequence[Batch], submodels: Sequence[Submodel], *, rank: int) -> Terms:
    """Average one joint loss per submodel and batch, share the gradients once, then update once.

    Every submodel sees the same batches and, because the generator is set before each pass, the same dropped paths.
    Returns the step's detached scalars by name, `<objective>/<term>/<granularity>` for the terms.
    """
    report: Terms = {"loss": torch.zeros((), device=batches[0].images.device)}
    num_passes = len(batches) * len(submodels)
    for number, batch in enumerate(batches):
        teacher = state.teach(batch)
        for submodel in submodels:
            torch.manual_seed(derive_seed(state.config.seed, "step", state.step, rank, number))
            is_last = number == len(batches) - 1 and submodel is submodels[-1]
            with state.backward(sync=is_last) as learner:  # workers exchange gradients once a step
                loss, terms = learner(batch, submodel, teacher)
                (loss / num_passes).backward()
            report["loss"] += loss.detach() / num_passes
            granularity = state.space.name(submodel)
            for name, value in terms.items():
                key = f"{name}/{granularity}"
                report[key] = report.get(key, 0) + value.detach() / len(batches)
    report["grad_norm"] = state.update()
    return report
