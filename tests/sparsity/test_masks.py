from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxlab import sparsity
from jaxlab.core import Loss, UsageError, View, use_mesh
from jaxlab.sparsity import keep_largest, masks

KEY = jax.random.key(0)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """The same by a stable sort."""
    kept = np.zeros(scores.size, bool)
    kept[np.argsort(-scores.ravel(), kind="stable")[:count]] = True
    return kept.reshape(scores.shape)


PARAMS = {"up/kernel": normal(12, 20), "down/kernel": normal(20, 6, seed=1), "up/bias": normal(20)}
KERNELS = ("up/kernel", "down/kernel")


class Linears(nnx.Module):
    """Two linear layers without anything between them."""

    def __init__(self, rngs: nnx.Rngs, sizes=(6, 5, 3)):
        self.layers = nnx.List(
            [
                nnx.Linear(a, b, use_bias=False, rngs=rngs)
                for a, b in zip(sizes[:-1], sizes[1:], strict=True)
            ]
        )

    def __call__(self, x_bd: jax.Array) -> jax.Array:
        for layer in self.layers:
            x_bd = layer(x_bd)
        return x_bd


@pytest.mark.parametrize("count", [0, 1, 7, 100, 199, 200])
def test_the_largest_are_those_of_a_stable_sort_also_among_ties(count):
    rng = np.random.default_rng(count)
    tied = rng.integers(0, 4, size=(20, 10)).astype(np.float32)
    for scores in (tied, rng.random((20, 10), np.float32), np.zeros((20, 10), np.float32)):
        found = keep_largest({"a": jnp.asarray(scores)}, count)["a"]
        np.testing.assert_array_equal(found, largest(scores, count))


@pytest.mark.parametrize("kind", ["spread", "near", "rare", "float16", "uint8", "uint16", "uint32"])
def test_the_largest_are_found_in_every_byte_of_a_score(kind):
    rng, size = np.random.default_rng(1), 128 * 31 + 57
    scores = {
        "spread": lambda: (10.0 ** rng.uniform(-45, 38, size)).astype(np.float32),
        # Equal in all bytes but the last one, with many ties.
        "near": lambda: (1 + rng.integers(0, 200, size) * 2.0**-23).astype(np.float32),
        "rare": lambda: rng.choice(np.float32([0, 1e-45, 3, 3.4e38, np.inf]), size),
        "float16": lambda: np.abs(rng.normal(size=size)).astype(np.float16),
        "uint8": lambda: rng.integers(0, 255, size, np.uint8),
        "uint16": lambda: rng.integers(0, 2**16 - 1, size, np.uint16),
        "uint32": lambda: rng.integers(0, 2**32 - 1, size, np.uint32),
    }[kind]()
    # As the compiler takes them, which knows no numbers below 1.2e-38.
    by_size = scores.astype(np.float64)
    for count in (0, 1, 2, 255, 256, 2000, size - 1, size):
        found = keep_largest({"a": jnp.asarray(scores)}, count)["a"]
        np.testing.assert_array_equal(found, largest(by_size, count))


def test_the_largest_of_several_arrays_go_by_natural_order():
    scores = {f"a{i}": np.random.default_rng(i).integers(0, 5, (3, 700)) for i in (10, 2, 1)}
    scores = {path: jnp.asarray(s, jnp.float32) for path, s in scores.items()}
    flat = np.concatenate([scores[path].ravel() for path in ("a1", "a2", "a10")])
    for count in (1, 1000, 3000, 6300):
        found = keep_largest(scores, count)
        together = np.concatenate([found[path].ravel() for path in ("a1", "a2", "a10")])
        np.testing.assert_array_equal(together, largest(flat, count))


def test_only_those_allowed_are_marked_and_the_count_may_be_traced():
    scores, allowed = normal(9, 7) ** 2, normal(9, 7, seed=1) > 0
    jitted = jax.jit(lambda n: keep_largest({"a": scores}, n, {"a": allowed})["a"])
    wanted = np.where(allowed, scores, -1)
    for count in (0, 3, int(allowed.sum())):
        np.testing.assert_array_equal(jitted(count), largest(wanted, count))


