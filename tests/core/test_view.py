from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab import models
from jaxlab.core import UsageError, View, as_view, natural_sort, use_mesh
from jaxlab.core.mesh import MeshConfig, make_mesh


class Strange(nnx.Module):
    """A model that the library has never seen: convolution, attention, statistics, noise, scan."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(2, 4, kernel_size=3, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.layers = jax.vmap(lambda key: nnx.Linear(4, 4, rngs=nnx.Rngs(key)))(
            jax.random.split(rngs(), 3)
        )
        self.scale = nnx.Param(jnp.ones(4), axes=("embed",))
        self.table = jnp.arange(4.0)
        self.nothing = None

    def __call__(self, x_btc: jax.Array) -> jax.Array:
        x_btd = self.attention(self.norm(self.conv(x_btc)))
        x_btd = self.dropout(x_btd) * self.scale[None, None] + self.table[None, None]
        return jax.lax.scan(lambda x, layer: (jnp.tanh(layer(x)), None), x_btd, self.layers)[0]


class Small(nnx.Module):
    """Attention, statistics and a scan, small for what takes long to compile."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(1, 4, decode=False, rngs=rngs)
        self.layers = jnp.stack([jnp.eye(4), 2 * jnp.eye(4)])

    def __call__(self, x_btd: jax.Array) -> jax.Array:
        x_btd = self.attention(self.norm(x_btd))
        return jax.lax.scan(lambda x, w_de: (jnp.tanh(x @ w_de), None), x_btd, self.layers)[0]


class Chain(nnx.Module):
    """Eleven blocks, one of them called twice, and one that is never called."""

    def __init__(self, rngs: nnx.Rngs):
        self.blocks = nnx.Dict({f"n{i}": nnx.Linear(3, 3, rngs=rngs) for i in range(11)})
        self.idle = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        for i in range(11):
            x = self.blocks[f"n{i}"](x)
        return self.blocks["n2"](x)


class Attributes(nnx.Module):
    """What it is given, as attributes."""

    def __init__(self, **attributes):
        for name, value in attributes.items():
            setattr(self, name, value)


def linear(seed: int = 0) -> nnx.Linear:
    return nnx.Linear(3, 3, rngs=nnx.Rngs(seed))


@pytest.fixture(scope="module")
def strange():
    return Strange(nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (2, 5, 2))


def test_apply_equals_the_call_exactly(strange):
    model, x = strange
    view = View.of(model)
    wanted = nnx.clone(model)(x)
    assert np.array_equal(view.apply(view.params, x), wanted)
    assert np.array_equal(view(x), wanted), "the call before must have left no trace"
    assert np.array_equal(view.bind(view.params)(x), wanted)


def test_params_are_the_param_variables_and_state_is_the_rest(strange):
    view = View.of(strange[0])
    assert list(view.params)[-3:] == ["norm/bias", "norm/scale", "scale"]
    assert view.params["layers/kernel"].shape == (3, 4, 4)
    assert list(view.state) == [
        "dropout/rngs/count",
        "dropout/rngs/key",
        "norm/mean",
        "norm/var",
        "table",
    ]
    assert view.num_params == sum(p.size for p in jax.tree.leaves(nnx.state(strange[0], nnx.Param)))


def test_hessian_products_through_apply_equal_differences_of_gradients():
    view, step, rng = View.of(Small(nnx.Rngs(0))), 2e-3, np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4)).astype(np.float32)
    # Compiling random numbers would take longer than the rest.
    params, direction = (
        {path: rng.normal(size=p.shape).astype(np.float32) for path, p in view.params.items()}
        for _ in range(2)
    )

    def at(distance):
        slope = jax.grad(lambda p: (view.apply(p, x) ** 2).mean())
        moved = jax.tree.map(lambda p, d: p + distance * d, params, direction)
        return jax.jvp(slope, (moved,), (direction,))

    gradients, exact = jax.jit(lambda d: jax.lax.map(at, d))(np.float32([0, step, -step]))
    assert exact.keys() == view.params.keys()
    assert max(float(abs(p).max()) for p in exact.values()) > 1e-2
    for path, product in exact.items():
        numeric = (np.asarray(gradients[path][1]) - gradients[path][2]) / (2 * step)
        np.testing.assert_allclose(product[0], numeric, rtol=0.02, atol=5e-3, err_msg=path)


