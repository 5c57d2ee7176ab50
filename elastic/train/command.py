"""The verb `elastic train`: a recipe, changed by flags, becomes a run."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from elastic.errors import CheckpointError
from elastic.lm.training.config import MatlmConfig
from elastic.lm.training.job import MatlmJob
from elastic.recipes.find import RECIPES, find_recipe
from elastic.train.config import TrainConfig
from elastic.train.job import EncoderJob, Job
from elastic.train.record import Origin, read_origin
from elastic.train.trainer import fit

DEFAULT_RECIPE = next(iter(RECIPES))


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """Where and how a run happens; nothing here changes its numbers."""

    run_dir: Path | None = None
    """Directory of the run; left out, runs/NAME."""
    resume: bool = False
    """Continue the run in the run directory from its newest checkpoint. Without recipe and flags, those that it was
    started with are used; with them, they must give the same configuration."""
    dry_run: bool = False
    """Check the configuration against the data, print what would be trained at what cost, and stop."""
    address: str | None = None
    """Ray cluster to train on: `auto` for the one of this machine, or `host:port`; left out, a local Ray is started."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Train a nested encoder or decoder with a recipe, whose every field is a flag."""

    options: Annotated[RunOptions, tyro.conf.arg(name="")]
    config: Annotated[TrainConfig | MatlmConfig, tyro.conf.arg(name="")]
    origin: Annotated[Origin, tyro.conf.Suppress]

    @classmethod
    def parse(cls, arguments: Sequence[str], prog: str) -> "Train":
        """Read `[RECIPE] [--field value ...]`; the recipe's own values are the defaults of the flags.

        Raises:
            ConfigError: no such recipe, or values that contradict each other.
            CheckpointError: asked to resume where there is no run.
        """
        recipe, flags = _split(arguments)
        options, fields = tyro.cli(RunOptions, args=flags, return_unknown_args=True, add_help=False)
        if options.resume and options.run_dir is not None and recipe is None and not fields:
            recipe, fields = _recorded(options.run_dir)
            flags = [*fields, *flags]
        recipe = recipe or DEFAULT_RECIPE
        origin = Origin(recipe=recipe, arguments=tuple(fields))
        return tyro.cli(
            cls,
            prog=f"{prog} {recipe}",
            description=_describe(recipe),
            args=flags,
            default=cls(options=RunOptions(), config=find_recipe(recipe)(), origin=origin),
            config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
        )

    @property
    def job(self) -> Job:
        """What the config asks for."""
        return MatlmJob(self.config) if isinstance(self.config, MatlmConfig) else EncoderJob(self.config)

    def run(self) -> None:
        """Train, or say what would be trained."""
        console = Console()
        if self.options.dry_run:
            console.print(self.job.describe())
            return
        run_dir = self.options.run_dir or Path("runs") / self.config.name
        done = fit(self.job, run_dir, resume=self.options.resume, address=self.options.address, origin=self.origin)
        if done < self.config.steps:
            console.print(f"stopped after step {done} of {self.config.steps}; continue with:")
            console.print(f"  elastic train --resume --run-dir {run_dir}", soft_wrap=True)
        else:
            console.print(f"trained {done} steps; next:  elastic evaluate {run_dir}", soft_wrap=True)


def _split(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The recipe, if the first word is one, and the flags."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], list(arguments[1:])
    return None, list(arguments)


def _recorded(run_dir: Path) -> tuple[str, list[str]]:
    """The recipe and the flags that a run was started with."""
    origin = read_origin(run_dir)
    if origin.recipe is None:
        advice = "resume it there: elastic.train.trainer.fit(EncoderJob(config), run_dir, resume=True)"
        raise CheckpointError(str(run_dir), "was started from Python, without a recipe", advice)
    return origin.recipe, list(origin.arguments)


def _describe(recipe: str) -> str:
    """The head of the help page: what this recipe is, and which others there are."""
    lines = [
        inspect.getdoc(find_recipe(recipe)) or recipe,
        "",
        "Recipes (elastic train RECIPE --help shows its fields):",
    ]
    for name, function in RECIPES.items():
        lines.append(f"  {name}: {(inspect.getdoc(function) or '').splitlines()[0]}")
    return "\n".join([*lines, "  package.module:function: your own"])
