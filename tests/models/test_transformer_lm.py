from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxlab import train
from jaxlab.core import MeshConfig, UsageError, View, make_mesh, param_shardings, to_dict, use_mesh
from jaxlab.models import TransformerLM, TransformerLMConfig
from jaxlab.objectives import next_token

T = 28  # seven blocks of four


@pytest.fixture(scope="module", params=["plain", "sliding", "recurrent", "feedback"])
def depends(request, tiny):
    """Which logits depend on which inputs, for marks of document starts."""
    model = tiny.model(request.param)
    x_btd = jax.random.normal(jax.random.key(1), (1, T, tiny.width))

    def depends(*positions):
        start_bt = jnp.zeros((1, T), bool).at[:, jnp.array(positions, int)].set(True)
        return np.asarray(tiny.influence(model, x_btd, model.init_carry(1), start_bt))

    depends.kind = request.param
    return depends


def test_future_tokens_do_not_change_logits(depends):
    strength = depends()
    assert (np.triu(strength, 1) == 0).all()
    assert (np.diagonal(strength) > 0).all() and (np.diagonal(strength, -1) > 0).all()


def test_only_recurrence_reaches_beyond_the_windows_of_all_layers(depends):
    strength = depends()
    t, s = np.mgrid[:T, :T]
    beyond = t - s > 2 * 4
    if depends.kind == "sliding":
        assert (strength[beyond] == 0).all()
        assert (strength[(t - s > 4) & ~beyond] > 0).all()
    else:
        assert (strength[20:, :4] > 0).all()


@pytest.mark.parametrize("position", [8, 10])
def test_a_document_start_erases_all_influence_of_the_past(depends, position):
    strength = depends(position)
    assert (strength[position:, :position] == 0).all()
    assert (np.tril(strength)[:position, :position].sum(axis=1) > 0).all()
    assert (np.diagonal(strength, -1)[position:] > 0).all()


@pytest.mark.parametrize("kind", ["sliding", "recurrent", "feedback"])
def test_a_row_that_starts_at_a_block_border_is_bit_equal_to_a_fresh_row(tiny, kind):
    model = tiny.model(kind)
    _, carry = tiny.run(model)
    start = jnp.zeros((4, T), bool).at[0, 0].set(True)
    old, after = tiny.run(model, carry=carry, start_bt=start)
    fresh, after_fresh = tiny.run(model)
    np.testing.assert_array_equal(old[0], fresh[0])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), after, after_fresh)
    assert (old[1] != fresh[1]).any()


@pytest.mark.parametrize("kind", ["recurrent", "feedback"])
def test_segments_of_any_lengths_with_the_carry_equal_one_pass(tiny, kind):
    model, parts, carry = tiny.model(kind), [], None
    whole, carry_whole = tiny.run(model)
    for part in jnp.split(tiny.tokens, [4, 12], axis=1):  # one, two and four blocks
        logits, carry = tiny.run(model, part, carry)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), carry, carry_whole)


def test_segments_of_one_window_are_cached_like_transformer_xl(tiny):
    model, parts, carry = tiny.model("sliding"), [], None
    for part in jnp.split(tiny.tokens, 7, axis=1):
        logits, carry = tiny.run(model, part, carry)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), tiny.run(model)[0], atol=1e-5)
    assert {x.shape[1] for x in jax.tree.leaves(carry["blocks"])} == {tiny.window}


SMALL = {"depth": 1, "activation": "gelu"}  # smooth: kinks of a ReLU have no second derivative


def loss_of(tiny, view):
    tokens = tiny.tokens[:1, :8]
    batch = {
        "inputs": tokens,
        "targets": jnp.roll(tokens, -1, 1),
        "mask": tokens >= 0,
        "start": jnp.zeros(tokens.shape, bool),
    }
    return lambda params: next_token(view.bind(params), batch).value


@pytest.fixture(scope="module")
def curvature(tiny):
    """A view, and the gradient of its loss with the derivative of that along a direction."""
    view = View.of(tiny.model("recurrent", **SMALL))
    gradient = jax.grad(loss_of(tiny, view))
    return view, jax.jit(lambda params, along: jax.jvp(gradient, (params,), (along,)))


