"""The backend `pallas`: windows read by a fused kernel, for TPUs."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlab.nn.backend import Backend, require_fused
from jaxlab.nn.reading import WindowReading
from jaxlab.nn.tpu.windowed_kernel import attend_windows, distances, require_kernel, require_tpu


@dataclasses.dataclass(frozen=True)
class PallasBackend(Backend):
    """Windows by `windowed_kernel`, which has reverse mode alone and no dropout; else plain.

    Attributes:
      interpret: run the kernel as plain operations, on a platform that passes for a TPU; for tests.
    """

    interpret: bool = False

    name: ClassVar[str] = "pallas"

    def require_platform(self) -> None:
        """See `Backend`: it runs on TPUs."""
        require_tpu()

    def require_layer(self, window: int | None, attention_dropout: float) -> None:
        """See `Backend`: it needs a window and drops no weights."""
        require_fused(self.name, window, attention_dropout)

    def read_window(self, reading: WindowReading) -> jax.Array:
        """See `Backend`."""
        heads, (_, t, h, _) = reading.heads, reading.heads.q.shape
        require_kernel(reading.window, t)

        def heads_first(*x_bshk: jax.Array) -> jax.Array:
            x_bgsk = jnp.concatenate(x_bshk, axis=1).swapaxes(1, 2)
            return jnp.repeat(x_bgsk, h // x_bgsk.shape[1], axis=1)

        out_bhtk = attend_windows(
            heads.q.swapaxes(1, 2),
            heads_first(reading.old_k, heads.k),
            heads_first(reading.old_v, heads.v),
            reading.segment.ages(),
            reading.window_bias(distances(reading.window)),
            interpret=self.interpret,
        )
        return out_bhtk.swapaxes(1, 2)
