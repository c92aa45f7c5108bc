"""Everything that a training is made of, planned from shapes before any array exists."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from jaxlab.core import (
    RULES,
    Batch,
    Objective,
    Rules,
    UsageError,
    View,
    batch_sharding,
    make_mesh,
    num_row_shards,
    place_rows,
    require_rows,
    use_mesh,
)
from jaxlab.data import Stream
from jaxlab.planning.pods import Pod
from jaxlab.planning.step_cost import cost_lines, step_cost
from jaxlab.train import optimizers
from jaxlab.train.config import TrainConfig
from jaxlab.train.intervention import Intervention
from jaxlab.train.state import Build, StatePlan, TrainState, plan_state
from jaxlab.train.step import Step, make_step, metric_names

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """A training before it runs: made once by `make_setup`, then passed.

    Trainings that differ only in their seeds may share one setup, and with it the compiled
    programs.

    Attributes:
      config: see `TrainConfig`; its seed is only the default of `init`.
      objective: `objective(model, batch, carry, key) -> Loss`.
      optimizer: the optax optimizer over the flat parameters, wrapped by the interventions.
      mesh: the devices.
      rules: logical axis to mesh axes.
      plan: shapes and shardings of the state.
      step: the jitted training step.
      batch: the shapes of a global batch, [b, ...] by name.
      interventions: what changes the training; see `Intervention`.
      tokens_per_step: targets in one step, for rates; None where there is no such number.
    """

    config: TrainConfig
    objective: Objective
    optimizer: optax.GradientTransformation
    mesh: Mesh
    rules: Rules
    plan: StatePlan
    step: Step
    batch: Mapping[str, jax.ShapeDtypeStruct]
    interventions: tuple[Intervention, ...] = ()
    tokens_per_step: int | None = None

    @property
    def view(self) -> View:
        """The model, with shapes in place of arrays."""
        return self.plan.view

    def place(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Puts this process's rows of a batch on its devices, as its part of the global batch."""
        return place_rows(dict(batch), batch_sharding(self.mesh, self.rules))

    def init(self, first_batch: Callable[[], Batch], seed: int | None = None) -> TrainState:
        """Makes the state that a training starts from.

        Args:
          first_batch: makes the first batch on the devices, for interventions that look at data.
          seed: the training's seed; by default that of the config.
        """
        seed = self.config.seed if seed is None else seed
        state = self.plan.init(seed)
        with use_mesh(self.mesh, self.rules):
            for intervention in self.interventions:
                state = intervention.begin(self, state, first_batch, seed)
        return state

    def check(self, state: TrainState) -> None:
        """Checks that a restored state fits the interventions.

        Raises:
          UsageError: it does not.
        """
        for intervention in self.interventions:
            intervention.check(state)

    def trained(self, state: TrainState) -> View:
        """The view of the model with the arrays of a state."""
        return self.view.at(state.params, state.model_state)

    def describe(self, pod: Pod | None = None) -> list[str]:
        """Lines on size, memory, sharding and length of the training, from shapes alone.

        Without a pod nothing is compiled, and memory is that of the state; activations come on top.

        Args:
          pod: devices to compile the step for, within `core.use_devices(pod.devices,
            pod.platform)`, where the setup was made too.
        """
        state, config, view = self.plan.abstract, self.config, self.view
        axes = ", ".join(f"{axis}={size}" for axis, size in self.mesh.shape.items() if size > 1)
        kind = self.mesh.devices.flat[0].device_kind
        rows = config.batch_size // num_row_shards(batch_sharding(self.mesh, self.rules))
        per_step = self.tokens_per_step
        tokens = "" if per_step is None else f", {config.steps * per_step:,} tokens"
        lines = [
            f"devices: {self.mesh.size} {kind} ({axes or 'one device'})",
            f"parameters: {view.num_params:,}, {_memory(state.params)}",
            *(line for each in self.interventions for line in each.describe(state.params)),
            f"optimizer state: {_memory(state.opt_state)}",
            f"recurrent state: {_memory(state.carry)}",
            f"batch: {config.batch_size} rows in {config.accumulate} micro-batches, {rows} rows a "
            "device",
            f"steps: {config.steps:,}{tokens}",
            *_sharding_lines(state.params),
            *(f"replicated: {note}" for note in self.plan.notes),
        ]
        if pod is None:
            return lines
        cost = step_cost(lambda: self.step.lower(state, self.batch), state.params, self.mesh)
        parts = {"parameters": state.params, "optimizer": state.opt_state, "carry": state.carry}
        return lines + cost_lines(cost, parts, pod, steps=config.steps, tokens_per_step=per_step)