def test_state_is_threaded(strange):
    model, x = strange
    view = View.of(model)
    step = jax.jit(view.apply_with_state)
    _, once = step(view.params, view.state, x)
    _, twice = step(view.params, once, x)
    reference = nnx.clone(model)
    reference(x)
    reference(x)
    assert list(natural_sort(twice)) == list(view.state)
    assert twice["dropout/rngs/count"] == 2
    np.testing.assert_allclose(twice["norm/mean"], reference.norm.mean[...], rtol=1e-5)
    assert not np.allclose(twice["norm/mean"], once["norm/mean"])
    assert np.array_equal(view.state["norm/mean"], np.zeros(4)), "the view itself stays as it was"


def test_values_sown_by_a_call_do_not_enter_the_state():
    class Sower(nnx.Module):
        def __call__(self, x):
            self.seen = nnx.Intermediate(x)
            return x

    view = View.of(Sower())
    assert view.apply_with_state({}, {}, jnp.ones(2))[1] == {}


def test_a_module_or_variable_used_twice_appears_once():
    model = Attributes(a=linear(), b=linear(1))
    model.c = model.a
    model.b.kernel = model.a.kernel
    view = View.of(model)
    assert list(view.params) == ["a/bias", "a/kernel", "b/bias"]
    again = view.at(jax.tree.map(jnp.zeros_like, view.params)).model()
    assert again.c is again.a and again.b.kernel is again.a.kernel
    assert not again.b.kernel[...].any()


def test_odd_attributes_keep_their_values_and_types():
    class Gain(nnx.Param):
        pass

    class Counter(nnx.Variable):
        pass

    model = Attributes(
        gain=Gain(jnp.ones(2)),
        count=Counter(jnp.zeros(())),
        key=jax.random.key(0),
        none=None,
        many=nnx.List([nnx.Param(jnp.full(1, i)) for i in range(11)]),
        array=jnp.arange(3),
    )
    view = View.of(model)
    assert list(view.params) == ["gain", *(f"many/{i}" for i in range(11))]
    assert list(view.state) == ["array", "count", "key"]
    again = view.model()
    assert isinstance(again.gain, Gain) and isinstance(again.count, Counter) and again.none is None
    assert [int(p[0]) for p in again.many] == list(range(11))
    assert jax.random.key_data(again.key).tolist() == jax.random.key_data(model.key).tolist()


def test_a_key_with_a_slash_is_kept_apart_or_refused():
    view = View.of(Attributes(d=nnx.Dict({"a/b": linear()})))
    assert list(view.params) == ["d/a/b/bias", "d/a/b/kernel"]
    assert list(view.model().d) == ["a/b"]
    both = Attributes(d=nnx.Dict({"a/b": linear(), "a": nnx.Dict({"b": linear()})}))
    with pytest.raises(UsageError, match="two variables have the path 'd/a/b/bias'"):
        View.of(both)


def test_what_cannot_be_viewed_is_refused():
    with pytest.raises(UsageError, match="takes an nnx.Module, got function"):
        View.of(lambda x: x)
    with pytest.raises(UsageError, match="'p' holds a dict"):
        View.of(Attributes(p=nnx.Param({"a": jnp.ones(1)})))


def test_taps_are_the_outputs_by_path_in_natural_order():
    model, x = Chain(nnx.Rngs(0)), jnp.ones((1, 3))
    view = View.of(model)
    taps = view.taps(x)
    assert list(taps) == ["", *(f"blocks/n{i}" for i in range(11))]
    hidden = x
    for i in range(11):
        hidden = model.blocks[f"n{i}"](hidden)
        first = taps[f"blocks/n{i}"][0] if i == 2 else taps[f"blocks/n{i}"]
        np.testing.assert_allclose(first, hidden, rtol=1e-6)
    assert isinstance(taps["blocks/n2"], tuple) and len(taps["blocks/n2"]) == 2
    assert np.array_equal(taps["blocks/n2"][1], taps[""])