def test_hessian_products_match_finite_differences(curvature):
    view, evaluate = curvature
    rng, step = np.random.default_rng(0), 1e-2
    along = {
        path: (rng.normal(size=p.shape) / view.num_params**0.5).astype(np.float32)
        for path, p in view.params.items()
    }

    def moved(step):
        return evaluate(jax.tree.map(lambda p, d: p + step * d, view.params, along), along)[0]

    product, difference = (
        np.concatenate([np.ravel(tree[path]) for path in view.params])
        for tree in (
            evaluate(view.params, along)[1],
            jax.tree.map(lambda a, b: (a - b) / (2 * step), moved(step), moved(-step)),
        )
    )
    assert np.isfinite(product).all()
    assert np.linalg.norm(product - difference) < 3e-3 * np.linalg.norm(product)


def test_remat_does_not_change_gradients(tiny, curvature):
    view, evaluate = curvature
    plain, _ = evaluate(view.params, jax.tree.map(jnp.zeros_like, view.params))
    loss = loss_of(tiny, View.of(tiny.model("recurrent", remat=True, **SMALL)))
    again = jax.jit(jax.grad(loss))(view.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, again)


def test_bfloat16_gives_float32_logits_near_those_of_float32(tiny):
    exact, _ = tiny.run(tiny.model("recurrent"))
    model = tiny.model("recurrent", dtype="bfloat16")
    low, carry = tiny.run(model)
    assert low.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(carry["blocks"])} == {jnp.dtype(jnp.bfloat16)}
    assert {p.dtype for p in View.of(model).params.values()} == {jnp.dtype(jnp.float32)}
    assert 0 < np.abs(low - exact).max() < 0.2 * exact.std()


def test_dropout_is_off_without_a_key_and_differs_by_key(tiny):
    model = tiny.model("sliding", dropout_rate=0.3)
    off, _ = tiny.run(model)
    np.testing.assert_allclose(off, tiny.run(tiny.model("sliding"))[0], atol=1e-6)
    one, again, other = (tiny.run(model, key=jax.random.key(seed))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any() and (one != off).any()


@pytest.mark.parametrize("kind", ["plain", "sliding", "feedback"])
def test_attention_dropout_is_the_same_computed_again_and_off_without_a_key(tiny, kind):
    changes = {"attention_dropout": 0.3, "activation": "gelu"}
    models = [
        tiny.model(kind, scan_layers=again, remat=again, **changes) for again in (False, True)
    ]
    off, _ = tiny.run(models[0])
    never = tiny.model(kind, **changes | {"attention_dropout": 0.0})
    np.testing.assert_allclose(tiny.run(never, key=jax.random.key(0))[0], off, atol=1e-6)
    one, same, other = (tiny.run(models[0], key=jax.random.key(seed))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any() and (one != off).any()

    def gradients(model):
        view = View.of(model)

        def loss(params):
            logits, _ = view.apply(params, tiny.tokens, key=jax.random.key(0))
            return -jax.nn.log_softmax(logits)[..., 0].mean()

        return jax.jit(jax.value_and_grad(loss))(view.params)

    plain, again = (gradients(model) for model in models)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, again)


def test_a_scan_over_equal_layers_is_the_plain_stack(tiny):
    scanned = tiny.model("sliding", scan_layers=True, remat=True)
    assert scanned.config.runs() == [(0, 2)]
    plain, again = (tiny.run(model) for model in (tiny.model("sliding"), scanned))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, again)


def test_from_config_takes_the_dict_form():
    config = TransformerLMConfig(width=16, depth=1, num_heads=2, window=4, recurrent_layers=(0,))
    assert TransformerLM.from_config(to_dict(config)).config == config


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"width": 100, "num_heads": 12}, "width=100 .* num_heads=12; nearest: 96, 108"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"recurrent_layers": (4,)}, "recurrent_layers holds 4, but depth=4"),
        ({"recurrent_layers": (0,), "window": None}, "need a window"),
        ({"state_readers": (0,)}, "set recurrent_layers, e.g. -3"),
        ({"recurrent_layers": (-2,), "state_readers": (2,)}, "layer 2 is in recurrent_layers and"),
        ({"gate": "gru2"}, "gate='gru2'; it takes fixed, lstm, gru"),
        ({"position": "learned"}, "position='learned' knows no carried window"),
        ({"dropout_rate": 1.0}, r"dropout_rate=1.0 must lie in \[0, 1\)"),
        ({"attention_dropout": -0.1}, r"attention_dropout=-0.1 must lie in \[0, 1\)"),
        (
            {"attention_dropout": 0.1, "backend": "pallas"},
            r"attention_dropout=0.1 with backend 'pallas', which .*backend='plain'",
        ),
        ({"backend": "palas"}, r"no backend 'palas'; did you mean 'pallas'.* plain, pallas"),
        ({"backend": "pallas", "window": None}, r"backend 'pallas' needs a window"),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_one_line(kwargs, message):
    with pytest.raises(UsageError, match=message) as error:
        TransformerLMConfig(**kwargs)
    assert "\n" not in str(error.value)


