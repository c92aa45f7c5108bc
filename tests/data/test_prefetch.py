from __future__ import annotations

import itertools
import threading
import traceback

import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.data import Bytes, Documents, DocumentStream, Prefetch, prefetch


class Counting:
    """Counts up from 0 and says when it has made `signal_at` numbers; fails at `fail_at`."""

    def __init__(self, fail_at=None, signal_at=None):
        self.made, self.fail_at, self.signal_at = 0, fail_at, signal_at
        self.signal = threading.Event()

    def __iter__(self):
        return self

    def __next__(self):
        if self.made == self.fail_at:
            raise KeyError("broken shard")
        self.made += 1
        if self.made == self.signal_at:
            self.signal.set()
        return self.made - 1

    def state(self):
        return {"next": self.made}

    def restore(self, state):
        self.made = state["next"]


def documents():
    source = Documents([bytes(range(n)) for n in (50, 37, 23, 11)])
    return DocumentStream(source, Bytes(), batch_size=2, segment_length=8, align=4)


def test_batches_are_those_of_the_stream_in_order():
    plain = documents()
    with Prefetch(documents()) as ahead:
        for batch in itertools.islice(ahead, 20):
            for name, array in next(plain).items():
                np.testing.assert_array_equal(batch[name], array)
            assert ahead.state() == plain.state()


def test_state_is_that_of_what_was_handed_out_not_of_what_was_read_ahead():
    stream = Counting(signal_at=5)
    with Prefetch(stream, size=4) as ahead:
        assert ahead.state() == {"next": 0}
        assert next(ahead) == 0
        assert stream.signal.wait(10)
        assert stream.made == 5
        assert ahead.state() == {"next": 1}


def test_thread_reads_no_further_ahead_than_the_size():
    stream = Counting(signal_at=3)
    with Prefetch(stream, size=3) as ahead:
        assert stream.signal.wait(10)
        ahead._thread.join(0.05)
        assert stream.made == 3


def test_transfer_runs_on_the_thread():
    def transfer(number):
        return number * 10, threading.current_thread().name

    with Prefetch(Counting(), transfer=transfer) as ahead:
        assert [next(ahead) for _ in range(3)] == [(n, "prefetch") for n in (0, 10, 20)]


def test_exception_comes_in_its_place_with_its_traceback():
    with Prefetch(Counting(fail_at=2), size=5) as ahead:
        assert [next(ahead), next(ahead)] == [0, 1]
        for _ in range(2):
            with pytest.raises(KeyError, match="broken shard") as caught:
                next(ahead)
        frames = traceback.extract_tb(caught.value.__traceback__)
        assert any("broken shard" in (frame.line or "") for frame in frames)
        assert ahead.state() == {"next": 2}


def test_exception_of_the_transfer_is_raised():
    with Prefetch(Counting(), transfer=lambda number: 1 // number) as ahead:
        with pytest.raises(ZeroDivisionError):
            next(ahead)


def test_finite_stream_ends_the_loop():
    class Finite(Counting):
        def __next__(self):
            if self.made == 3:
                raise StopIteration
            return super().__next__()

    with Prefetch(Finite()) as ahead:
        assert list(ahead) == [0, 1, 2]


def test_close_ends_a_thread_that_waits_for_room():
    stream = Counting(signal_at=1)
    ahead = Prefetch(stream, size=1)
    assert stream.signal.wait(10)
    ahead.close()
    ahead.close()
    assert not ahead._thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        next(ahead)


def test_waiting_is_counted():
    gate = threading.Event()

    def slow(number):
        gate.wait(10)
        return number

    with Prefetch(Counting(), transfer=slow) as ahead:
        assert ahead.wait_seconds == 0.0
        threading.Timer(0.05, gate.set).start()
        next(ahead)
        assert ahead.wait_seconds > 0.0


def test_size_below_one_is_refused():
    with pytest.raises(UsageError, match="size=0; expected at least 1"):
        Prefetch(Counting(), size=0)


class Dying(Prefetch):
    """Its first threads end without a word, after so many batches in all."""

    def __init__(self, *args, deaths, **kwargs):
        self.deaths = list(deaths)
        super().__init__(*args, **kwargs)

    def _put(self, batch, state):
        if self.deaths and batch >= self.deaths[0]:
            self.deaths.pop(0)
            raise SystemExit
        super()._put(batch, state)

    def _run(self):
        # As when the thread is gone: no error comes out.
        while self._wait_for_room():
            batch = next(self._stream)
            try:
                self._put(batch, self._stream.state())
            except SystemExit:
                return


def test_a_thread_that_died_is_started_again_where_it_was(monkeypatch, caplog):
    monkeypatch.setattr(prefetch, "CHECK_SECONDS", 0.01)
    with Dying(Counting(), deaths=[2, 5]) as ahead:
        assert [next(ahead) for _ in range(8)] == list(range(8))
        assert ahead.state() == {"next": 8}
    assert [r.getMessage() for r in caplog.records] == [
        f"the data thread 'prefetch' died while making batch {n} without an error; restarting it"
        for n in (3, 6)
    ]


def test_a_thread_that_goes_on_dying_is_named(monkeypatch):
    monkeypatch.setattr(prefetch, "CHECK_SECONDS", 0.01)
    with Dying(Counting(), deaths=[1, 1, 1]) as ahead:
        assert next(ahead) == 0
        with pytest.raises(
            UsageError, match="'prefetch' died while making batch 2 .* after 2 restarts"
        ):
            next(ahead)


def test_an_error_says_on_which_batch_it_was_raised():
    with Prefetch(Counting(fail_at=1)) as ahead:
        next(ahead)
        with pytest.raises(KeyError) as caught:
            next(ahead)
    assert caught.value.__notes__ == ["raised on the data thread 'prefetch' while making batch 2"]


def test_ctrl_c_does_not_wait_for_a_read_that_hangs():
    gate = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        with Prefetch(Counting(), transfer=lambda number: gate.wait(60)):
            raise KeyboardInterrupt
    assert not gate.is_set()
    gate.set()