def test_taps_choose_by_pattern_under_jit_and_grad():
    view, x = View.of(Chain(nnx.Rngs(0))), jnp.ones((1, 3))

    @jax.jit
    def slopes(params):
        def total(p):
            taps = view.taps((x,), ["blocks/n1*", "blocks/n3"], params=p)
            assert list(taps) == ["blocks/n1", "blocks/n3", "blocks/n10"]
            return taps["blocks/n3"].sum(), taps

        return jax.grad(total, has_aux=True)(params)

    gradients, taps = slopes(jax.tree.map(lambda p: 2 * p, view.params))
    assert gradients["blocks/n3/kernel"].any() and not gradients["blocks/n4/kernel"].any()
    assert not np.allclose(taps["blocks/n1"], view.taps(x)["blocks/n1"])


def test_taps_see_what_apply_computes(strange):
    model, x = strange
    view = View.of(model)
    assert np.array_equal(view.taps(x, "")[""], view(x))


@pytest.mark.parametrize("pattern", ["block/*", "idle"])
def test_a_pattern_that_fits_no_called_module_is_named(pattern):
    with pytest.raises(UsageError, match=f"no called module fits '{pattern.replace('*', '.*')}'"):
        View.of(Chain(nnx.Rngs(0))).taps(jnp.ones((1, 3)), ["blocks/*", pattern])