def test_random_masks_keep_exact_counts_and_depend_on_nothing_else():
    counts = {"up/kernel": 17, "down/kernel": 101}
    found = masks.random(KEY, PARAMS, counts)
    assert {path: int(mask.sum()) for path, mask in found.items()} == counts
    shapes = {path: jax.ShapeDtypeStruct(p.shape, p.dtype) for path, p in PARAMS.items()}
    again = masks.random(KEY, shapes, {"down/kernel": 101})["down/kernel"]
    np.testing.assert_array_equal(again, found["down/kernel"])
    other = masks.random(jax.random.key(1), PARAMS, counts)["down/kernel"]
    assert not np.array_equal(other, again)


def test_random_masks_keep_every_weight_as_often():
    draw = jax.jit(jax.vmap(lambda key: masks.random(key, PARAMS, {"up/kernel": 60})["up/kernel"]))
    share = draw(jax.random.split(KEY, 800)).mean(axis=0)
    # A quarter of them; 5 deviations of a mean over 800 draws.
    assert np.abs(share - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 800)


def test_local_magnitude_keeps_the_largest_of_each_kernel():
    counts = {"up/kernel": 33, "down/kernel": 4}
    found = masks.magnitude(PARAMS, counts)
    for path, count in counts.items():
        np.testing.assert_array_equal(found[path], largest(np.abs(PARAMS[path]), count))
    assert int(masks.magnitude(PARAMS, 0.5)["up/kernel"].sum()) == 120


def test_global_magnitude_goes_by_the_share_of_its_kernels_norm():
    params = {**PARAMS, "up/kernel": 100 * PARAMS["up/kernel"]}
    found = masks.magnitude(params, {path: 40 for path in KERNELS}, "global")
    unit = {path: np.abs(params[path]) / np.linalg.norm(params[path]) for path in KERNELS}
    flat = largest(np.concatenate([unit["down/kernel"].ravel(), unit["up/kernel"].ravel()]), 80)
    np.testing.assert_array_equal(found["down/kernel"].ravel(), flat[:120])
    np.testing.assert_array_equal(found["up/kernel"].ravel(), flat[120:])


def test_global_scores_leave_every_kernel_its_best_weight():
    # One weight carries all of the norm of the second kernel, all others of it are tiny.
    params = {"a/kernel": jnp.ones((4, 4)), "b/kernel": jnp.full((4, 4), 1e-6).at[2, 1].set(-1e-3)}
    params["c/kernel"] = jnp.zeros((2, 2))
    found = masks.magnitude(params, {"a/kernel": 4, "b/kernel": 2, "c/kernel": 1}, "global")
    assert [int(found[f"{name}/kernel"].sum()) for name in "abc"] == [5, 1, 1]
    assert bool(found["b/kernel"][2, 1]) and bool(found["c/kernel"][0, 0])


def test_n_of_m_keeps_the_largest_of_each_group():
    kernel = normal(3, 3, 8, 5).at[0, 0, :4, 0].set(1.0)
    found = np.asarray(masks.n_m({"conv/kernel": kernel}, 2, 4)["conv/kernel"])
    for window in np.ndindex(3, 3):
        for start in (0, 4):
            for out in range(5):
                group = np.s_[(*window, slice(start, start + 4), out)]
                np.testing.assert_array_equal(found[group], largest(np.abs(kernel[group]), 2))
    assert found[0, 0, :4, 0].tolist() == [True, True, False, False]


def test_n_of_m_goes_along_the_axis_asked_for_and_through_heads():
    kernel = normal(6, 8)
    rows = masks.n_m({"kernel": kernel}, 1, 4, axis=-1)["kernel"]
    assert (rows.reshape(6, 2, 4).sum(-1) == 1).all()
    heads = masks.n_m({"out/kernel": kernel.reshape(2, 3, 8)}, 1, 6)["out/kernel"]
    wanted = largest_of_columns(np.abs(kernel))
    np.testing.assert_array_equal(heads.reshape(6, 8), wanted)


