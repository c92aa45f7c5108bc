from __future__ import annotations

import os
import pathlib
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")

PROGRAM = """
import re, resource, sys
import numpy as np
from jaxlab.train import reuse_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

if sys.argv[1] == "reuse":
    assert reuse_memory()
before = resident()
np.ones(2**23)  # 64 MiB, let go of at once
kept = resident() - before
advised = len(re.findall(r"^VmFlags:.* hg\\b", open("/proc/self/smaps").read(), re.MULTILINE))
print(kept, advised)
"""


def kept_and_advised(how):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "NUMPY_MADVISE_HUGEPAGE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    return map(int, done.stdout.split())


def test_freed_memory_stays_with_the_process():
    kept, _ = kept_and_advised("reuse")
    given_back, _ = kept_and_advised("plain")
    assert kept > 48 * 2**20 > 16 * 2**20 > given_back


@pytest.mark.skipif(
    not pathlib.Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="this kernel has no transparent huge pages",
)
def test_the_heap_asks_for_huge_pages():
    _, advised = kept_and_advised("reuse")
    _, plain = kept_and_advised("plain")
    assert advised > plain


PLACES = """
import numpy as np
from jaxlab.train import host

assert host.reuse_memory()

def place():  # of a block larger than the nursery, which nothing touches
    return np.empty(host.NURSERY + 2**27, np.uint8).ctypes.data

first = place()
kept = np.empty(2**23, np.uint8)  # it lives on, as the results of a step do
print(place() - first)
"""


def test_the_largest_block_keeps_its_place_beside_what_lives_on():
    done = subprocess.run(
        [sys.executable, "-c", PLACES],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == 0


KEPT_PLACE = """
import sys
import numpy as np
from jaxlab.train import host

assert host.reuse_memory()
if sys.argv[1] == "keep":
    host.keep_place(2**26, 2)

def places():  # of the temporaries of two devices, and of what lies beside them
    blocks = [np.empty(2**26, np.uint8) for _ in range(2)]
    beside.append(np.empty(2**23, np.uint8))
    return {block.ctypes.data for block in blocks}

beside = [np.empty(2**22, np.uint8)]
seen = set()
for _ in range(3):
    seen |= places()
    beside.append(np.empty(3 * 2**20, np.uint8))
print(len(seen))
"""


@pytest.mark.parametrize("how", ["keep", "leave"])
def test_temporaries_smaller_than_the_nursery_keep_their_places_where_asked(how):
    done = subprocess.run(
        [sys.executable, "-c", KEPT_PLACE, how],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (int(done.stdout) == 2) is (how == "keep")


RETURNED = """
import resource
import numpy as np
from jaxlab.train import return_memory, reuse_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

assert reuse_memory()
blocks = [np.ones(2**17) for _ in range(64)]  # 64 MiB in all, with one that stays behind them
last = np.ones(2**17)
del blocks
before = resident()
return_memory()
print(before - resident())
"""


def test_memory_is_given_back_when_asked():
    done = subprocess.run(
        [sys.executable, "-c", RETURNED],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "NUMPY_MADVISE_HUGEPAGE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) > 0.9 * 2**26
