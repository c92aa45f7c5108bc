"""A whole training run from a config: plan, resume, train, save; and its description."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
from jax.sharding import Mesh, NamedSharding

from jaxlab.checkpoint.checkpoints import FOLDER, Checkpoints, Restored
from jaxlab.core import (
    RULES,
    MeshConfig,
    Objective,
    Rules,
    UsageError,
    View,
    batch_sharding,
    is_main_process,
    make_mesh,
    num_row_shards,
    place_rows,
    require_rows,
    use_mesh,
)
from jaxlab.data import Prefetch, Stream
from jaxlab.planning.pods import Pod
from jaxlab.planning.step_cost import cost_lines, step_cost
from jaxlab.results import MetricWriter, NoMetrics
from jaxlab.sparsity.config import SparsityConfig, require_masks_of, start_sparse
from jaxlab.train import optimizers
from jaxlab.train.hooks import Evaluate, Hook, SaveCheckpoint
from jaxlab.train.logs import LogMetrics
from jaxlab.train.loop import Run, fit
from jaxlab.train.optimizers import OptimizerConfig
from jaxlab.train.progress import ProgressBar
from jaxlab.train.recovery import Recovery, Skips, StopOnSpike, losses_until
from jaxlab.train.state import Build, StatePlan, TrainState, plan_state
from jaxlab.train.step import make_step, metric_names
from jaxlab.train.stopping import (
    StopOnNaN,
    StopOnSignal,
    TrainingDiverged,
    TrainingInterrupted,
)
from jaxlab.train.watchdog import Watchdog

log = logging.getLogger(__name__)

KEPT = ("keep_last", "keep_every", "keep_best", "best_metric", "best_mode")
"""The fields of `TrainConfig` that `Checkpoints` takes."""

MAY_CHANGE = (
    *KEPT,
    "log_every",
    "watch_every",
    "save_every",
    "prefetch",
    "mesh",
    "on_divergence",
    "spike_factor",
    "max_skips",
    "stuck_seconds",
)
"""The fields of `TrainConfig` that do not change what a run computes: a run that is taken up again
may have others."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
      steps: optimizer steps in all.
      batch_size: rows of the batch over all devices.
      seed: of the model's initialisation and of what the steps draw.
      accumulate: micro-batches a batch is split into; it divides `batch_size`.
      reduce_once: reduce gradients over `data` once a step; see `make_step` for what it asks of
        the loss.
      log_every: steps a row of metrics.
      watch_every: steps a row of what instruments measure; None does without.
      save_every: steps a checkpoint.
      eval_every: steps an evaluation; None evaluates at the end only.
      keep_last, keep_every, keep_best, best_metric, best_mode: which checkpoints are kept; see
        `Checkpoints`. The metric is a column of `metrics.jsonl`, such as
        `held_out/bits_per_byte`; a checkpoint has the value last measured before it, so let
        `save_every` be a multiple of `eval_every`.
      prefetch: batches made ahead.
      on_divergence: what follows numbers that are not finite, or a spike: `stop` ends the run;
        `skip` goes back to the last good checkpoint and passes over the batches after it, as
        arXiv:2204.02311, section 5.1, does.
      spike_factor: a training loss of more than this times the median of the last rows of metrics
        is a spike (see `StopOnSpike`); None: there are no spikes, only numbers that are not finite.
      max_skips: how often a run skips, in all, before a divergence ends it.
      stuck_seconds: a run in which no step is done for so long prints the stacks of its threads and
        ends (see `Watchdog`); None waits for ever.
      strict_sharding: refuse parameter axes that do not divide over the mesh.
      mesh: how the devices are laid out.
      optimizer: the optimizer and its learning rate.

    Raises:
      UsageError: a value out of its range.
    """

    steps: int = 1000
    batch_size: int = 8
    seed: int = 0
    accumulate: int = 1
    reduce_once: bool = False
    log_every: int = 10
    watch_every: int | None = None
    save_every: int = 500
    eval_every: int | None = None
    keep_last: int = 2
    keep_every: int | None = None
    keep_best: int | None = None
    best_metric: str | None = None
    best_mode: Literal["min", "max"] = "min"
    prefetch: int = 2
    on_divergence: Literal["stop", "skip"] = "stop"
    spike_factor: float | None = None
    max_skips: int = 3
    stuck_seconds: float | None = None
    strict_sharding: bool = False
    mesh: MeshConfig = MeshConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self):
        least = {"seed": 0, "max_skips": 0}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is int and value < least.get(field.name, 1):
                raise UsageError(
                    f"train field {field.name}={value}; it takes a whole number of "
                    f"{least.get(field.name, 1)} or more"
                )
        if self.on_divergence not in ("stop", "skip"):
            raise UsageError(
                f"train field on_divergence={self.on_divergence!r}; it takes 'stop' or 'skip'"
            )
        for name, above in (("spike_factor", 1), ("stuck_seconds", 0)):
            value = getattr(self, name)
            if value is not None and not above < value < math.inf:
                raise UsageError(
                    f"train field {name}={value}; it takes a number above {above}, or none"
                )
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"train field accumulate={self.accumulate} does not divide "
                f"batch_size={self.batch_size}; accepted: {_divisors(self.batch_size)}"
            )


def run_training(
    config: TrainConfig,
    *,
    build: Build,
    objective: Objective,
    stream: Stream,
    workdir: str | os.PathLike[str],
    init_carry: Callable[[int], Any] | None = None,
    hooks: Sequence[Hook] = (),
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None = None,
    watch: Callable[[TrainState], Mapping[str, Any]] | None = None,
    meta: Mapping[str, Any] | None = None,
    tokens_per_step: int | None = None,
    description: str = "",
    rules: Rules = RULES,
    sparsity: SparsityConfig | None = None,
) -> tuple[View, Run]:
    """Trains a model in a workdir, or continues the training that is there.

    The workdir gets `metrics.jsonl`, TensorBoard events and `checkpoints/`. A run that is taken up
    again, after whatever ended it, gives the parameters and metrics that it would have given
    without the break. One that is complete is only read.

    Args:
      config: see `TrainConfig`.
      build: makes the model.
      objective: `objective(model, batch, carry, key) -> Loss`.
      stream: batches of numpy arrays [b, ...], with `state()` and `restore(state)`; with several
        hosts, each reads its rows, see `core.local_rows`.
      workdir: an existing folder or a `Record`.
      init_carry: makes the recurrent state of so many rows.
      hooks: more of them, called behind logs, evaluation and progress bar, before checkpoints;
        started once more each time that the run goes back to a checkpoint.
      evaluate: `evaluate(state)` gives a row of metrics every `config.eval_every` steps and at the
        end.
      watch: the same every `config.watch_every` steps, for what costs little, such as
        `probes.state_statistics`.
      meta: kept in the checkpoints, as plain JSON.
      tokens_per_step: targets in one step, for the rate shown.
      description: words before the progress bar.
      rules: logical axis to mesh axes.
      sparsity: how the model is sparse, see `SparsityConfig`; None, or a density of 1: not at all.
        The masks are in the state of the optimizer, see `masks_of`, and so in the checkpoints;
        `snip` and `synflow` find them on the first batch.

    Returns:
      The view of the trained model, with its arrays, and the run.

    Raises:
      UsageError: sizes that do not fit each other or the devices; a checkpoint of another config.
      TrainingDiverged: numbers that are not finite, or a spike, as the config has it.
      WriteError: a disk that takes no more; the checkpoints before are good.
      TrainingInterrupted: SIGINT or SIGTERM; all is saved.
    """
    mesh = make_mesh(config.mesh)
    optimizer = _optimizer(config, sparsity)
    plan = _plan(config, build, optimizer, init_carry, mesh, rules)
    plan = plan.with_metrics(_metric_names(plan, objective, stream, config.batch_size))
    if plan.notes:
        log.warning(
            "%d parameter axes stay replicated, the first: %s", len(plan.notes), plan.notes[0]
        )
    workdir = pathlib.Path(workdir)
    step = make_step(
        plan.view,
        objective,
        optimizer,
        mesh=mesh,
        rules=rules,
        accumulate=config.accumulate,
        reduce_once=config.reduce_once,
    )
    beginning = stream.state()

    def first() -> TrainState:
        return _begun(plan, optimizer, sparsity, objective, stream, mesh, rules)

    kept = {name: getattr(config, name) for name in KEPT}
    with Checkpoints(workdir / FOLDER, **kept) as checkpoints:
        recovery = Recovery(
            checkpoints,
            Skips.read(workdir / FOLDER),
            config.max_skips,
            enabled=config.on_divergence == "skip",
        )
        signals = StopOnSignal()
        while True:
            restored = checkpoints.restore(plan.abstract)
            if restored is not None and sparsity is not None:
                require_masks_of(sparsity, restored.state)
            if restored is not None and int(restored.state.step) >= config.steps:
                run = Run(restored.state, int(restored.state.step), config.steps, stream)
                return _trained(plan.view, run.state), run
            try:
                with MetricWriter(workdir) if is_main_process() else NoMetrics() as writer:
                    state = _first_state(plan, restored, stream, beginning, writer, first)
                    recovery.pass_over(stream, int(state.step))
                    all_hooks = [
                        *_watchdogs(config, checkpoints),
                        LogMetrics(
                            writer,
                            config.log_every,
                            optimizers.schedule(config.optimizer, config.steps),
                        ),
                        StopOnNaN(checkpoints),
                        *_spikes(config, workdir, int(state.step), checkpoints),
                        *_evaluations(config, evaluate, watch, writer),
                        *([ProgressBar(description)] if is_main_process() else []),
                        *hooks,
                        SaveCheckpoint(checkpoints, config.save_every, meta),
                        signals,
                    ]
                    with Prefetch(stream, config.prefetch, _transfer(mesh, rules)) as batches:
                        run = fit(
                            step,
                            state,
                            batches,
                            steps=config.steps,
                            hooks=all_hooks,
                            tokens_per_step=tokens_per_step,
                        )
                break
            except TrainingDiverged as error:
                diverged = error.what, error.step
            begin = recovery.roll_back(*diverged)
            if signals.interrupted is not None:
                raise TrainingInterrupted(signals.interrupted, begin, config.steps)
    if run.interrupted is not None:
        raise TrainingInterrupted(run.interrupted, run.step, run.steps)
    return _trained(plan.view, run.state), run


def describe(
    config: TrainConfig,
    *,
    build: Build,
    init_carry: Callable[[int], Any] | None = None,
    tokens_per_step: int | None = None,
    rules: Rules = RULES,
    objective: Objective | None = None,
    batch: Mapping[str, jax.ShapeDtypeStruct] | None = None,
    pod: Pod | None = None,
    sparsity: SparsityConfig | None = None,
) -> list[str]:
    """Lines on the size, memory, sharding and length of a run, from shapes alone.

    The other arguments are those of `run_training`. Without a pod the devices are those of this
    process, nothing is compiled, and memory is that of the state; activations come on top of it.

    Args:
      objective, batch: what is compiled for the pod: the batch as shapes [b, ...] by name.
      pod: devices to plan for, within `core.use_devices(pod.devices, pod.platform)`.

    Raises:
      UsageError: sizes that do not fit each other or the devices; a pod without objective or batch.
    """
    mesh = make_mesh(config.mesh)
    optimizer = _optimizer(config, sparsity)
    plan = _plan(config, build, optimizer, init_carry, mesh, rules)
    state = plan.abstract
    axes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    shards = num_row_shards(batch_sharding(mesh, rules))
    tokens = "" if tokens_per_step is None else f", {config.steps * tokens_per_step:,} tokens"
    return [
        f"devices: {mesh.size} {mesh.devices.flat[0].device_kind} ({axes or 'one device'})",
        f"parameters: {plan.view.num_params:,}, {_memory(state.params)}",
        *_sparsity_lines(sparsity, state.params),
        f"optimizer state: {_memory(state.opt_state)}",
        f"recurrent state: {_memory(state.carry)}",
        f"batch: {config.batch_size} rows in {config.accumulate} micro-batches, "
        f"{config.batch_size // shards} rows a device",
        f"steps: {config.steps:,}{tokens}",
        *_sharding_lines(state.params),
        *(f"replicated: {note}" for note in plan.notes),
        *_pod_lines(config, plan, optimizer, mesh, rules, tokens_per_step, objective, batch, pod),
    ]


def _sparsity_lines(sparsity: SparsityConfig | None, params: Mapping[str, Any]) -> list[str]:
    if sparsity is None:
        return []
    counts = sparsity.counts(params)
    kept, size = sum(counts.values()), sum(params[path].size for path in counts)
    return [
        f"kept weights: {kept:,} of {size:,} in {len(counts)} kernels, density {kept / size:.4g} "
        f"({sparsity.method})"
    ]


def _pod_lines(
    config: TrainConfig,
    plan: StatePlan,
    optimizer: Any,
    mesh: Mesh,
    rules: Rules,
    tokens_per_step: int | None,
    objective: Objective | None,
    batch: Mapping[str, jax.ShapeDtypeStruct] | None,
    pod: Pod | None,
) -> list[str]:
    if pod is None:
        return []
    if objective is None or batch is None:
        raise UsageError(
            f"to plan for {pod.name} the step is compiled; pass describe its objective and the "
            "shapes of a batch"
        )
    names = metric_names(plan.view, objective, batch, plan.abstract.carry)
    plan = plan.with_metrics(names)
    step = make_step(
        plan.view,
        objective,
        optimizer,
        mesh=mesh,
        rules=rules,
        accumulate=config.accumulate,
        reduce_once=config.reduce_once,
    )
    state = plan.abstract
    cost = step_cost(lambda: step.lower(state, batch), state.params, mesh)
    parts = {"parameters": state.params, "optimizer": state.opt_state, "carry": state.carry}
    return cost_lines(cost, parts, pod, steps=config.steps, tokens_per_step=tokens_per_step)


def _optimizer(config: TrainConfig, sparsity: SparsityConfig | None) -> Any:
    optimizer = optimizers.build(config.optimizer, config.steps)
    return optimizer if sparsity is None else sparsity.optimizer(optimizer, config.steps)


def _plan(
    config: TrainConfig,
    build: Build,
    optimizer: Any,
    init_carry: Callable[[int], Any] | None,
    mesh: Mesh,
    rules: Rules,
) -> StatePlan:
    require_rows(config.batch_size, mesh, rules, config.accumulate)
    return plan_state(
        build,
        optimizer,
        key=config.seed,
        mesh=mesh,
        rules=rules,
        strict=config.strict_sharding,
        carry=None if init_carry is None else lambda: init_carry(config.batch_size),
    )


def _metric_names(
    plan: StatePlan, objective: Objective, stream: Stream, batch_size: int
) -> tuple[str, ...]:
    place = stream.state()
    batch = {
        name: jax.ShapeDtypeStruct((batch_size, *rows.shape[1:]), rows.dtype)
        for name, rows in next(stream).items()
    }
    stream.restore(place)
    return metric_names(plan.view, objective, batch, plan.abstract.carry)


def _first_state(
    plan: StatePlan,
    restored: Restored | None,
    stream: Stream,
    beginning: Any,
    writer: MetricWriter | NoMetrics,
    first: Callable[[], TrainState],
) -> TrainState:
    """The state to begin with; data and metrics are brought to the same step."""
    if restored is None:
        stream.restore(beginning)
        writer.truncate(0)
        return first()
    state = restored.state
    if state.carry is None and plan.abstract.carry is not None:
        log.warning("the checkpoint was saved with another batch_size: the carry begins anew")
        state = dataclasses.replace(state, carry=plan.init_carry())
    stream.restore(restored.data_state)
    writer.truncate(int(state.step))
    return state


def _begun(
    plan: StatePlan,
    optimizer: Any,
    sparsity: SparsityConfig | None,
    objective: Objective,
    stream: Stream,
    mesh: Mesh,
    rules: Rules,
) -> TrainState:
    """The state of a run of which there is no checkpoint."""
    state = plan.init()
    if sparsity is None:
        return state
    place = stream.state()
    batch = _transfer(mesh, rules)(next(stream))
    stream.restore(place)
    with use_mesh(mesh, rules):
        return start_sparse(sparsity, optimizer, plan.view, state, objective=objective, batch=batch)


def _watchdogs(config: TrainConfig, checkpoints: Checkpoints) -> list[Hook]:
    if config.stuck_seconds is None:
        return []
    return [Watchdog(config.stuck_seconds, checkpoints)]


def _spikes(
    config: TrainConfig, workdir: pathlib.Path, step: int, checkpoints: Checkpoints
) -> list[Hook]:
    if config.spike_factor is None:
        return []
    return [StopOnSpike(config.spike_factor, losses_until(workdir, step), checkpoints)]


def _evaluations(
    config: TrainConfig,
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None,
    watch: Callable[[TrainState], Mapping[str, Any]] | None,
    writer: MetricWriter | NoMetrics,
) -> list[Hook]:
    hooks: list[Hook] = []
    if watch is not None and config.watch_every is not None:
        hooks.append(Evaluate(watch, config.watch_every, writer))
    if evaluate is not None:
        hooks.append(Evaluate(evaluate, config.eval_every or config.steps, writer))
    return hooks


def _transfer(mesh: Mesh, rules: Rules) -> Callable[[Mapping[str, Any]], dict[str, jax.Array]]:
    rows = batch_sharding(mesh, rules)
    return lambda batch: place_rows(dict(batch), rows)


def _trained(view: View, state: TrainState) -> View:
    return dataclasses.replace(view.at(state.params), state=state.model_state)


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


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
