from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import platform
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import train

only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")

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


@functools.cache
def kept_and_advised(how):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "NUMPY_MADVISE_HUGEPAGE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, advised = map(int, done.stdout.split())
    return kept, advised


@only_glibc
def test_freed_memory_stays_with_the_process():
    kept, _ = kept_and_advised("reuse")
    given_back, _ = kept_and_advised("plain")
    assert kept > 48 * 2**20 > 16 * 2**20 > given_back


@only_glibc
@pytest.mark.skipif(
    not pathlib.Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="this kernel has no transparent huge pages",
)
def test_the_heap_asks_for_huge_pages():
    _, advised = kept_and_advised("reuse")
    _, plain = kept_and_advised("plain")
    assert advised > plain


def test_a_paced_step_starts_when_the_one_before_is_done(toy, one):
    def objective(model, batch, carry, key):
        loss = toy.objective(model, batch, carry, key)
        begin = jnp.full(2**16, batch["x"].sum())
        slow = jax.lax.fori_loop(0, 300, lambda i, x: jnp.sin(x + i), begin).mean()
        return dataclasses.replace(loss, value=loss.value + slow)

    view, state, _ = toy.make_state(one, optax.sgd(1e-2), carry=toy.carry())
    step = train.make_step(view, objective, optax.sgd(1e-2), mesh=one)
    ready = []

    def observed(state, batch):
        ready.append(state.step.is_ready())
        return step(state, batch)

    train.fit(observed, state, toy.Numbers(), steps=5, pacing=train.pacing_for(one))
    assert ready == [True] * 5


def test_only_cpus_are_paced(one):
    accelerator = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform="tpu")]))
    assert train.pacing_for(one) is not None
    assert train.pacing_for(accelerator) is None
