from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from jaxlab.checkpoint import background
from jaxlab.checkpoint.background import Background


@pytest.fixture
def thread():
    thread = Background("work")
    yield thread
    thread.close()


def test_errors_come_out_once_where_the_work_is_waited_for(thread):
    def fail():
        raise OSError("full")

    thread.start(fail)
    with pytest.raises(OSError, match="full"):
        thread.wait()
    thread.wait()
    assert not thread.busy


@pytest.mark.skipif(sys.platform != "linux", reason="a priority belongs to a process there")
def test_threads_that_the_work_starts_give_way_as_well(thread):
    found = []

    def look():
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    def work():
        other = threading.Thread(target=look)
        other.start()
        other.join()

    thread.start(work)
    thread.wait()
    assert found == [os.getpriority(os.PRIO_PROCESS, 0) + background.NICE]


def test_a_pause_ends_when_the_work_is_waited_for(thread, monkeypatch):
    monkeypatch.setattr(background, "PAUSE", 60.0)
    began = time.monotonic()
    thread.start(thread.pause)
    time.sleep(0.1)
    assert thread.busy
    thread.wait()
    thread.start(lambda: None)
    thread.wait()
    assert time.monotonic() - began < 60


def test_pauses_are_short_where_works_follow_each_other_fast(thread, monkeypatch):
    monkeypatch.setattr(background, "PAUSE", 60.0)
    thread.start(lambda: None)
    time.sleep(0.1)
    thread.start(thread.pause)
    end = time.monotonic() + 30
    while thread.busy:  # to wait for it would end the pause
        assert time.monotonic() < end
        time.sleep(0.01)