def largest_of_columns(sizes: np.ndarray) -> np.ndarray:
    return sizes == sizes.max(axis=0)


def test_masks_of_sharded_parameters_are_the_same(eight):
    place = NamedSharding(eight, PartitionSpec("fsdp", "tensor"))
    sharded = {path: jax.device_put(PARAMS[path], place) for path in KERNELS}
    for method in (
        lambda p: masks.random(KEY, p, 0.3),
        lambda p: masks.magnitude(p, 0.3),
        lambda p: masks.magnitude(p, 0.3, "global"),
        lambda p: masks.n_m(p, 1, 2),
    ):
        one, many = method({path: PARAMS[path] for path in KERNELS}), jax.jit(method)(sharded)
        for path in KERNELS:
            np.testing.assert_array_equal(one[path], many[path])


def test_on_a_mesh_devices_tell_each_other_counts_alone(eight):
    place = NamedSharding(eight, PartitionSpec("fsdp", "tensor"))
    arrays = [jax.ShapeDtypeStruct((64, 32), kind, sharding=place) for kind in ("float32", bool)]
    params, kept = ({"a/kernel": array, "b/kernel": array} for array in arrays)
    regrow = sparsity.Regrow("gradient", end=100)
    for program, args in (
        (lambda p, m: regrow.change(jnp.int32(4), p, p, m), (params, kept)),
        (lambda p: masks.random(KEY, p, 0.3), (params,)),
        (lambda p: masks.magnitude(p, 0.3, "global"), (params,)),
    ):
        with use_mesh(eight):
            jitted = jax.jit(program, out_shardings={path: place for path in params})
            text = jitted.lower(*args).compile().as_text()
        assert "all-reduce" in text
        assert not any(op in text for op in ("all-gather", "all-to-all", "collective-permute"))


def squared(model, batch, carry, key) -> Loss:
    error = jnp.square(model(batch["inputs"]) - batch["targets"]).sum(-1)
    return Loss(error.mean(), jnp.float32(len(error)))


@pytest.fixture(scope="module")
def linears():
    return View.of(Linears(nnx.Rngs(0)))


def test_snip_is_weight_times_gradient(linears):
    x, y = np.asarray(normal(7, 6, seed=2)), np.asarray(normal(7, 3, seed=3))
    first, second = (np.asarray(linears.params[f"layers/{i}/kernel"]) for i in range(2))
    out_gradient = 2 * (x @ first @ second - y) / 7
    scores = [first * (x.T @ out_gradient @ second.T), second * ((x @ first).T @ out_gradient)]
    flat = largest(np.concatenate([np.abs(s).ravel() for s in scores]), 14)
    found = masks.snip(
        linears,
        squared,
        {"inputs": x, "targets": y},
        {"layers/0/kernel": 10, "layers/1/kernel": 4},
    )
    np.testing.assert_array_equal(
        np.concatenate([found[f"layers/{i}/kernel"].ravel() for i in range(2)]), flat
    )


def test_synflow_is_the_written_out_iteration(linears):
    weights = [np.abs(np.asarray(linears.params[f"layers/{i}/kernel"], "f8")) for i in range(2)]
    kept = [np.ones(w.shape, bool) for w in weights]
    size, total, rounds = 45, 9, 10
    for i in range(1, rounds + 1):
        first, second = (w * m for w, m in zip(weights, kept, strict=True))
        # R = 1^T A B 1: its derivative by A_ij is the row sum of B_j, by B_jk the column sum of A.
        scores = np.concatenate(
            [(first * second.sum(1)).ravel(), (second * first.sum(0)[:, None]).ravel()]
        )
        marked = largest(scores, round(size * (total / size) ** (i / rounds)))
        kept = [marked[:30].reshape(6, 5), marked[30:].reshape(5, 3)]
    found = masks.synflow(linears, jnp.zeros((4, 6)), 0.2, rounds=rounds)
    for i in range(2):
        np.testing.assert_array_equal(found[f"layers/{i}/kernel"], kept[i])
    # What flows passes through: no unit is fed and unread, or read and not fed.
    fed, read = (np.asarray(found[f"layers/{i}/kernel"]).any(axis=i) for i in range(2))
    hidden_fed = np.asarray(found["layers/0/kernel"]).any(axis=0)
    assert (hidden_fed == np.asarray(found["layers/1/kernel"]).any(axis=1)).all(), (fed, read)


