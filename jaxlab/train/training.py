"""A whole training in a folder: resume, train, evaluate, save."""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxlab.checkpoint.checkpoints import FOLDER, Checkpoints, Restored
from jaxlab.core import RULES, Batch, Objective, Rules, View, is_main_process
from jaxlab.data import Prefetch, Stream
from jaxlab.results import MetricWriter, NoMetrics
from jaxlab.train import optimizers
from jaxlab.train.config import KEPT, TrainConfig
from jaxlab.train.hooks import Evaluate, Hook, SaveCheckpoint
from jaxlab.train.intervention import Intervention
from jaxlab.train.logs import LogMetrics
from jaxlab.train.loop import Run, fit
from jaxlab.train.pacing import pacing_for
from jaxlab.train.progress import ProgressBar
from jaxlab.train.recovery import Recovery, Skips, StopOnSpike, losses_until
from jaxlab.train.setup import Setup, batch_shapes, make_setup
from jaxlab.train.state import Build, TrainState
from jaxlab.train.stopping import (
    StopOnNaN,
    StopOnSignal,
    TrainingDiverged,
    TrainingInterrupted,
)
from jaxlab.train.watchdog import Watchdog

log = logging.getLogger(__name__)

Measure = Callable[[TrainState], Mapping[str, Any]]
"""`measure(state)` gives a row of metrics by `split/name`; `Setup.trained(state)` is the model."""


def run_training(
    config: TrainConfig,
    *,
    build: Build,
    objective: Objective,
    stream: Stream,
    workdir: str | os.PathLike[str],
    init_carry: Callable[[int], Any] | None = None,
    interventions: Sequence[Intervention] = (),
    tokens_per_step: int | None = None,
    rules: Rules = RULES,
    **options: Any,
) -> tuple[View, Run]:
    """Trains a model in a folder, or continues the training that is there.

    This is `make_setup`, with the shapes of a batch taken from the stream, and `run_setup`.

    Args:
      config: see `TrainConfig`.
      build: makes the model.
      objective: `objective(model, batch, carry, key) -> Loss`.
      stream: see `run_setup`.
      workdir: an existing folder or a `Record`.
      init_carry: makes the recurrent state for a number of rows.
      interventions: what changes the training; see `Intervention`.
      tokens_per_step: targets in one step, for rates.
      rules: logical axis to mesh axes.
      **options: further arguments of `run_setup`.

    Returns:
      The view of the trained model, with its arrays, and the run.

    Raises:
      UsageError, TrainingDiverged, WriteError, TrainingInterrupted: see `run_setup`.
    """
    setup = make_setup(
        config,
        build=build,
        objective=objective,
        batch=batch_shapes(stream, config.batch_size),
        init_carry=init_carry,
        interventions=interventions,
        tokens_per_step=tokens_per_step,
        rules=rules,
    )
    return run_setup(setup, stream=stream, workdir=workdir, **options)


def run_setup(
    setup: Setup,
    *,
    stream: Stream,
    workdir: str | os.PathLike[str],
    config: TrainConfig | None = None,
    hooks: Sequence[Hook] = (),
    evaluate: Measure | None = None,
    watch: Measure | None = None,
    meta: Mapping[str, Any] | None = None,
    description: str = "",
) -> tuple[View, Run]:
    """Trains in a folder as planned, or continues the training that is there.

    The folder gets `metrics.jsonl`, TensorBoard events and `checkpoints/`. A training that was
    stopped, however it was stopped, continues and gives the parameters and metrics that it would
    have given without the stop. A complete one is only read.

    Args:
      setup: see `make_setup`.
      stream: batches of numpy arrays [b, ...], with `state()` and `restore(state)`; with several
        processes, each reads its own rows, see `core.local_rows`.
      workdir: an existing folder or a `Record`.
      config: that of this training, where it differs from the setup's in its seed.
      hooks: more hooks, called after logs, evaluation and progress bar, before checkpoints;
        started again each time that the run goes back to a checkpoint.
      evaluate: gives a row of metrics every `config.eval_every` steps and at the end.
      watch: the same every `config.watch_every` steps, for instruments that cost little, such as
        `probes.state_statistics`.
      meta: kept in the checkpoints, as plain JSON.
      description: words before the progress bar.

    Returns:
      The view of the trained model, with its arrays, and the run.

    Raises:
      UsageError: a checkpoint of another config.
      TrainingDiverged: numbers that are not finite, or a spike, as configured.
      WriteError: the disk is full; the checkpoints before are good.
      TrainingInterrupted: SIGINT or SIGTERM; everything is saved.
    """
    config = setup.config if config is None else config
    workdir, start = pathlib.Path(workdir), stream.state()
    retention = {name: getattr(config, name) for name in KEPT}
    with Checkpoints(workdir / FOLDER, **retention) as checkpoints:
        recovery = Recovery(
            checkpoints,
            Skips.read(workdir / FOLDER),
            config.max_skips,
            enabled=config.on_divergence == "skip",
        )
        signals = StopOnSignal()
        while True:
            restored = checkpoints.restore(setup.plan.abstract)
            if restored is not None:
                setup.check(restored.state)
            if restored is not None and int(restored.state.step) >= config.steps:
                run = Run(restored.state, int(restored.state.step), config.steps, stream)
                return setup.trained(run.state), run
            try:
                with MetricWriter(workdir) if is_main_process() else NoMetrics() as writer:
                    state = _first_state(setup, config, restored, stream, start, writer)
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
                    with Prefetch(stream, config.prefetch, setup.place) as batches:
                        run = fit(
                            setup.step,
                            state,
                            batches,
                            steps=config.steps,
                            hooks=all_hooks,
                            tokens_per_step=setup.tokens_per_step,
                            pacing=pacing_for(setup.mesh),
                        )
                break
            except TrainingDiverged as error:
                diverged = error.what, error.step
            begin = recovery.roll_back(*diverged)
            if signals.interrupted is not None:
                raise TrainingInterrupted(signals.interrupted, begin, config.steps)
    if run.interrupted is not None:
        raise TrainingInterrupted(run.interrupted, run.step, run.steps)
    return setup.trained(run.state), run


def _first_state(
    setup: Setup,
    config: TrainConfig,
    restored: Restored[TrainState] | None,
    stream: Stream,
    start: Any,
    writer: MetricWriter | NoMetrics,
) -> TrainState:
    """The state to continue from; data and metrics are brought to the same step."""
    if restored is None:
        stream.restore(start)
        writer.truncate(0)

        def first_batch() -> Batch:
            batch = setup.place(next(stream))
            stream.restore(start)
            return batch

        return setup.init(first_batch, config.seed)
    state = restored.state
    if state.carry is None and setup.plan.abstract.carry is not None:
        log.warning("the checkpoint was saved with another batch_size: the carry starts anew")
        state = dataclasses.replace(state, carry=setup.plan.init_carry())
    stream.restore(restored.data_state)
    writer.truncate(int(state.step))
    return state


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
    evaluate: Measure | None,
    watch: Measure | None,
    writer: MetricWriter | NoMetrics,
) -> list[Hook]:
    hooks: list[Hook] = []
    if watch is not None and config.watch_every is not None:
        hooks.append(Evaluate(watch, config.watch_every, writer))
    if evaluate is not None:
        hooks.append(Evaluate(evaluate, config.eval_every or config.steps, writer))
    return hooks
