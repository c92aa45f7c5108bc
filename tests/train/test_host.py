from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from jaxlab.train import reuse_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**23)  # 64 MiB, given back at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "reuse":
    assert reuse_memory()
faults()
print(faults())
"""


def faults_of_the_second_allocation(how):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "NUMPY_MADVISE_HUGEPAGE": "0"},
        capture_output=True, text=True, check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
def test_memory_that_was_freed_is_not_faulted_in_again():
    assert faults_of_the_second_allocation("reuse") < 100
    assert faults_of_the_second_allocation("plain") > 1000
