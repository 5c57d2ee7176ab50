"""The joint loss: a weighted sum of named objectives.

A batch that lacks what an objective needs skips that objective for this step. That is a rule, not an accident:
`check` refuses, before the first step, an objective that no stream can feed and a stream that feeds none.
"""

import re
from collections.abc import Collection, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from elastic.batch import Batch, Features
from elastic.errors import ConfigError
from elastic.objectives.base import Dimensions, ObjectiveConfig, Terms

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def check(objectives: Mapping[str, ObjectiveConfig], *streams: Collection[str]) -> None:
    """Accept objectives that the data can feed; each of `streams` is the set of `Batch` fields it carries.

    Raises:
        ConfigError: an objective finds no stream with all it needs, or a stream feeds no objective.
    """
    for name, config in objectives.items():
        if not any(config.needs <= set(fields) for fields in streams):
            missing = min((config.needs - set(fields) for fields in streams), key=len, default=config.needs)
            rule = f"needs batches with {sorted(missing)}, which no stream carries"
            raise ConfigError(f"objectives.{name}", type(config).__name__, rule)
    for index, fields in enumerate(streams):
        if not any(config.needs <= set(fields) for config in objectives.values()):
            raise ConfigError(f"data.streams[{index}]", sorted(fields), "carries too little for every objective")


class JointObjective(nn.Module):
    """Sum of weight times term over all objectives that a batch can feed."""

    def __init__(self, objectives: Mapping[str, ObjectiveConfig], dims: Dimensions) -> None:
        """Build every objective.

        Raises:
            ConfigError: a name is not a plain identifier, or an objective does not fit `dims`.
        """
        super().__init__()
        for name in objectives:
            if not _NAME.fullmatch(name):
                raise ConfigError("objectives", name, "names are letters, digits and underscores")
        self.configs = dict(objectives)
        self.objectives = nn.ModuleDict({name: config.build(dims) for name, config in objectives.items()})

    @property
    def needs_teacher(self) -> bool:
        """Whether any objective reads teacher features."""
        return any(config.needs_teacher for config in self.configs.values())

    def forward(self, student: Features, batch: Batch, teacher: Features | None) -> tuple[Float[Tensor, ""], Terms]:
        """The loss, and its unweighted terms named `objective/term`."""
        loss = torch.zeros((), device=student.embedding.device)
        report: Terms = {}
        for name, config in self.configs.items():
            if not config.needs <= batch.present:
                continue
            assert teacher is not None or not config.needs_teacher, f"{name} needs a teacher"
            terms = self.objectives[name](student, batch, teacher)
            loss = loss + config.weight * sum(value for term, value in terms.items() if "@" not in term)
            report |= {f"{name}/{term}": value for term, value in terms.items()}
        assert report, f"a batch with {sorted(batch.present)} feeds no objective"
        return loss, report
