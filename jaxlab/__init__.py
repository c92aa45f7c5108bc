"""Research on sequence models and deep networks in JAX.

The rooms of the house load on first use: `import jaxlab` alone imports nothing else and touches no
device.

>>> import jaxlab
>>> jaxlab.core.nearest("num_layer", ["num_layers", "width"])
"; did you mean 'num_layers'?"
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jaxlab._version import __version__ as __version__

if TYPE_CHECKING:
    from jaxlab import analysis as analysis
    from jaxlab import checkpoint as checkpoint
    from jaxlab import core as core
    from jaxlab import data as data
    from jaxlab import evals as evals
    from jaxlab import models as models
    from jaxlab import nn as nn
    from jaxlab import objectives as objectives
    from jaxlab import planning as planning
    from jaxlab import probes as probes
    from jaxlab import results as results
    from jaxlab import sampling as sampling
    from jaxlab import sparsity as sparsity
    from jaxlab import study as study
    from jaxlab import train as train

__all__ = [
    "analysis",
    "checkpoint",
    "core",
    "data",
    "evals",
    "models",
    "nn",
    "objectives",
    "planning",
    "probes",
    "results",
    "sampling",
    "sparsity",
    "study",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"jaxlab.{name}")
    # Tools ask every module for dunder names; they get their answer without an import of core.
    if name.startswith("__"):
        raise AttributeError(f"module 'jaxlab' has no attribute {name!r}")
    from jaxlab.core import nearest

    raise AttributeError(f"module 'jaxlab' has no attribute {name!r}{nearest(name, __all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
