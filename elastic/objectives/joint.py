"""The joint loss: a weighted sum of named objectives.

A batch that lacks what an objective needs skips that objective for this step. That is a rule, not an accident:
`check` refuses, before the first step, an objective that no stream can feed and a stream that feeds none.
"""

import re
from collections.abc import Collection, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from elastic.batch import Batch, Passes, PassName
from elastic.errors import ConfigError
from elastic.objectives.base import Dimensions, Objective, ObjectiveConfig, Terms

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def check(objectives: Mapping[str, ObjectiveConfig], *streams: Collection[str]) -> None:
    """Accept objectives that the data can feed; each of `streams` is the set of `Batch` fields it carries.

    Raises:
        ConfigError: an objective finds no stream with all it needs, or a stream feeds none that trains the largest
            submodel from the start.
    """
    for name, config in objectives.items():
        if not any(config.needs <= set(fields) for fields in streams):
            missing = min((config.needs - set(fields) for fields in streams), key=len, default=config.needs)
            rule = f"needs batches with {sorted(missing)}, which no stream carries"
            raise ConfigError(f"objectives.{name}", type(config).__name__, rule)
    for index, fields in enumerate(streams):
        fed = [config for config in objectives.values() if config.needs <= set(fields)]
        if not fed:
            raise ConfigError(f"data.streams[{index}]", sorted(fields), "carries too little for every objective")
        # What follows the largest submodel has nothing to say at the largest itself.
        if all(config.start > 0 or "largest" in config.passes for config in fed):
            rule = "feeds only objectives that start later or follow the largest submodel; it needs another one"
            raise ConfigError(f"data.streams[{index}]", sorted(fields), rule)


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

    def passes(self, present: frozenset[str], progress: float) -> frozenset[PassName]:
        """The encoder passes that a batch with these fields is to be given, besides the clean one."""
        active = self._weights(present, progress)
        return frozenset().union(*(self.configs[name].passes for name in active))

    def forward(self, passes: Passes, batch: Batch) -> tuple[Float[Tensor, ""], Terms]:
        """The loss, and its unweighted terms named `objective/term`."""
        loss = torch.zeros((), device=passes.clean.embedding.device)
        report: Terms = {}
        for name, weight in self._weights(batch.present, passes.progress).items():
            terms = self.objectives[name](passes, batch)
            loss = loss + weight * sum(value for term, value in terms.items() if "@" not in term)
            report |= {f"{name}/{term}": value for term, value in terms.items()}
        return loss, report

    def after_step(self, decay: float) -> None:
        """See `Objective.after_step`."""
        for objective in self.objectives.values():
            assert isinstance(objective, Objective)
            objective.after_step(decay)

    def _weights(self, present: frozenset[str], progress: float) -> dict[str, float]:
        """The objectives that count now, and how much."""
        fed = {name: config for name, config in self.configs.items() if config.needs <= present}
        assert fed, f"a batch with {sorted(present)} feeds no objective"
        return {name: config.weight_at(progress) for name, config in fed.items() if progress >= config.start}