def test_unknown_and_missing_names_are_told():
    view = View.of(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    with pytest.raises(UsageError, match="no parameter 'scal'; did you mean 'scale'"):
        view.at({**view.params, "scal": jnp.ones(3)})
    with pytest.raises(UsageError, match=r"parameter of the model missing: bias \(1 in all\)"):
        view.apply({"scale": jnp.ones(3)}, jnp.ones((2, 3)))
    with pytest.raises(UsageError, match="no state 'men'; did you mean 'mean'"):
        view.apply_with_state(view.params, {**view.state, "men": 0}, jnp.ones((2, 3)))
    with pytest.raises(UsageError, match="state of the model missing: var"):
        view.apply_with_state(view.params, {"mean": jnp.ones(3)}, jnp.ones((2, 3)))


def test_at_replaces_parameters_in_any_order_and_leaves_the_view():
    view, x = View.of(linear()), jnp.ones((1, 3))
    before = view(x)
    other = View.of(linear(1)).params
    moved = view.at(dict(reversed(other.items())))
    assert list(moved.params) == ["bias", "kernel"]
    assert np.array_equal(moved(x), x @ other["kernel"] + other["bias"][None])
    assert np.array_equal(view(x), before)


def test_changing_the_model_afterwards_does_not_change_the_view():
    model, x = linear(), jnp.ones((1, 3))
    view = View.of(model)
    before = view(x)
    model.kernel[...] = jnp.zeros((3, 3))
    assert np.array_equal(view(x), before) and before.any()


def test_other_methods_can_be_applied():
    view = View.of(nnx.Embed(5, 3, rngs=nnx.Rngs(0)))
    x = jnp.ones((2, 3))
    wanted = x @ view.params["embedding"].T
    np.testing.assert_allclose(view.apply(view.params, x, method="attend"), wanted, rtol=1e-6)


def test_an_abstract_view_holds_shapes_alone_under_the_same_keys():
    shapes = View.abstract(lambda: Strange(nnx.Rngs(0)))
    real = View.of(Strange(nnx.Rngs(0)))
    for part in ("params", "state"):
        abstract, concrete = getattr(shapes, part), getattr(real, part)
        assert list(abstract) == list(concrete)
        for path, shape in abstract.items():
            assert isinstance(shape, jax.ShapeDtypeStruct), path
            assert (shape.shape, shape.dtype) == (concrete[path].shape, concrete[path].dtype)
    assert shapes.axes == real.axes and shapes.num_params == real.num_params
    assert type(shapes.model(real.params, real.state)) is Strange
    x = jax.ShapeDtypeStruct((2, 5, 2), jnp.float32)
    out, _ = jax.eval_shape(shapes.apply_with_state, shapes.params, shapes.state, x)
    assert out.shape == (2, 5, 4)


def test_an_abstract_view_is_in_natural_order_too():
    shapes = View.abstract(lambda: Chain(nnx.Rngs(0)))
    assert list(shapes.params) == list(View.of(Chain(nnx.Rngs(0))).params)
    kernels = [path for path in shapes.params if path.endswith("kernel")]
    assert kernels == [*(f"blocks/n{i}/kernel" for i in range(11)), "idle/kernel"]


def test_an_abstract_view_computes_with_real_parameters():
    real, x = View.of(linear()), jnp.ones((1, 3))
    assert np.array_equal(View.abstract(linear).apply(real.params, x), real(x))


def test_a_model_too_large_for_the_machine_has_an_abstract_view():
    view = View.abstract(lambda: nnx.Linear(2**20, 2**20, rngs=nnx.Rngs(0)))
    assert view.num_params == 2**40 + 2**20


def test_axes_come_from_the_metadata_and_need_no_mesh():
    def build():
        return nnx.Linear(4, 8, kernel_metadata={"axes": ("embed", "mlp")}, rngs=nnx.Rngs(0))

    wanted = {"bias": None, "kernel": ("embed", "mlp")}
    view = View.of(build())
    assert view.axes == wanted == View.abstract(build).axes
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        assert View.abstract(build).axes == wanted


def test_a_view_is_a_static_argument_of_jit():
    traces = []

    def run(view, params, x):
        traces.append(view)
        return view.apply(params, x)

    view, x = View.of(linear()), jnp.ones((1, 3))
    jitted = jax.jit(run, static_argnums=0)
    for _ in range(2):
        np.testing.assert_allclose(jitted(view, view.params, x), view(x), rtol=1e-6)
    assert traces == [view] and view != View.of(linear(1))


def total(view: View, x) -> jax.Array:
    return (view(x) ** 2).sum()


def test_a_view_passes_through_transformations_with_its_paths_in_order():
    view, x = View.of(Chain(nnx.Rngs(0))), jnp.ones((1, 3))
    np.testing.assert_allclose(jax.jit(lambda view, x: view(x))(view, x), view(x), rtol=1e-6)
    slopes = jax.grad(total)(view, x)
    wanted = jax.grad(lambda params: total(view.at(params), x))(view.params)
    assert isinstance(slopes, View) and list(slopes.params) == list(view.params)
    for path, slope in wanted.items():
        np.testing.assert_allclose(slopes.params[path], slope, rtol=1e-5, err_msg=path)
    for moved in (jax.device_put(view, jax.devices()[1]), jax.jit(lambda view: view)(view)):
        assert list(moved.params) == list(view.params)
        assert np.array_equal(moved(x), view(x))
    assert jax.device_put(view, jax.devices()[1]).params["idle/bias"].device == jax.devices()[1]


def test_views_stack_into_an_ensemble(strange):
    x = strange[1]
    views = [View.of(Strange(nnx.Rngs(seed))).evaluating() for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *views)
    out = jax.vmap(lambda view: view(x))(stacked)
    np.testing.assert_allclose(out, [view(x) for view in views], rtol=1e-5, atol=1e-6)
    assert not np.allclose(out[0], out[1])


BUILDS = {
    "language model": lambda rngs: models.TransformerLM(
        models.TransformerLMConfig(
            width=16, depth=2, num_heads=2, window=8, recurrent_layers=(-1,), num_states=4
        ),
        rngs=rngs,
    ),
    "mlp": models.classifier_config("mlp").build,
    "cnn": models.classifier_config("small_cnn").build,
    "strange": Strange,
}


@pytest.mark.parametrize("name", BUILDS)
def test_builds_of_one_config_are_one_structure(name):
    build = BUILDS[name]
    views = [View.of(build(nnx.Rngs(0))), View.of(build(nnx.Rngs(1)))]
    views.append(View.abstract(lambda: build(nnx.Rngs(0))))
    structures = [jax.tree.structure(view) for view in views]
    assert len(set(structures)) == 1 and len(set(map(hash, structures))) == 1
    modes = {jax.tree.structure(view.evaluating()) for view in views}
    modes |= {jax.tree.structure(view.training().evaluating()) for view in views}
    assert len(modes) == 1


def test_views_of_other_models_modes_and_masks_are_other_structures():
    view = View.of(Normalised(nnx.Rngs(0)))
    others = [view, view.evaluating(), View.of(linear())]
    others.append(others[-1].masked({"bias": jnp.ones(3, bool)}))
    others.append(View.of(nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(0))))
    assert len({jax.tree.structure(view) for view in others}) == len(others)


def test_trainings_of_one_config_share_a_program():
    traces = []

    @jax.jit
    def run(view, x):
        traces.append(view)
        return total(view.evaluating(), x)

    x = jnp.ones((2, 3))
    losses = [float(run(View.of(Chain(nnx.Rngs(seed))), x)) for seed in (0, 1)]
    first = View.of(Chain(nnx.Rngs(0)))
    losses.append(float(run(first.at({path: 2 * p for path, p in first.params.items()}), x)))
    assert len(traces) == 1 and len(set(losses)) == 3
    run(first.masked({"idle/bias": jnp.zeros(3, bool)}), x)
    assert len(traces) == 2


