"""From what a user types to the function that returns the configuration."""

import difflib
import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from elastic.errors import ConfigError
from elastic.lm.training.config import MatlmConfig
from elastic.recipes.debug import debug
from elastic.recipes.icons import icons, icons_demo
from elastic.recipes.joint import joint
from elastic.recipes.matlm import matlm, matlm_debug, matlm_gpu
from elastic.recipes.matvit import matvit, mrl
from elastic.recipes.mim import mim
from elastic.recipes.synclr import synclr
from elastic.recipes.tips import tips, tips_v2
from elastic.recipes.udon import udon, udon_by_size, udon_in_turns
from elastic.train.config import TrainConfig

Recipe: TypeAlias = Callable[[], TrainConfig | MatlmConfig]

_ALL: tuple[Recipe, ...] = (
    icons,
    icons_demo,
    debug,
    joint,
    tips,
    tips_v2,
    synclr,
    mim,
    matvit,
    mrl,
    udon,
    udon_by_size,
    udon_in_turns,
    matlm,
    matlm_debug,
    matlm_gpu,
)
RECIPES: dict[str, Recipe] = {recipe.__name__: recipe for recipe in _ALL}
"""The runs that come with the package; the first is the default."""


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`, or the function that `package.module:function` names.

    Raises:
        ConfigError: there is none.
    """
    if ":" in name:
        return _import(name)
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        known = ", ".join(RECIPES)
        raise ConfigError("recipe", name, f"is unknown; {guess}known: {known}, or package.module:function")
    return RECIPES[name]


def _import(name: str) -> Recipe:
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # an installed command does not look in the working directory by itself
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise ConfigError("recipe", name, f"cannot be imported: {error}") from error

    @functools.wraps(found)
    def checked() -> TrainConfig | MatlmConfig:
        config = found()
        if not isinstance(config, TrainConfig | MatlmConfig):
            rule = f"must return a TrainConfig or a MatlmConfig, returned a {type(config).__name__}"
            raise ConfigError("recipe", name, rule)
        return config

    return checked
