"""The software and devices of this process, without anything that identifies its owner."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")


def current_environment() -> dict[str, Any]:
    """Returns library versions and devices of this process; initialises the JAX backend.

    These are versions, the operating system and machine type, the number of logical cores, the JAX
    platform, and the kind and number of devices of all processes. There is no host name, user name
    or path, so a results file can be published unchanged.
    """
    import jax

    import jaxlab

    return {
        "jaxlab": jaxlab.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "platform": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
    }