def make_setup(
    config: TrainConfig,
    *,
    build: Build,
    objective: Objective,
    batch: Mapping[str, Any],
    init_carry: Callable[[int], Any] | None = None,
    interventions: Sequence[Intervention] = (),
    tokens_per_step: int | None = None,
    rules: Rules = RULES,
) -> Setup:
    """Plans a training from shapes, on the devices of `config.mesh`; allocates nothing.

    Args:
      config: see `TrainConfig`.
      build: makes the model.
      objective: `objective(model, batch, carry, key) -> Loss`.
      batch: a global batch, arrays or shapes [b, ...] by name; see `batch_shapes`.
      init_carry: makes the recurrent state for a number of rows.
      interventions: what changes the training; see `Intervention`.
      tokens_per_step: targets in one step, for rates.
      rules: logical axis to mesh axes.

    Raises:
      UsageError: sizes that do not fit each other or the devices; batches that the model or the
        objective does not take.
    """
    mesh = make_mesh(config.mesh)
    require_rows(config.batch_size, mesh, rules, config.accumulate)
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    for name, shape in shapes.items():
        if shape.shape[:1] != (config.batch_size,):
            raise UsageError(
                f"{name!r} of a batch has shape {shape.shape}, expected batch_size="
                f"{config.batch_size} rows"
            )
    view = View.abstract(lambda: build(nnx.Rngs(config.seed)))
    optimizer = optimizers.build(config.optimizer, config.steps, view.padding)
    for intervention in interventions:
        optimizer = intervention.wrap(optimizer, config)
    plan = plan_state(
        build,
        optimizer,
        view=view,
        key=config.seed,
        mesh=mesh,
        rules=rules,
        strict=config.strict_sharding,
        carry=None if init_carry is None else lambda: init_carry(config.batch_size),
    )
    plan = plan.with_metrics(_metric_names(plan, objective, shapes))
    if plan.notes:
        log.warning(
            "%d parameter axes stay replicated, the first: %s", len(plan.notes), plan.notes[0]
        )
    step = make_step(
        plan.view,
        objective,
        optimizer,
        mesh=mesh,
        rules=rules,
        accumulate=config.accumulate,
        reduce_once=config.reduce_once,
    )
    return Setup(
        config,
        objective,
        optimizer,
        mesh,
        rules,
        plan,
        step,
        shapes,
        tuple(interventions),
        tokens_per_step,
    )


def batch_shapes(stream: Stream, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes [b, ...] of global batches, from a stream's next batch.

    Args:
      stream: a `jaxlab.data.Stream`; it is put back to where it was.
      batch_size: rows over all devices.
    """
    position = stream.state()
    batch = next(stream)
    stream.restore(position)
    return {
        name: jax.ShapeDtypeStruct((batch_size, *rows.shape[1:]), rows.dtype)
        for name, rows in batch.items()
    }


def _metric_names(
    plan: StatePlan, objective: Objective, batch: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[str, ...]:
    try:
        return metric_names(plan.view, objective, batch, plan.abstract.carry)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        shapes = ", ".join(f"{name} {x.dtype}{list(x.shape)}" for name, x in batch.items())
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"the model or its objective does not take {shapes}: {reason}") from error


def _memory(tree: Any) -> str:
    total = on_device = 0
    for leaf in jax.tree.leaves(tree):
        total += leaf.size * leaf.dtype.itemsize
        on_device += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return f"{total / 2**20:,.2f} MiB, {on_device / 2**20:,.2f} MiB a device"


def _sharding_lines(params: Mapping[str, Any]) -> list[str]:
    """One line for all parameters of one name, shape and spec, with `*` for the layer's number."""
    alike: dict[str, int] = {}
    for path, p in params.items():
        name = re.sub(r"(?<=/)\d+(?=/)", "*", path)
        line = f"sharding: {name} {p.dtype}{list(p.shape)} {_show_spec(p.sharding)}"
        alike[line] = alike.get(line, 0) + 1
    return [f"{line} x{count}" if count > 1 else line for line, count in alike.items()]


def _show_spec(sharding: NamedSharding) -> str:
    names = [axis if isinstance(axis, str) else "+".join(axis or ()) for axis in sharding.spec]
    return f"({', '.join(name or '-' for name in names)})" if any(names) else "replicated"
