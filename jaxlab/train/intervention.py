"""Interventions: what changes a training without being a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import optax

from jaxlab.core import Batch
from jaxlab.train.config import TrainConfig

if TYPE_CHECKING:
    from jaxlab.train.setup import Setup
    from jaxlab.train.state import TrainState


class Intervention(Protocol):
    """Masks, frozen parameters, weight averages, ...: passed to a training, which names none.

    Several interventions wrap the optimizer and change the first state in the order in which they
    are given. `jaxlab.sparsity.SparsityConfig` is one. Each method may be called on a mesh of many
    devices and by several processes.
    """

    def wrap(
        self, optimizer: optax.GradientTransformation, config: TrainConfig
    ) -> optax.GradientTransformation:
        """Returns the optimizer that the training uses in place of `optimizer`.

        What the intervention remembers (masks, averages) goes into the optimizer's state, and so
        is sharded, saved and restored with it.
        """
        ...

    def begin(
        self, setup: Setup, state: TrainState, first_batch: Callable[[], Batch], seed: int
    ) -> TrainState:
        """Returns the state that a new training starts from; `state` may be donated.

        Args:
          setup: the training.
          state: its first state, with the wrapped optimizer's.
          first_batch: makes the training's first batch, on the devices.
          seed: the training's seed.
        """
        ...

    def check(self, state: TrainState) -> None:
        """Raises `UsageError` if a restored state is not of this intervention."""
        ...

    def describe(self, params: Mapping[str, Any]) -> list[str]:
        """Returns lines for `--dry_run`, from the shapes of the parameters."""
        ...

    def seeds_step(self) -> bool:
        """Whether the wrapped optimizer depends on the training's seed.

        Trainings that differ only in their seeds share one compiled step, unless it does.
        """
        ...
