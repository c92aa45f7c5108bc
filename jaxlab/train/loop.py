"""The one training loop. It knows no model: it takes a step, a state, data and hooks."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax

from jaxlab.core import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxlab.train.hooks import Hook
    from jaxlab.train.pacing import Pacing
    from jaxlab.train.state import TrainState


@dataclasses.dataclass
class Seconds:
    """Where the time of a run went, in seconds.

    Attributes:
      data: waiting for `next(data)`.
      step: in the call of the step, which mostly returns before the devices are done; with
        pacing, also waiting for the step before.
      hooks: in hooks, with `device` and `aside`, which are parts of it.
      device: waiting for values that the devices had not computed yet.
      aside: in evaluations, which are no part of training.
    """

    data: float = 0.0
    step: float = 0.0
    hooks: float = 0.0
    device: float = 0.0
    aside: float = 0.0

    _hooks_began = None  # while hooks run: since when, not yet part of `hooks`

    @property
    def outside_step(self) -> float:
        """Time on the host that no step ran in because of us: data, and hooks' own work."""
        running = 0.0 if self._hooks_began is None else time.perf_counter() - self._hooks_began
        return self.data + self.hooks + running - self.device - self.aside

    @contextlib.contextmanager
    def in_hooks(self) -> Iterator[None]:
        """Takes the time of the block as that of hooks, which see their own part of it too."""
        self._hooks_began = time.perf_counter()
        try:
            yield
        finally:
            self.hooks += time.perf_counter() - self._hooks_began
            self._hooks_began = None


@dataclasses.dataclass
class Run:
    """A run in progress; what hooks see and change.

    Attributes:
      state: after the last step dispatched. The next step donates its buffers: who keeps an array
        beyond a hook's call copies it.
      step: optimizer steps done, a Python integer equal to `state.step`.
      steps: at which number the run is complete.
      data: the iterator of batches.
      hooks: in the order in which they are called.
      tokens_per_step: targets in one step, for rates; None where there is no such number.
      stop: set by a hook to end the run after this step.
      interrupted: the signal that ended the run before its time, if any.
      latest: the row of training metrics last written, by `split/name`, and `step`.
      measured: the last value of every metric, evaluations included, by `split/name`.
      seconds: where the time went.
    """

    state: TrainState
    step: int
    steps: int
    data: Iterator[Any]
    hooks: Sequence[Hook] = ()
    tokens_per_step: int | None = None
    stop: bool = False
    interrupted: signal.Signals | None = None
    latest: dict[str, float] = dataclasses.field(default_factory=dict)
    measured: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: Seconds = dataclasses.field(default_factory=Seconds)

    @property
    def complete(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.steps

    def fetch(self, tree: Any) -> Any:
        """Returns device arrays as numpy arrays; the time spent waiting is kept apart."""
        began = time.perf_counter()
        values = jax.device_get(tree)
        self.seconds.device += time.perf_counter() - began
        return values

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Keeps the time of the block apart from training."""
        began, device = time.perf_counter(), self.seconds.device
        try:
            yield
        finally:
            self.seconds.device = device
            self.seconds.aside += time.perf_counter() - began

    def flush(self) -> None:
        """Lets every hook write and check what is pending, before a checkpoint or evaluation."""
        for hook in self.hooks:
            hook.flush(self)


def fit(
    step: Callable[[TrainState, Any], TrainState],
    state: TrainState,
    data: Iterator[Any],
    *,
    steps: int,
    hooks: Sequence[Hook] = (),
    tokens_per_step: int | None = None,
    pacing: Pacing | None = None,
) -> Run:
    """Runs steps until `state.step` is `steps` or a hook stops the run.

    Without `pacing` nothing here waits for the devices; hooks fetch values a step late.

    Args:
      step: `step(state, batch) -> state`; see `make_step`. The state passed in is used up.
      state: where to begin.
      data: batches, from the place that belongs to `state`.
      steps: the total number of steps, those before `state` included.
      hooks: called in this order after every step; see `Hook`.
      tokens_per_step: targets in one step, for rates.
      pacing: waits before each step; see `pacing_for`.

    Returns:
      The run with its last state.

    Raises:
      UsageError: data that end before the run; whatever a hook raises.
    """
    run = Run(state, int(state.step), steps, data, tuple(hooks), tokens_per_step)
    del state
    seconds, clock = run.seconds, time.perf_counter
    with contextlib.ExitStack() as opened:
        for hook in run.hooks:
            opened.callback(hook.close, run)
            hook.start(run)
        now = clock()
        while run.step < steps and not run.stop:
            began = now
            try:
                batch = next(data)
            except StopIteration:
                raise UsageError(
                    f"the data ended at step {run.step} of {steps}; give a stream without end, "
                    "or fewer steps"
                ) from None
            fetched = clock()
            if pacing is not None:
                pacing.before_step(run.state)
            run.state = step(run.state, batch)
            run.step += 1
            stepped = clock()
            seconds.data += fetched - began
            seconds.step += stepped - fetched
            with seconds.in_hooks():
                for hook in run.hooks:
                    if run.step % hook.every == 0:
                        hook.after_step(run)
            now = clock()
        with seconds.in_hooks():
            for hook in run.hooks:
                hook.finish(run)
    return run