def deep(factor: float) -> View:
    """Twelve layers of width eight, with weights so many times too large."""
    view = View.of(Linears(nnx.Rngs(0), sizes=(8,) * 13))
    return view.at({path: factor * p for path, p in view.params.items()})


def test_synflow_of_a_deep_model_does_not_overflow():
    view, flow = deep(1e4), jnp.ones((1, 8))
    for p in view.params.values():
        flow = flow @ jnp.abs(p)
    assert not jnp.isfinite(flow).all()
    found = masks.synflow(view, jnp.zeros((1, 8)), 0.25, rounds=2)
    # The weights are those of the same model in proportion, and so are the masks.
    wanted = masks.synflow(deep(1.0), jnp.zeros((1, 8)), 0.25, rounds=2)
    for path, mask in found.items():
        np.testing.assert_array_equal(mask, wanted[path])
    assert sum(int(mask.sum()) for mask in found.values()) == 12 * 16
    assert jnp.ones(1).dtype == jnp.float32


def test_a_flow_beyond_the_dtype_of_the_model_is_refused():
    view = deep(1e4)
    model = view.model()
    for layer in model.layers:
        layer.dtype = jnp.float16
    with pytest.raises(UsageError, match="the synaptic flow is (inf|nan): the dtype of the"):
        masks.synflow(View.of(model), jnp.zeros((1, 8)), 0.5, rounds=1)


