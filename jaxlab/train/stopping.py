"""Ending a run early: numbers that are not finite, and signals."""

from __future__ import annotations

import math
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.experimental.multihost_utils import reached_preemption_sync_point

from jaxlab.core import num_processes
from jaxlab.train.hooks import Hook

if TYPE_CHECKING:
    from jaxlab.checkpoint.checkpoints import Checkpoints
    from jaxlab.train.loop import Run
    from jaxlab.train.state import TrainState


class TrainingDiverged(RuntimeError):
    """Raised when a run's numbers are no longer finite, or its loss spiked.

    Attributes:
      what: what diverged.
      step: at which it was seen.
      checkpoint: step of the last good checkpoint, or None.
    """

    def __init__(self, what: str, step: int, checkpoint: int | None, skips: int | None = None):
        self.what, self.step, self.checkpoint = what, step, checkpoint
        kept = (
            "no checkpoint was saved before"
            if checkpoint is None
            else f"the checkpoint of step {checkpoint} is good and kept"
        )
        again = "" if skips is None else f" (skips: {skips}; train.max_skips allows no more)"
        way_out = (
            "look at the data there, or skip them with train.on_divergence=skip"
            if skips is None
            else "look at the data there"
        )
        super().__init__(
            f"training diverged{again}: {what} at step {step}; {kept}; try a lower "
            "optimizer.learning_rate, a longer optimizer.warmup_steps, optimizer.clip_norm=1, "
            f"{way_out}"
        )

    @classmethod
    def at(
        cls, what: str, step: int, checkpoints: Checkpoints | None, skips: int | None = None
    ) -> TrainingDiverged:
        """Makes the error, after waiting for the save in progress to name the newest checkpoint."""
        if checkpoints is not None:
            checkpoints.wait()
        good = None if checkpoints is None else checkpoints.latest_step()
        return cls(what, step, good, skips)


class TrainingInterrupted(KeyboardInterrupt):
    """Raised when a signal ended the run, after its state was saved.

    It is a KeyboardInterrupt, so `except Exception` does not catch it.

    Attributes:
      signal: the signal.
      step: steps done and saved.
    """

    def __init__(self, signal: signal.Signals, step: int, steps: int):
        self.signal, self.step = signal, step
        super().__init__(
            f"stopped by {signal.name} at step {step} of {steps}; everything is saved, and the "
            "same command continues from there"
        )


class StopOnNaN(Hook):
    """Raises `TrainingDiverged` as soon as a logged loss is not finite.

    Before a checkpoint it also checks the sums of loss and gradient norm, all parameters and the
    carry, so that a state that is not finite is never saved. Put it after `LogMetrics`.

    Args:
      checkpoints: of the run; the error names the last good one.
    """

    def __init__(self, checkpoints: Checkpoints | None = None):
        self._checkpoints = checkpoints
        self._seen: dict[str, float] = {}

    def after_step(self, run: Run) -> None:
        """Checks a new row."""
        if run.latest is not self._seen:
            self._seen = run.latest
            for name in ("train/loss", "train/grad_norm"):
                value = run.latest.get(name, 0.0)
                if not math.isfinite(value):
                    step = int(run.latest["step"])
                    raise TrainingDiverged.at(f"{name} is {value}", step, self._checkpoints)

    def start(self, run: Run) -> None:
        """Compiles the check of the whole state, so that no later step waits for it."""
        _all_finite(_parts(run.state))

    def flush(self, run: Run) -> None:
        """Checks the whole state."""
        self.after_step(run)
        for what, finite in run.fetch(_all_finite(_parts(run.state))).items():
            if not finite:
                raise TrainingDiverged.at(f"{what} are not finite", run.step, self._checkpoints)

    def finish(self, run: Run) -> None:
        """Checks the last row and the last state."""
        self.flush(run)


def _parts(state: TrainState) -> dict[str, Any]:
    sums = {n: state.metrics[n] for n in ("loss", "grad_norm") if n in state.metrics}
    return {"the loss or gradient": sums, "the parameters": state.params, "the carry": state.carry}


@jax.jit
def _all_finite(parts: dict[str, Any]) -> dict[str, jax.Array]:
    def finite(tree: Any) -> jax.Array:
        leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
        return jnp.stack([jnp.isfinite(x).all() for x in leaves] or [jnp.array(True)]).all()

    return {name: finite(tree) for name, tree in parts.items()}


class StopOnSignal(Hook):
    """Ends the run after the current step on SIGINT (Ctrl-C) or SIGTERM.

    `run.interrupted` then holds the signal, and `SaveCheckpoint` saves at the end as always. A
    second Ctrl-C raises KeyboardInterrupt at once. The previous handlers are restored at the end.
    In threads other than the main one, which cannot handle signals, this hook does nothing.

    With several processes, a signal to any of them ends the run on all, after the same step: JAX
    passes SIGTERM on to the other processes and agrees with them on the step
    (`jax.experimental.multihost_utils.reached_preemption_sync_point`), and a Ctrl-C is made one.

    Attributes:
      interrupted: the signal that ended the run, also where the end of the run raised an error.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.interrupted: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._interrupted = False

    def start(self, run: Run) -> None:
        """Installs the handlers."""
        if threading.current_thread() is not threading.main_thread():
            return

        def handle(number: int, frame: Any) -> None:
            if run.interrupted is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            run.interrupted = run.interrupted or signal.Signals(number)
            run.stop = True

        if num_processes() > 1:
            # JAX handles SIGTERM here.
            self._before = {signal.SIGINT: signal.signal(signal.SIGINT, self._pass_on)}
            return
        # A handler not set from Python reads as None and can only be reset to the default.
        self._before = {n: signal.signal(n, handle) or signal.SIG_DFL for n in self.SIGNALS}

    def _pass_on(self, number: int, frame: Any) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        os.kill(os.getpid(), signal.SIGTERM)

    def after_step(self, run: Run) -> None:
        """Ends the run at the step that all processes have agreed upon."""
        if num_processes() > 1 and reached_preemption_sync_point(run.step):
            run.interrupted = signal.SIGTERM
            run.stop = True

    def close(self, run: Run) -> None:
        """Restores the previous handlers."""
        self.interrupted = run.interrupted
        while self._before:
            signal.signal(*self._before.popitem())