class Counting:
    """A static attribute that counts how often it is hashed; two of them are equal."""

    hashed = 0

    def __hash__(self):
        Counting.hashed += 1
        return 7

    def __eq__(self, other):
        return isinstance(other, Counting)


def test_the_structure_of_a_view_is_hashed_once():
    views = [View.of(Attributes(inner=linear(seed), static=Counting())) for seed in (0, 1)]
    before = Counting.hashed
    run = jax.jit(lambda view: view.model().inner(jnp.ones((1, 3))))
    for view in views:
        assert hash(jax.tree.structure(view)) and run(view).any()
    assert before and Counting.hashed == before


def test_a_model_that_cannot_be_hashed_is_a_view_of_its_own():
    class Unhashable:
        __hash__ = None

    one, two = (View.of(Attributes(inner=linear(), static=Unhashable())) for _ in range(2))
    assert jax.tree.structure(one) == jax.tree.structure(one) != jax.tree.structure(two)
    out = jax.jit(lambda view: view.model().inner(jnp.ones((1, 3))))(one)
    np.testing.assert_allclose(out, linear()(jnp.ones((1, 3))), rtol=1e-6)


def test_at_takes_state_too():
    view = View.of(nnx.BatchNorm(3, rngs=nnx.Rngs(0))).evaluating()
    moved = view.at(view.params, {"var": jnp.ones(3), "mean": jnp.full(3, 2.0)})
    np.testing.assert_allclose(moved(jnp.ones((1, 3))), -np.ones((1, 3)), rtol=1e-4)
    assert list(moved.state) == ["mean", "var"]
    with pytest.raises(UsageError, match="state of the model missing: var"):
        view.at(view.params, {"mean": jnp.ones(3)})


def test_a_view_moves_to_the_devices_of_a_mesh():
    def build(seed=0):
        return nnx.Linear(4, 8, kernel_metadata={"axes": ("embed", "mlp")}, rngs=nnx.Rngs(seed))

    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    view = View.of(build()).masked({"kernel": jnp.arange(32).reshape(4, 8) % 3 > 0})
    moved = view.on(mesh)
    for kernel in (moved.params["kernel"], moved.masks["kernel"]):
        assert kernel.sharding.mesh == mesh and kernel.addressable_shards[0].data.shape == (2, 4)
    assert moved.params["bias"].is_fully_replicated
    assert moved.on(mesh, rules=()).params["kernel"] is moved.params["kernel"]
    np.testing.assert_allclose(moved(jnp.ones((1, 4))), view(jnp.ones((1, 4))), rtol=1e-6)


def test_a_model_or_its_view_is_taken_and_nothing_else():
    model = linear()
    view = as_view(model)
    assert as_view(view) is view and view.params["kernel"] is model.kernel.get_value()
    for other, name in ((lambda x: x, "function"), ({}, "dict"), (nnx.Linear, "the class Linear")):
        with pytest.raises(UsageError, match=f"expected an nnx.Module or a View .* got {name}"):
            as_view(other)


def test_parameters_stack_into_an_ensemble():
    view, x = View.of(linear()), jnp.ones((1, 3))
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), view.params, View.of(linear(1)).params)
    out = jax.vmap(view.apply, in_axes=(0, None))(both, x)
    np.testing.assert_allclose(out, [view(x), View.of(linear(1))(x)], rtol=1e-6)


