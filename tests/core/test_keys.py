from __future__ import annotations

import os
import subprocess
import sys

import jax
import numpy as np

from jaxlab.core import named

PROGRAM = """
import jax
from jaxlab.core.keys import named
print(jax.random.key_data(named(jax.random.key(7), "dropout", 3, "größe")).tolist())
"""


def data(*names) -> tuple[int, ...]:
    return tuple(jax.random.key_data(named(jax.random.key(7), *names)).tolist())


def test_keys_are_the_same_in_every_process():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    printed = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**environment, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.strip() == str(list(data("dropout", 3, "größe")))


def test_distinct_names_give_distinct_keys():
    words = ["init", "dropout", "data", "sample", "noise", "a", "b", "ab", "", "größe"]
    names = [(word,) for word in words] + [(number,) for number in range(20)]
    names += [("dropout", step) for step in range(20)] + [(3, "dropout"), ("a", "b"), ("b", "a")]
    assert len({data(*name) for name in names} | {data()}) == len(names) + 1


def test_the_key_matters_and_no_name_returns_it():
    assert data() == tuple(jax.random.key_data(jax.random.key(7)).tolist())
    other = jax.random.key_data(named(jax.random.key(8), "init"))
    assert tuple(other.tolist()) != data("init")


def test_names_fold_in_one_after_another():
    key = named(named(jax.random.key(7), "dropout"), 3)
    assert tuple(jax.random.key_data(key).tolist()) == data("dropout", 3)


def test_a_traced_step_gives_the_key_of_the_number():
    traced = jax.jit(lambda step: named(jax.random.key(7), "dropout", step))(np.int32(3))
    assert tuple(jax.random.key_data(traced).tolist()) == data("dropout", 3)
