from __future__ import annotations

import dataclasses
import os
import signal
import threading

import numpy as np
import pytest

from jaxlab import train
from jaxlab.core import UsageError


@dataclasses.dataclass(frozen=True)
class State:
    """The least that the loop asks of a state."""

    step: int = 0
    seen: tuple[int, ...] = ()


def step(state: State, batch: int) -> State:
    return State(state.step + 1, (*state.seen, batch))


class Spy(train.Hook):
    """Writes down its calls."""

    def __init__(self, calls: list, name: str, every: int = 1, fail_at: int = -1):
        self.calls, self.name, self.every, self.fail_at = calls, name, every, fail_at

    def start(self, run):
        self.calls.append((self.name, "start", run.step))

    def after_step(self, run):
        self.calls.append((self.name, "after", run.step))
        if run.step == self.fail_at:
            raise RuntimeError("broken")

    def finish(self, run):
        self.calls.append((self.name, "finish", run.step))

    def close(self, run):
        self.calls.append((self.name, "close", run.step))


class At(train.Hook):
    """Does something after one step."""

    def __init__(self, at: int, action):
        self.every, self.action = at, action

    def after_step(self, run):
        if run.step == self.every:
            self.action()


def test_the_loop_goes_from_the_states_step_to_the_last():
    run = train.fit(step, State(3), iter(range(100)), steps=7)
    assert run.complete and run.state == State(7, (0, 1, 2, 3)) and run.step == 7


def test_a_complete_state_takes_no_step():
    run = train.fit(step, State(7), iter([]), steps=7)
    assert run.state == State(7)


def test_hooks_are_called_in_order_at_their_multiples():
    calls = []
    train.fit(step, State(1), iter(range(9)), steps=4, hooks=[Spy(calls, "a", 2), Spy(calls, "b")])
    assert calls == [
        ("a", "start", 1),
        ("b", "start", 1),
        ("a", "after", 2),
        ("b", "after", 2),
        ("b", "after", 3),
        ("a", "after", 4),
        ("b", "after", 4),
        ("a", "finish", 4),
        ("b", "finish", 4),
        ("b", "close", 4),
        ("a", "close", 4),
    ]


def test_hooks_are_closed_when_one_fails():
    calls = []
    with pytest.raises(RuntimeError, match="broken"):
        train.fit(step, State(), iter(range(9)), steps=4, hooks=[Spy(calls, "a", fail_at=2)])
    assert calls[-1] == ("a", "close", 2) and ("a", "finish", 2) not in calls


def test_data_that_end_too_soon_are_an_error():
    with pytest.raises(UsageError, match="the data ended at step 2 of 4"):
        train.fit(step, State(), iter([1, 2]), steps=4)


def test_the_time_is_accounted_for():
    run = train.fit(step, State(), iter(range(9)), steps=4, hooks=[Spy([], "a")])
    seconds = dataclasses.asdict(run.seconds)
    assert all(value >= 0 for value in seconds.values()) and seconds["hooks"] > 0
    with run.aside():
        run.fetch(np.zeros(1))
    assert run.seconds.device == 0 < run.seconds.aside


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step(number):
    before = signal.getsignal(number)
    hooks = [At(2, lambda: os.kill(os.getpid(), number)), train.StopOnSignal()]
    run = train.fit(step, State(), iter(range(9)), steps=8, hooks=hooks)
    assert run.step == 2 and run.state.step == 2 and not run.complete
    assert run.interrupted is number
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_ends_at_once():
    before = signal.getsignal(signal.SIGINT)

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        hooks = [At(2, twice), train.StopOnSignal()]
        train.fit(step, State(), iter(range(9)), steps=8, hooks=hooks)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_sigterm_does_not_end_the_saving():
    def twice():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    hooks = [At(2, twice), train.StopOnSignal()]
    run = train.fit(step, State(), iter(range(9)), steps=8, hooks=hooks)
    assert run.interrupted is signal.SIGTERM and run.step == 2


def test_a_run_on_another_thread_leaves_signals_alone():
    before, found = signal.getsignal(signal.SIGINT), []

    def work():
        hooks = [At(1, lambda: found.append(signal.getsignal(signal.SIGINT)))]
        train.fit(step, State(), iter(range(9)), steps=2, hooks=[train.StopOnSignal(), *hooks])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]