def test_a_carry_or_cache_that_does_not_fit_is_refused_in_one_line(tiny):
    model, other = tiny.model("recurrent"), tiny.model("sliding")
    tokens = tiny.tokens[:, :4]
    cases = [
        (model.init_carry(3), r"float32\[3, 4, 2, 8\], but 4 rows of tokens need float32\[4, 4,"),
        (other.init_carry(4), r"another model: .*'state'\] is in one alone"),
        (
            jax.tree.map(lambda x: x.astype("bfloat16") if x.ndim > 1 else x, model.init_carry(4)),
            r"as bfloat16\[4, 4, 2, 8\], but 4 rows of tokens need float32",
        ),
    ]
    for carry, message in cases:
        with pytest.raises(UsageError, match=message) as error:
            model(tokens, carry)
        assert "\n" not in str(error.value) and "init_carry(4)" in str(error.value)
    with pytest.raises(UsageError, match="the cache holds .*start from init_cache"):
        model.step(tokens[:, 0], model.init_cache(2))


def test_more_tokens_than_learned_positions_are_refused(tiny):
    model = tiny.model("learned")
    with pytest.raises(UsageError, match="29 tokens exceed max_length=28"):
        model(jnp.zeros((1, 29), jnp.int32))
    with pytest.raises(UsageError, match="29 tokens exceed the 28 learned positions"):
        model.init_cache(1, 29)


@pytest.fixture(scope="module")
def meshes():
    """One device, and eight: data, fsdp and tensor of two each."""
    return (
        make_mesh(MeshConfig(data=1), jax.devices()[:1]),
        make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8]),
    )


def test_logits_on_eight_devices_equal_those_of_one(tiny, meshes):
    model = tiny.model("recurrent")
    view = View.of(model)
    shardings, _ = param_shardings(view.params, view.axes, meshes[1])
    params = jax.device_put(view.params, shardings)
    assert any(not p.is_fully_replicated for p in params.values())
    with use_mesh(meshes[1]):
        logits, _ = jax.jit(view.apply)(params, tiny.tokens)
    np.testing.assert_allclose(logits, tiny.run(model)[0], atol=1e-5)


def loss_curve(tiny, mesh):
    """Losses of three steps in which one row after the other starts a document."""
    config, optimizer = tiny.model("recurrent", depth=1).config, optax.sgd(0.3)
    view, state, _ = train.init_state(
        lambda rngs: TransformerLM(config, rngs=rngs),
        optimizer,
        key=0,
        mesh=mesh,
        carry=lambda: TransformerLM(config, rngs=nnx.Rngs(0)).init_carry(4),
        metric_names=("accuracy", "grad_norm", "loss"),
    )
    step = train.make_step(view, next_token, optimizer, mesh=mesh)
    rng, totals = np.random.default_rng(0), [0.0]
    for row in range(3):
        tokens = rng.integers(0, tiny.vocab, (4, 9), dtype=np.int32)
        start = np.zeros((4, 8), bool)
        start[row, 0] = True
        batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "start": start}
        state = step(state, {**batch, "mask": np.ones((4, 8), bool)})
        totals.append(float(state.metrics["loss"][0]))
    return np.diff(totals) / 32


def test_training_on_eight_devices_has_the_loss_curve_of_one(tiny, meshes):
    one, eight = (loss_curve(tiny, mesh) for mesh in meshes)
    np.testing.assert_allclose(one, eight, rtol=2e-5)
    assert np.isfinite(one).all() and len(set(one.tolist())) == 3