class Normalised(Linears):
    """Linear layers behind a norm whose running mean would turn the flow around."""

    def __init__(self, rngs: nnx.Rngs):
        super().__init__(rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.norm.mean[...] = jnp.linspace(-3.0, -0.5, 6)

    def __call__(self, x_bd):
        return super().__call__(self.norm(x_bd))


def test_synflow_takes_running_statistics_by_magnitude():
    view = View.of(Normalised(nnx.Rngs(0)))
    found = masks.synflow(view, jnp.zeros((2, 6)), 0.3, rounds=1)
    first, second = (np.abs(np.asarray(view.params[f"layers/{i}/kernel"], "f8")) for i in range(2))
    flow = (1 - np.linspace(3.0, 0.5, 6)) / np.sqrt(1 + 1e-5)
    scores = [first * flow[:, None] * second.sum(1), second * (flow @ first)[:, None]]
    # Three tenths of 30 and of 15 weights, rounded up.
    flat = largest(np.abs(np.concatenate([s.ravel() for s in scores])), 9 + 5)
    together = np.concatenate([found[f"layers/{i}/kernel"].ravel() for i in range(2)])
    np.testing.assert_array_equal(together, flat)


def test_sparse_weights_have_the_deviation_of_their_fan_in():
    params = {"conv/kernel": jnp.zeros((3, 3, 64, 64)), "query/kernel": jnp.zeros((512, 4, 16))}
    found = {path: jnp.arange(p.size).reshape(p.shape) % 4 == 0 for path, p in params.items()}
    weights, uniform = (
        {path: np.asarray(p) for path, p in sparsity.sparse_init(KEY, params, found, *way).items()}
        for way in ((), ("uniform",))
    )
    for path, inputs in (("conv/kernel", 9 * 64 / 4), ("query/kernel", 512 / 4)):
        mask = np.asarray(found[path])
        kept = weights[path][mask]
        assert kept.std() == pytest.approx(np.sqrt(2 / inputs), rel=0.03)
        assert abs(kept.mean()) < 0.05 * kept.std()
        assert not weights[path][~mask].any() and (kept != 0).all()
        bound = 1 / np.sqrt(inputs)
        assert 0.99 * bound < np.abs(uniform[path]).max() <= bound


def test_rescaled_weights_are_the_models_over_the_root_of_the_density():
    found = {"up/kernel": masks.random(KEY, PARAMS, {"up/kernel": 60})["up/kernel"]}
    scaled = sparsity.rescale(PARAMS, found)
    wanted = np.where(found["up/kernel"], 2 * PARAMS["up/kernel"], 0)
    np.testing.assert_allclose(scaled["up/kernel"], wanted, rtol=1e-6)
    np.testing.assert_array_equal(scaled["down/kernel"], PARAMS["down/kernel"])
    full = sparsity.rescale(PARAMS, {path: jnp.ones(PARAMS[path].shape, bool) for path in KERNELS})
    for path, p in PARAMS.items():
        np.testing.assert_array_equal(full[path], p)
    np.testing.assert_array_equal(
        masks.nonzero(scaled, ["up/kernel"])["up/kernel"], found["up/kernel"]
    )


def test_a_report_counts_weights_and_units_without_them():
    conv = np.zeros((3, 3, 2, 4), bool)
    conv[1, 1, 0, 2] = conv[0, 2, 0, 3] = True
    dense = np.eye(4, 3, dtype=bool)
    report = sparsity.mask_report({"conv/kernel": conv, "dense/kernel": dense})
    first, second = report.kernels
    assert (first.size, first.kept, first.empty_outputs, first.unread_inputs) == (72, 2, 2, 1)
    assert (second.kept, second.empty_outputs, second.unread_inputs) == (3, 0, 1)
    assert (report.kept, report.size, report.empty_units) == (5, 84, 2)
    assert report.density == 5 / 84 and "2 of 4" in str(report) and "dense/kernel" in str(report)
    params = {"conv/kernel": jnp.zeros(conv.shape), "dense/kernel": jnp.zeros((4, 3))}
    assert sparsity.mask_report({"conv/kernel": conv}, params).kept == 2 + 12


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: masks.random(KEY, PARAMS, {"up/kernl": 3}),
            "'up/kernl', which is no parameter; did",
        ),
        (lambda: masks.magnitude(PARAMS, {"up/kernel": 0}), "should keep 0; .* from 1 to 240"),
        (lambda: masks.magnitude(PARAMS, {"up/kernel": 241}), "should keep 241"),
        (lambda: masks.magnitude(PARAMS, 1.2), "density=1.2; it takes a fraction"),
        (lambda: masks.magnitude(PARAMS, 0.5, "layer"), "scope='layer'; it takes 'local' or"),
        (lambda: masks.n_m(PARAMS, 2, 8), "'down/kernel' has 20 weights along axis -2, which m=8"),
        (lambda: masks.n_m(PARAMS, 5, 4), "n=5 of m=4"),
        (lambda: masks.n_m(PARAMS, 2, 4, axis=2), "axis=2; 'down/kernel' has 2 axes"),
        (lambda: sparsity.sparse_init(KEY, PARAMS, {}, "he"), "distribution='he'"),
        (lambda: sparsity.mask_report({"x": np.ones((2, 2), bool)}, PARAMS), "mask 'x' fits no"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(UsageError, match=words):
        call()


def test_synflow_needs_a_round(linears):
    with pytest.raises(UsageError, match="rounds=0; it takes 1 or more"):
        masks.synflow(linears, jnp.zeros((1, 6)), 0.5, rounds=0)


def test_snip_refuses_scores_that_are_not_finite(linears):
    batch = {"inputs": jnp.full((2, 6), jnp.inf), "targets": jnp.zeros((2, 3))}
    with pytest.raises(UsageError, match="the scores of 'layers/0/kernel' are not finite"):
        masks.snip(linears, squared, batch, 0.5)
