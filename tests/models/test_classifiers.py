"""Image classifiers: sizes of their sources, what they compute, what they refuse."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxlab import models, objectives, train
from jaxlab.core import MeshConfig, UsageError, View, from_dict, make_mesh, to_dict
from jaxlab.models import CLASSIFIERS, classifier_config

# Sizes as other libraries count them (torchvision, timm) or as the papers' tables give them.
NUM_PARAMS = {
    "resnet20": 272_474,
    "resnet32": 466_906,
    "resnet56": 855_770,
    "resnet18": 11_173_962,
    "resnet18_large": 11_689_512,
    "resnet50_large": 25_557_032,
    "wrn28_10": 36_479_194,
    "vgg16": 14_728_266,
    "small_cnn": 188_810,
    "mlp": 669_706,
    "vit_ti16": 5_717_416,
    "vit_s16": 22_050_664,
    "vit_b16": 86_567_656,
    "vit_ti4": 5_362_762,
    "vit_s4": 21_342_346,
    "vit_b4": 85_152_010,
    "mixer_s16": 18_528_264,
    "mixer_b16": 59_880_472,
    "mixer_s4": 17_110_026,
}
KINDS = sorted(
    name for name in models.names() if issubclass(models.registered(name).model, models.Classifier)
)


def num_params(config):
    return View.abstract(lambda: config.build(nnx.Rngs(0))).num_params


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_sizes_are_those_of_the_sources(name):
    assert num_params(classifier_config(name)) == NUM_PARAMS[name]


def test_shortcuts_and_widths_of_resnet20_have_the_known_sizes():
    assert num_params(classifier_config("resnet20", shortcut="pad")) == 269_722
    assert num_params(classifier_config("resnet20", shortcut="3x3")) == 292_954
    assert num_params(classifier_config("resnet20", width=64)) == 4_327_754


@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
def test_width_and_depth_scale_every_classifier(name):
    config = dataclasses.replace(CLASSIFIERS[name], depth=1)  # whose shapes take little time
    heads = getattr(config, "num_heads", 1)
    wider = dataclasses.replace(config, width=config.width + heads)
    deeper = dataclasses.replace(config, depth=config.depth + 1)
    assert num_params(config) < min(num_params(wider), num_params(deeper))


@functools.cache
def built(name):
    return models.registered(name).build(nnx.Rngs(0))


def images_of(name, rows=4):
    (images,) = models.registered(name).inputs(rows)
    return jnp.asarray(1 / (1 + np.exp(-images)), jnp.float32)


@functools.cache
def evaluated(name):
    view = View.of(built(name)).evaluating()
    return view, jax.jit(view.apply)


@pytest.mark.parametrize("name", KINDS)
def test_logits_of_an_image_do_not_depend_on_the_others_in_evaluation_mode(name):
    view, apply = evaluated(name)
    images = images_of(name)
    logits = apply(view.params, images)
    assert logits.shape == (4, 8) and logits.dtype == jnp.float32
    others = images.at[1:].set(0.5)
    np.testing.assert_allclose(apply(view.params, others)[0], logits[0], atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_every_block_is_reached_by_taps(name):
    view, _ = evaluated(name)
    count = len(view.model().blocks)
    taps = view.taps(images_of(name), "blocks/*")
    assert {f"blocks/{i}" for i in range(count)} <= set(taps)
    head = view.taps(images_of(name), "head")["head"]
    np.testing.assert_allclose(head, view(images_of(name)), atol=1e-5)


@pytest.mark.parametrize("name", ["resnet/batch", "vit/class_token", "mlp/residual"])
def test_steps_on_levels_compile_once_and_lower_the_loss(name):
    entry, optimizer = models.registered(name), optax.sgd(0.05)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    rng = np.random.default_rng(0)
    shape = (8, *entry.config.image_shape)
    batch = {
        "inputs": rng.integers(0, 256, shape, np.uint8),
        "targets": np.arange(8, dtype=np.int32),
    }
    names = ("loss", "grad_norm", "accuracy")
    view, state, _ = train.init_state(entry.build, optimizer, key=0, mesh=mesh, metric_names=names)
    step = train.make_step(view, objectives.classify, optimizer, mesh=mesh)
    totals = [0.0]
    for _ in range(4):
        state = step(state, batch)
        totals.append(float(state.metrics["loss"][0]))
    losses = np.diff(totals) / 8
    assert step.num_compilations == 1
    assert losses[-1] < losses[0]
    moved = [path for path in state.model_state if path.endswith("mean")]
    assert bool(moved) == (name != "vit/class_token")
    assert all(jnp.any(state.model_state[path] != 0) for path in moved)


@pytest.mark.parametrize("name", KINDS)
def test_bfloat16_computes_in_it_and_gives_float32_logits(name):
    entry = models.registered(name)
    config = dataclasses.replace(entry.config, dtype="bfloat16")
    view = View.of(entry.model(config, rngs=nnx.Rngs(0))).evaluating()
    assert {p.dtype for p in view.params.values()} == {jnp.dtype("float32")}
    taps = view.taps(images_of(name), ["", "blocks/0"])
    block = taps["blocks/0"]
    assert (block[0] if isinstance(block, tuple) else block).dtype == jnp.bfloat16
    assert taps[""].dtype == jnp.float32
    _, apply = evaluated(name)
    np.testing.assert_allclose(taps[""], apply(view.params, images_of(name)), atol=0.15)


@pytest.mark.parametrize("name", KINDS)
def test_a_config_goes_through_its_dict_form(name):
    entry = models.registered(name)
    assert from_dict(type(entry.config), to_dict(entry.config)) == entry.config
    again = entry.model.from_config(to_dict(entry.config), rngs=nnx.Rngs(0))
    assert all(
        jnp.array_equal(p, View.of(built(name)).params[path])
        for path, p in View.of(again).params.items()
    )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (jnp.zeros((1, 8, 8, 4), jnp.uint8), "images of dtype uint8; expected floats"),
        (jnp.zeros((1, 9, 8, 4)), r"\(1, 9, 8, 4\); the model takes \[b, 8, 8, 4\]"),
        (jnp.zeros((8, 8, 4)), r"\(8, 8, 4\); the model takes"),
    ],
)
def test_images_of_another_kind_are_refused(images, message):
    with pytest.raises(UsageError, match=message):
        built("small_cnn")(images)


def test_images_are_normalised_by_channel_inside_the_model():
    config = models.registered("small_cnn").config
    plain = config.build(nnx.Rngs(0))
    mean, std = (0.1, 0.2, 0.3, 0.4), (0.5, 1.0, 2.0, 0.25)
    scaled = dataclasses.replace(config, mean=mean, std=std).build(nnx.Rngs(0))
    images = images_of("small_cnn")
    normalised = (np.asarray(images) - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(
        scaled(images), plain(jnp.asarray(normalised, jnp.float32)), rtol=1e-4, atol=1e-5
    )


def convolved(x_bhwc, kernel_hwio, stride):
    """A convolution as its definition has it, padded by half of the kernel on each side."""
    size = kernel_hwio.shape[0]
    x = np.pad(x_bhwc, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    rows = range(0, x_bhwc.shape[1], stride)
    return np.stack(
        [
            np.stack(
                [
                    np.einsum("bhwi,hwio->bo", x[:, i : i + size, j : j + size], kernel_hwio)
                    for j in rows
                ],
                axis=1,
            )
            for i in rows
        ],
        axis=1,
    )


def test_a_residual_block_is_what_the_paper_draws():
    view, _ = evaluated("resnet/batch")
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=p.shape).astype(np.float32) for path, p in view.params.items()}
    state = {
        path: rng.uniform(0.5, 2, s.shape).astype(np.float32) for path, s in view.state.items()
    }
    view = dataclasses.replace(view.at(params), state=state)
    taps = view.taps(images_of("resnet/batch"), ["blocks/0", "blocks/1"])

    def norm(x, path):
        p, s = f"{path}/", f"{path}/"
        unit = (x - state[s + "mean"]) / np.sqrt(state[s + "var"] + 1e-5)
        return unit * params[p + "scale"] + params[p + "bias"]

    x = np.asarray(taps["blocks/0"])
    hidden = norm(convolved(x, params["blocks/1/convs/0/kernel"], 2), "blocks/1/norms/0")
    branch = convolved(np.maximum(hidden, 0), params["blocks/1/convs/1/kernel"], 1)
    branch = norm(branch, "blocks/1/norms/1")
    kept = norm(convolved(x, params["blocks/1/shortcut/conv/kernel"], 2), "blocks/1/shortcut/norm")
    np.testing.assert_allclose(
        taps["blocks/1"], np.maximum(branch + kept, 0), rtol=1e-3, atol=1e-3 * abs(branch).max()
    )


def test_fixup_starts_with_zero_logits_and_blocks_that_pass_on():
    view, _ = evaluated("resnet/fixup")
    taps = view.taps(images_of("resnet/fixup"), ["", "blocks/*"])
    np.testing.assert_array_equal(taps[""], 0)
    first, second = np.asarray(taps["blocks/0"]), np.asarray(taps["blocks/1"])
    np.testing.assert_array_equal(second[..., :8], first[:, ::2, ::2])
    np.testing.assert_array_equal(second[..., 8:], 0)


def test_fixup_scales_the_first_convolutions_for_depth():
    deep, shallow = (
        View.of(classifier_config("resnet20", norm="fixup", depth=depth).build(nnx.Rngs(0))).params
        for depth in (6, 1)
    )
    path = "blocks/0/convs/0/kernel"
    ratio = float(deep[path].std() / shallow[path].std())
    assert ratio == pytest.approx((18 / 3) ** -0.5, rel=0.1)


def test_a_vision_transformer_without_positions_takes_patches_as_a_set():
    view, apply = evaluated("vit")
    params = view.params | {"positions": jnp.zeros_like(view.params["positions"])}
    images = images_of("vit")
    halves = jnp.concatenate([images[:, 4:], images[:, :4]], axis=1)
    np.testing.assert_allclose(apply(params, halves), apply(params, images), atol=1e-5)
    assert abs(apply(view.params, halves) - apply(view.params, images)).max() > 1e-4


def test_an_mlp_is_products_and_relus():
    config = models.MLPConfig(in_dim=6, widths=(5, 4), num_classes=3)
    view = View.of(config.build(nnx.Rngs(1)))
    params = {path: np.asarray(p) for path, p in view.params.items()}
    x = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    hidden = x
    for i in (0, 1):
        layer = f"blocks/{i}/dense/"
        hidden = np.maximum(hidden @ params[layer + "kernel"] + params[layer + "bias"], 0)
    wanted = hidden @ params["head/kernel"] + params["head/bias"]
    np.testing.assert_allclose(view(jnp.asarray(x)), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="in_dim=6"):
        view(jnp.zeros((2, 7)))


def test_a_residual_mlp_of_zero_kernels_passes_its_first_layer_on():
    view, _ = evaluated("mlp/residual")
    params = view.params | {
        path: jnp.zeros_like(p)
        for path, p in view.params.items()
        if "blocks/0" not in path and path.startswith("blocks") and "dense" in path
    }
    taps = view.taps(images_of("mlp/residual"), "blocks/*", params=params)
    np.testing.assert_array_equal(taps["blocks/2"], taps["blocks/0"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: classifier_config("resnet21"), "no classifier 'resnet21'.*resnet20"),
        (lambda: classifier_config("resnet20", widht=3), "has no field 'widht'.*width"),
        (lambda: classifier_config("vit_ti4", patch=5), "patch=5 does not divide"),
        (lambda: classifier_config("vit_ti4", width=100), "width=100 does not divide"),
        (lambda: classifier_config("small_cnn", width=0), "width=0 must be at least 1"),
        (lambda: classifier_config("small_cnn", image_shape=(4, 4, 1)), "too small to be halved 3"),
        (lambda: classifier_config("small_cnn", mean=(0.1, 0.2)), "mean has 2 values for 3"),
        (lambda: classifier_config("small_cnn", std=(0.0,)), "std=.*above 0"),
        (lambda: classifier_config("vgg16", stages=()), "one stage or more"),
        (lambda: classifier_config("mlp", widths=(4, 5), residual=True), "of one width"),
        (
            lambda: models.MLPConfig(image_shape=(4, 4, 3), in_dim=48, mean=(0.1, 0.2, 0.3)),
            "by channel, and in_dim=48 has none",
        ),
        (
            lambda: classifier_config("resnet20", norm="fixup", block="preactivation"),
            "no preactivation block",
        ),
    ],
)
def test_configs_that_do_not_fit_end_in_one_line(make, message):
    with pytest.raises(UsageError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
