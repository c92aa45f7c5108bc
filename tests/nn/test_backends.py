"""Backends by name: what is refused, and that models of one config are of one graph."""

from __future__ import annotations

import jax
import pytest
from flax import nnx

from jaxlab.core import UsageError, use_devices
from jaxlab.models import TransformerLM, TransformerLMConfig
from jaxlab.nn import (
    BACKENDS,
    PLAIN,
    Attention,
    Backend,
    BlockRecurrentAttention,
    BlockRecurrentCell,
    make_backend,
)
from jaxlab.nn.cpu import compiled
from jaxlab.nn.tpu.backend import PallasBackend


def test_an_unknown_name_is_refused_with_the_nearest():
    message = "^no backend 'compild'; did you mean 'compiled'.*; there are plain, pallas, compiled$"
    with pytest.raises(UsageError, match=message):
        make_backend("compild")


def test_a_platform_without_the_backend_is_refused(monkeypatch):
    with pytest.raises(UsageError, match=r"^backend 'pallas' runs on TPUs, .* cpu; take "):
        make_backend("pallas")
    with use_devices(jax.devices()[:1], "tpu"):
        assert make_backend("pallas") == PallasBackend()
        with pytest.raises(UsageError, match=r"^backend 'compiled' runs on CPUs, .* for tpu; take"):
            make_backend("compiled")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(compiled, "_register", compiled.build)
    with pytest.raises(UsageError, match=r"^backend 'compiled' needs a C\+\+ compiler, and no-"):
        make_backend("compiled")


def test_backends_of_one_kind_are_equal_and_others_are_not():
    assert PLAIN == Backend() and hash(PLAIN) == hash(Backend())
    assert len({*BACKENDS.values(), Backend()}) == 3
    assert PallasBackend() != PallasBackend(interpret=True)


def test_models_of_one_config_have_one_graph(backend):
    config = TransformerLMConfig(
        width=16,
        depth=2,
        num_heads=2,
        window=4,
        recurrent_layers=(1,),
        num_states=4,
        backend=backend.name,
    )
    one, two = (nnx.split(TransformerLM(config, rngs=nnx.Rngs(seed)))[0] for seed in (0, 1))
    assert one == two and hash(one) == hash(two)


def test_a_layer_and_its_cell_have_one_backend():
    rngs = nnx.Rngs(0)
    attention = Attention(8, 2, window=4, extra_heads=2, rngs=rngs)
    cell = BlockRecurrentCell(8, 2, 2, 4, backend=BACKENDS["pallas"], rngs=rngs)
    with pytest.raises(UsageError, match="attention has backend 'plain' and the cell 'pallas'"):
        BlockRecurrentAttention(attention, cell, 8, rngs=rngs)
