from __future__ import annotations

import dataclasses
import gc
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.core import MeshConfig, UsageError, View, make_mesh, use_mesh
from jaxlab.evals import predict

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (10, 2, 2, 1), dtype=np.uint8)
LABELS = RNG.integers(0, 3, 10)


class Net(nnx.Module):
    """Batch normalisation of the pixels, then one layer; counts how often it is traced."""

    traces: list = []

    def __init__(self):
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
        self.out = nnx.Linear(4, 3, rngs=nnx.Rngs(1), kernel_metadata={"axes": ("embed", None)})

    def __call__(self, x_bhwc):
        Net.traces.append(x_bhwc.shape)
        return self.out(self.norm(x_bhwc.reshape(len(x_bhwc), 4)))


def new_view(seed: int = 0) -> View:
    """A view in training mode, with running statistics of its own."""
    rng = np.random.default_rng(seed)
    view = View.of(Net())
    state = {
        path: rng.uniform(0.5, 1.5, x.shape).astype(np.float32) for path, x in view.state.items()
    }
    assert sorted(state) == ["norm/mean", "norm/var"]
    return dataclasses.replace(view, state=state)


def written_out(view: View, images, params=None, state=None) -> np.ndarray:
    p = {**view.params, **(params or {})}
    s = {**view.state, **(state or {})}
    x = images.reshape(len(images), 4) / 255
    x = (x - s["norm/mean"]) / np.sqrt(s["norm/var"] + 1e-5)
    x = x * np.asarray(p["norm/scale"]) + np.asarray(p["norm/bias"])
    return x @ np.asarray(p["out/kernel"]) + np.asarray(p["out/bias"])


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def view() -> View:
    return new_view()


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_logits_are_those_of_running_statistics_for_any_batch_size(view, batch_size):
    found = predict(view, IMAGES, LABELS, batch_size=batch_size)
    close(found.logits, written_out(view, IMAGES))
    assert found.logits.dtype == np.float32
    assert found.index.tolist() == list(range(10)) and found.labels.tolist() == LABELS.tolist()


def test_float_images_are_those_of_levels(view):
    floats = predict(view, (IMAGES / 255).astype(np.float32), LABELS, batch_size=4)
    close(floats.logits, predict(view, IMAGES, LABELS, batch_size=4).logits)


def test_other_weights_and_statistics_are_those_of_the_view(view):
    params = {path: p + 1 for path, p in view.params.items()}
    state = {path: s + 1 for path, s in view.state.items()}
    found = predict(view.at(params, state), IMAGES, LABELS, batch_size=4)
    close(found.logits, written_out(view, IMAGES, params, state))


def test_a_model_predicts_as_its_view(view):
    model = view.model()
    found = predict(model, IMAGES, LABELS, batch_size=4)
    np.testing.assert_array_equal(found.logits, predict(view, IMAGES, LABELS, batch_size=4).logits)
    assert not model.norm.use_running_average  # it stays in training mode
    with pytest.raises(UsageError, match="expected an nnx.Module or a View of one, got function"):
        predict(lambda x: x, IMAGES, LABELS)


def test_masked_weights_do_not_predict(view):
    kept = np.arange(12).reshape(4, 3) % 2 == 0
    found = predict(view.masked({"out/kernel": jnp.asarray(kept)}), IMAGES, LABELS, batch_size=4)
    masked = {"out/kernel": np.asarray(view.params["out/kernel"]) * kept}
    close(found.logits, written_out(view, IMAGES, masked))


def test_an_image_set_brings_its_labels_and_name(view):
    images = types.SimpleNamespace(images=IMAGES, labels=LABELS, name="squares/test")
    found = predict(view, images, batch_size=4, index=np.arange(10) + 7)
    assert found.domain == "squares/test" and found.index[0] == 7
    assert found.labels.tolist() == LABELS.tolist()
    assert predict(view, images, batch_size=4, domain="fog/3").domain == "fog/3"


def test_one_program_serves_all_trainings_of_one_config():
    view = new_view()
    compiled = []

    def listen(event: str, seconds: float, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    predict(view, IMAGES, LABELS, batch_size=4)
    traces = len(Net.traces)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for count in (3, 4, 10):
            predict(view, 255 - IMAGES[:count], LABELS[:count], batch_size=4)
        others = {path: 2 * np.asarray(p) for path, p in view.params.items()}
        for other in (view.at(others), new_view(seed=1), new_view().model()):
            predict(other, IMAGES, LABELS, batch_size=4)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(Net.traces) == traces and not compiled


def test_a_view_that_was_predicted_by_is_not_kept_alive():
    view = new_view()
    predict(view, IMAGES, LABELS, batch_size=4)
    alive = weakref.ref(view), weakref.ref(view.params["out/kernel"])
    del view
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


def test_shards_predict_as_one_device(view):
    one = predict(view, IMAGES, LABELS, batch_size=8)
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    sharded = view.on(mesh)
    assert not sharded.params["out/kernel"].is_fully_replicated
    # The mesh is that of the parameters; those on no mesh take the one in force.
    close(predict(sharded, IMAGES, LABELS, batch_size=8).logits, one.logits)
    with pytest.raises(UsageError, match="batch_size=6 does not divide over 8 devices"):
        predict(sharded, IMAGES, LABELS, batch_size=6)
    with use_mesh(mesh), pytest.raises(UsageError, match="does not divide over 8 devices"):
        predict(view, IMAGES, LABELS, batch_size=6)


def test_rules_in_force_lay_out_the_batch(view):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    with use_mesh(mesh, (("batch", ("data",)),)):  # over two of the eight
        found = predict(view.on(mesh), IMAGES, LABELS, batch_size=6)
    close(found.logits, written_out(view, IMAGES))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IMAGES.astype(np.int32), LABELS), "images of dtype int32"),
        ((IMAGES.astype(np.float32), LABELS), r"float images from \d+ to \d+; expected \[0, 1\]"),
        ((IMAGES[..., 0], LABELS), r"images of shape \(10, 2, 2\)"),
        ((IMAGES[:, :1], LABELS), r"does not take images of shape \(1, 2, 1\) and dtype uint8"),
        ((IMAGES[:0], LABELS[:0]), "no images"),
        ((IMAGES, None), "images without labels"),
        ((IMAGES, LABELS[:9]), r"labels of shape \(9,\) for images"),
        ((IMAGES, LABELS + 1), "label 3 of example . is out of range; expected 0 to 2"),
        ((IMAGES, LABELS / 2), "labels of dtype float64; expected integers"),
    ],
)
def test_what_cannot_be_predicted_is_refused_in_one_line(view, arguments, message):
    with pytest.raises(UsageError, match=message) as caught:
        predict(view, *arguments, batch_size=4)
    assert "\n" not in str(caught.value)


def test_a_model_of_something_else_is_refused():
    class Pair(nnx.Module):
        def __call__(self, x_bhwc):
            return x_bhwc, None

    with pytest.raises(UsageError, match="the model returns tuple; a classifier returns logits"):
        predict(View.of(Pair()), IMAGES, LABELS)
    with pytest.raises(UsageError, match="batch_size=0; expected 1 or more"):
        predict(new_view(), IMAGES, LABELS, batch_size=0)
    abstract = View.abstract(lambda: nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(UsageError, match="shapes in place of arrays; give it arrays with"):
        predict(abstract, IMAGES, LABELS)
