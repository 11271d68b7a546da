"""Named experiments, a file per world: what is run, what it costs, what to expect, and from where
that number is.

A recipe is a function that returns an `Experiment`, named in its file's `__all__`. Its name on the
command line has dashes. Here, and in no part further left, concrete plug-ins are put together.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from lewm.experiments.experiment import Experiment
from lewm.experiments.methods import with_method
from lewm.registry import choose

__all__ = ["RECIPES", "load"]


def _found() -> dict[str, Callable[[], Experiment]]:
    """Name -> recipe, of all files beside this one."""
    recipes = {}
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        for name in module.__all__:
            recipes[name.replace("_", "-")] = getattr(module, name)
    return recipes


RECIPES = _found()


def load(name: str) -> Experiment:
    """The settings of a recipe by name, or of RECIPE+METHOD, see `experiments.methods`; an unknown
    one is answered with the nearest."""
    name, _, method = name.replace("_", "-").partition("+")
    recipe = RECIPES[choose("recipe", name, RECIPES)]()
    return with_method(recipe, method) if method else recipe
