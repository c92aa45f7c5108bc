from __future__ import annotations

import dataclasses
import itertools
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from jaxlab import train


@dataclasses.dataclass(frozen=True)
class State:
    """The least that loop and watchdog ask of a state."""

    step: jax.Array


def add(state: State, batch: int) -> State:
    return State(state.step + 1)


class Do(train.Hook):
    """Does something after one step."""

    def __init__(self, step, action):
        self.every, self.action = step, action

    def after_step(self, run):
        if run.step == self.every:
            self.action()


@pytest.fixture
def end():
    """Stands for the end of the process: what is stuck goes on then."""

    class End(threading.Event):
        code = None

        def __call__(self, code):
            self.code = code
            self.set()

    return End()


def fit(step, hooks, steps=6):
    return train.fit(
        step, State(jnp.zeros((), jnp.int32)), itertools.count(), steps=steps, hooks=hooks
    )


def test_a_run_that_goes_on_is_left_alone(end):
    run = fit(add, [train.Watchdog(5.0, end=end)])
    assert run.complete and end.code is None
    watching = [thread for thread in threading.enumerate() if "watchdog" in thread.name]
    for thread in watching:
        thread.join(5.0)
    assert not any(thread.is_alive() for thread in watching)


def test_a_step_that_blocks_ends_the_process_with_its_stack(end, capfd):
    def step(state, batch):
        if batch == 3:
            assert end.wait(60)
        return add(state, batch)

    fit(step, [train.Watchdog(0.3, end=end)])
    err = capfd.readouterr().err
    assert end.code == train.watchdog.STUCK
    assert "test_watchdog.py" in err and "in step" in err and "in fit" in err
    assert err.splitlines()[-1].startswith(
        "stuck: no step completed for 0.3 s after step 3 of 6; there is no checkpoint; "
    )


def test_a_step_that_the_devices_do_not_finish_counts_as_none(end, capfd):
    # The call returns at once: what hangs is the computation.
    def hang(number):
        if number == 3:
            assert end.wait(60)
        return number

    @jax.jit
    def computed(number):
        return jax.pure_callback(hang, jax.ShapeDtypeStruct((), jnp.int32), number) + 1

    fit(lambda state, batch: State(computed(state.step)), [train.Watchdog(0.5, end=end)])
    assert end.code == train.watchdog.STUCK
    assert "after step 3 of 6" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("slow", ["the first step", "a hook now and then", "the end"])
def test_what_takes_long_by_nature_has_ten_times_the_time(end, slow):
    def step(state, batch):
        if batch == 0 and slow == "the first step":
            time.sleep(0.6)
        return add(state, batch)

    class Finish(train.Hook):
        def finish(self, run):
            time.sleep(0.6)

    hooks = [train.Watchdog(0.2, end=end)]
    if slow == "a hook now and then":
        hooks.append(Do(3, lambda: time.sleep(0.6)))
    if slow == "the end":
        hooks.append(Finish())
    assert fit(step, hooks).complete and end.code is None


def test_what_takes_long_is_not_waited_for_without_end(end, capfd):
    fit(add, [train.Watchdog(0.05, end=end), Do(3, lambda: end.wait(60))])
    assert end.code == train.watchdog.STUCK
    assert "for 0.5 s after step 3 of 6" in capfd.readouterr().err


class Folderless:
    """Checkpoints in a folder of a file system that does not answer, or is gone."""

    def __init__(self, list_folder):
        self.list_folder = list_folder

    @property
    def folder(self):
        return self.list_folder()


@pytest.mark.parametrize("fault", ["hangs", "is gone"])
def test_a_file_system_that_does_not_answer_keeps_no_process_alive(
    end, capfd, monkeypatch, tmp_path, fault
):
    monkeypatch.setattr(train.watchdog, "REPORT_SECONDS", 0.1)
    hang = (lambda: end.wait(60) and tmp_path) if fault == "hangs" else lambda: tmp_path / "none"

    def step(state, batch):
        if batch == 3:
            assert end.wait(5)
        return add(state, batch)

    fit(step, [train.Watchdog(0.2, Folderless(hang), end=end)])
    err = capfd.readouterr().err
    assert end.code == train.watchdog.STUCK
    assert "in step" in err
    assert "after step 3 of 6; its checkpoints cannot be listed; the" in err.splitlines()[-1]