class Normalised(nnx.Module):
    """A net whose output depends on its mode."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(x))


def test_modes_are_those_of_nnx_and_leave_the_view_as_it_was():
    x = jnp.arange(12.0).reshape(4, 3)
    view = View.of(Normalised(nnx.Rngs(0)))
    out, state = view.evaluating().apply_with_state(view.params, view.state, x)
    np.testing.assert_allclose(out, x / np.sqrt(1 + 1e-5), rtol=1e-6)
    assert all(jnp.array_equal(state[path], view.state[path]) for path in view.state)
    out, state = view.evaluating().training().apply_with_state(view.params, view.state, x)
    assert set(np.unique(out == 0)) == {True, False}
    np.testing.assert_allclose(state["norm/mean"], 0.01 * x.mean(axis=0), rtol=1e-5)
    assert jnp.any(view(x) == 0)


def test_an_abstract_view_has_modes_too():
    view = View.abstract(lambda: Normalised(nnx.Rngs(0)))
    real = View.of(Normalised(nnx.Rngs(0)))
    x = jnp.ones((2, 3))
    out, _ = view.evaluating().apply_with_state(real.params, real.state, x)
    np.testing.assert_allclose(out, x / np.sqrt(1 + 1e-5), rtol=1e-6)


class Twice(nnx.Module):
    """A module whose subclass is called by what it inherits."""

    def __init__(self, rngs):
        self.inner = nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x):
        return self.inner(x) * 2


class Inherited(Twice):
    """Defines no call of its own."""


class Pair(nnx.Module):
    """Both, so that what one lends must not be seen twice."""

    def __init__(self, rngs):
        self.first, self.second = Inherited(rngs), Twice(rngs)

    def __call__(self, x):
        return self.second(self.first(x))


def test_taps_see_modules_that_inherit_their_call_and_leave_classes_as_they_were():
    view, x = View.of(Pair(nnx.Rngs(0))), jnp.ones((1, 2))
    taps = view.taps(x)
    assert list(taps) == ["", "first", "first/inner", "second", "second/inner"]
    np.testing.assert_array_equal(taps["first"], taps["first/inner"] * 2)
    np.testing.assert_array_equal(taps["second"], view(x))
    assert "__call__" not in vars(Inherited)


def test_taps_change_no_class_that_another_thread_sees():
    inside, go_on = threading.Event(), threading.Event()

    class Waiting(nnx.Module):
        def __init__(self, waits: bool):
            self.inner, self.waits = linear(), waits

        def __call__(self, x):
            if self.waits:
                inside.set()
                assert go_on.wait(timeout=60)
            return self.inner(x)

    x, taps, calls = jnp.ones((1, 3)), {}, (Waiting.__call__, nnx.Linear.__call__)
    waiting, other = View.of(Waiting(True)), View.of(Waiting(False))
    thread = threading.Thread(target=lambda: taps.update(waiting.taps(x)))
    thread.start()
    try:
        assert inside.wait(timeout=60)
        assert (Waiting.__call__, nnx.Linear.__call__) == calls
        assert type(other.model()) is Waiting and type(other.model().inner) is nnx.Linear
        assert list(other.taps(x)) == ["", "inner"]
    finally:
        go_on.set()
        thread.join()
    assert list(taps) == ["", "inner"]
    np.testing.assert_array_equal(taps["inner"], linear()(x))


def test_taps_make_no_class_that_a_registry_of_subclasses_sees():
    registered = []

    class Registered(nnx.Module):
        def __init_subclass__(cls, *, name, **kwargs):
            registered.append(name)
            super().__init_subclass__(**kwargs)

    class Net(Registered, name="net"):
        def __init__(self):
            self.inner = linear()

        def __call__(self, x):
            assert isinstance(self, Net)
            return self.inner(x)

    assert list(View.of(Net()).taps(jnp.ones((1, 3)))) == ["", "inner"]
    assert registered == ["net"]


class Loops(nnx.Module):
    """A layer in a bare scan, and two in `nnx.remat`, after a method that is traced alone."""

    def __init__(self, rngs):
        self.looped, self.again = nnx.Linear(2, 2, rngs=rngs), nnx.Linear(2, 2, rngs=rngs)
        self.inner = Twice(rngs)

    def start(self):
        return self.inner(jnp.zeros(2))

    def __call__(self, x):
        jax.eval_shape(self.start)
        x, _ = jax.lax.scan(lambda x, _: (self.looped(x), None), x, length=3)
        return nnx.remat(lambda model, x: model.again(x) + model.inner(x))(self, x)


def test_taps_leave_out_what_is_computed_in_a_trace_of_its_own():
    view, x = View.of(Loops(nnx.Rngs(0))), jnp.ones((1, 2))
    taps = jax.jit(lambda x: view.taps(x))(x)
    assert set(taps) == {"", "again", "inner", "inner/inner"}
    np.testing.assert_allclose(taps["again"] + taps["inner"], view(x), rtol=1e-6)
    with pytest.raises(UsageError, match="no called module fits 'looped'"):
        view.taps(x, "looped")
