"""The nineteen common corruptions of small images, at five severities each.

Parameters and algorithms are those of CIFAR-10-C (Hendrycks and Dietterich, arXiv 1903.12261),
implemented in JAX on the device, with one random key per image. `docs/corruptions.md` says which
match the published sets exactly and which are our own.
"""

from __future__ import annotations

from jaxlab.data.images.corruptions.catalogue import EVALUATED_NAMES as EVALUATED_NAMES
from jaxlab.data.images.corruptions.catalogue import EXTRA_NAMES as EXTRA_NAMES
from jaxlab.data.images.corruptions.catalogue import NAMES as NAMES
from jaxlab.data.images.corruptions.catalogue import OWN_NAMES as OWN_NAMES
from jaxlab.data.images.corruptions.catalogue import SEVERITIES as SEVERITIES
from jaxlab.data.images.corruptions.catalogue import Corruption as Corruption
from jaxlab.data.images.corruptions.catalogue import corrupt as corrupt
from jaxlab.data.images.corruptions.catalogue import make as make

__all__ = [
    "EVALUATED_NAMES",
    "EXTRA_NAMES",
    "NAMES",
    "OWN_NAMES",
    "SEVERITIES",
    "Corruption",
    "corrupt",
    "make",
]
