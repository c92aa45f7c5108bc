from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlab import nn
from jaxlab.core import MeshConfig, UsageError, View, make_mesh, param_shardings, use_mesh


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def plain(x, kernel, stride=1, padding="SAME"):
    stride = (stride, stride) if isinstance(stride, int) else stride
    padding = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    return lax.conv_general_dilated(
        x, kernel, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def assert_close(got, want, tolerance=1e-5):
    """Equal up to `tolerance` of the largest value."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


# images, kernel, stride, padding: each form in which values or derivatives are computed
CASES = {
    "twelve channels": ((3, 6, 8, 12), (3, 3, 12, 9), 1, "SAME"),
    "many channels": ((2, 5, 7, 18), (3, 3, 18, 20), 1, 1),
    "few channels in strips": ((3, 5, 8, 3), (3, 3, 3, 6), 1, "SAME"),
    "wide kernel in strips": ((2, 9, 8, 1), (7, 5, 1, 3), 1, "SAME"),
    "even kernel": ((2, 6, 5, 10), (2, 2, 10, 3), 1, "SAME"),
    "not padded": ((2, 6, 7, 6), (3, 2, 6, 5), 1, "VALID"),
    "padded unevenly": ((2, 5, 6, 12), (3, 3, 12, 4), 1, ((2, 0), (1, 2))),
    "stride 2": ((2, 8, 8, 5), (3, 3, 5, 4), 2, 1),
    "stride 2, rows that are not seen": ((2, 7, 8, 5), (3, 3, 5, 4), 2, "VALID"),
    "stride of each axis": ((2, 7, 6, 5), (3, 4, 5, 2), (2, 3), "SAME"),
    "first of an ImageNet network": ((1, 12, 12, 3), (7, 7, 3, 4), 2, 3),
    "pointwise": ((2, 4, 5, 6), (1, 1, 6, 7), 1, 0),
    "pointwise, stride 2": ((2, 5, 6, 3), (1, 1, 3, 4), 2, 0),
    "patches": ((2, 8, 12, 3), (4, 4, 3, 5), 4, "VALID"),
    "patches that leave a rest": ((2, 9, 10, 3), (4, 4, 3, 5), 4, "VALID"),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_derivatives_of_both_modes_equal_those_of_lax(case):
    x_shape, k_shape, stride, padding = CASES[case]
    x, k = numbers(*x_shape), numbers(*k_shape, seed=1) / np.sqrt(np.prod(k_shape[:3]))
    steps = numbers(*x_shape, seed=2), numbers(*k_shape, seed=3) / np.sqrt(np.prod(k_shape[:3]))

    def all_of(conv):
        f = lambda x, k: jnp.sin(conv(x, k)).sum()  # noqa: E731
        gradient = jax.grad(f, argnums=(0, 1))
        # The derivative of the gradient, forward over reverse, is the product with the Hessian.
        return jax.jit(
            lambda: (conv(x, k), jax.jvp(conv, (x, k), steps), jax.jvp(gradient, (x, k), steps))
        )()

    got = all_of(lambda x, k: nn.conv(x, k, stride=stride, padding=padding))
    assert_close(got, all_of(lambda x, k: plain(x, k, stride, padding)))


def test_values_equal_sums_written_out():
    x, k = numbers(2, 5, 6, 2), numbers(3, 2, 2, 3, seed=1)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 0), (2, 1), (0, 0)))
    want = np.zeros((2, 2, 8, 3))
    for p in range(2):
        for q in range(8):
            seen = padded[:, 2 * p : 2 * p + 3, q : q + 2]
            want[:, p, q] = np.einsum("brci,rcio->bo", seen, np.asarray(k, np.float64))
    assert_close(nn.conv(x, k, stride=(2, 1), padding=((1, 0), (2, 1))), want)


def test_the_gradient_is_right_where_padding_is_wider_than_the_kernel():
    # XLA's own reads beyond its memory there on CPU.
    x, k = numbers(1, 4, 5, 2), numbers(2, 2, 2, 3, seed=1)
    y, transpose = jax.vjp(lambda x: nn.conv(x, k, padding=((2, 0), (1, 3))), x)
    ct = numbers(*y.shape, seed=2)
    want = np.zeros((1, 6, 9, 2))
    for r in range(2):
        for c in range(2):
            want[:, r : r + 5, c : c + 8] += np.asarray(ct) @ np.asarray(k[r, c]).T
    assert_close(transpose(ct)[0], want[:, 2:6, 1:6])


def test_gradients_of_chunks_of_images_and_their_rest_add_up():
    # By all three ways, four images at once fit: two such products, and one of the rest.
    for x_shape, k_shape, stride in (
        ((9, 8, 16, 20), (3, 3, 20, 18), 1),
        ((9, 16, 16, 4), (3, 3, 4, 18), 1),
        ((9, 16, 16, 20), (3, 3, 20, 3), 2),
    ):
        x, k = numbers(*x_shape), numbers(*k_shape, seed=1)
        y, ours = jax.vjp(lambda k: nn.conv(x, k, stride=stride), k)  # noqa: B023
        _, theirs = jax.vjp(lambda k: plain(x, k, stride), k)  # noqa: B023
        ct = numbers(*y.shape, seed=2)
        assert " while(" in jax.jit(ours).lower(ct).compile().as_text()
        assert_close(jax.jit(ours)(ct), theirs(ct))


def loss(conv, x, kernels):
    for n, k in enumerate(kernels):
        x = jnp.tanh(conv(x, k, 1 + n % 2))
    return x.mean(axis=(1, 2))


def ours(x, k, stride=1, padding="SAME"):
    return nn.conv(x, k, stride=stride, padding=padding)


@pytest.fixture(scope="module")
def network():
    kernels = [numbers(3, 3, 3, 10, seed=1) / 5, numbers(3, 3, 10, 4, seed=2) / 9]
    return numbers(4, 6, 8, 3), kernels


def test_gauss_newton_products_equal_those_of_lax(network):
    x, kernels = network
    step = [numbers(*k.shape, seed=5) for k in kernels]

    def product(conv):
        # J^T J v, by linearising and transposing the linear map.
        _, forward = jax.linearize(lambda k: loss(conv, x, k), kernels)
        (back,) = jax.linear_transpose(forward, kernels)(forward(step))
        return back

    assert_close(jax.jit(lambda: product(ours))(), product(plain))


def test_reverse_over_reverse_equals_forward_over_reverse(network):
    x, kernels = network
    step = [numbers(*k.shape, seed=5) for k in kernels]
    gradient = jax.grad(lambda k: jnp.square(loss(ours, x, k)).sum())
    dot = lambda a, b: sum(jnp.vdot(*pair) for pair in zip(a, b, strict=True))  # noqa: E731
    twice = jax.jit(jax.grad(lambda k: dot(gradient(k), step)))(kernels)
    assert_close(twice, jax.jit(lambda: jax.jvp(gradient, (kernels,), (step,))[1])())


@pytest.mark.parametrize("axes", [(1, None), (None, 2), (0, 0)])
@pytest.mark.parametrize("stride", [1, 2])
def test_batches_of_images_and_of_kernels_equal_loops(axes, stride):
    x, k = numbers(2, 4, 6, 5), numbers(3, 3, 5, 4, seed=1)
    batches = [
        z if axis is None else jnp.stack([z, 2 * z, -z], axis)
        for z, axis in zip((x, k), axes, strict=True)
    ]
    gradient = jax.value_and_grad(lambda x, k: jnp.sin(ours(x, k, stride)).sum(), argnums=(0, 1))
    got = jax.jit(jax.vmap(gradient, in_axes=axes))(*batches)
    of = lambda n: (  # noqa: E731
        z if a is None else jnp.take(z, n, a) for z, a in zip(batches, axes, strict=True)
    )
    single = [gradient(*of(n)) for n in range(3)]
    assert_close(got, jax.tree.map(lambda *rows: jnp.stack(rows), *single))


def test_gradients_of_each_image_sum_up_to_that_of_all(network):
    x, kernels = network
    each = jax.jit(jax.vmap(jax.grad(lambda k, x: loss(ours, x[None], k).sum()), (None, 0)))
    whole = jax.grad(lambda k: loss(plain, x, k).sum())(kernels)
    assert_close(jax.tree.map(lambda g: g.sum(0), each(kernels, x)), whole)


def test_remat_inside_scan_equals_the_unrolled_layers():
    x, kernels = numbers(2, 4, 6, 10), numbers(3, 3, 3, 10, 10, seed=1) / 9

    def scanned(kernels):
        body = jax.checkpoint(lambda x, k: (jnp.tanh(ours(x, k)), None))
        return jnp.square(lax.scan(body, x, kernels)[0]).sum()

    def unrolled(kernels):
        y = x
        for k in kernels:
            y = jnp.tanh(plain(y, k))
        return jnp.square(y).sum()

    assert_close(jax.jit(jax.grad(scanned))(kernels), jax.grad(unrolled)(kernels))


def test_gradients_inside_fori_loop_are_steps_of_ascent(network):
    x, kernels = network
    gradient = lambda conv: jax.grad(lambda x: loss(conv, x, kernels).sum())  # noqa: E731
    step = lambda conv: lambda _, x: x + 0.1 * gradient(conv)(x)  # noqa: E731
    want = x
    for _ in range(3):
        want = step(plain)(0, want)
    assert_close(jax.jit(lambda x: lax.fori_loop(0, 3, step(ours), x))(x), want)


def convolutions(f, *args):
    """The convolutions of a compiled function, each as its window and its order of axes."""
    text = jax.jit(f).lower(*args).compile().as_text()
    return re.findall(r" convolution\(.*?window=\{(.*?)\}.*?dim_labels=(\S+?)[,\s]", text)


def test_no_slow_form_is_left_in_the_gradient_inside_scan(network):
    x, kernels = network

    def gradients(conv):
        def body(total, x):
            g = jax.grad(lambda x, k: loss(conv, x, k).sum(), argnums=(0, 1))(x, kernels)
            return jax.tree.map(jnp.add, total, g), None

        return lambda xs: lax.scan(body, (jnp.zeros_like(x), kernels), xs)[0]

    def is_slow(form):
        # Images become channels in it, or the kernel is turned where it stands.
        window, order = form
        return order != "b01f_01io->b01f" or "rhs_reversal" in window

    xs = jnp.stack([x, x])
    assert any(map(is_slow, convolutions(gradients(plain), xs)))
    fast = convolutions(gradients(ours), xs)
    assert fast and not any(map(is_slow, fast))


def test_devices_of_a_mesh_give_what_one_gives(network):
    x, kernels = network
    x = jnp.concatenate([x, -x])
    gradient = jax.value_and_grad(lambda x, k: jnp.square(loss(ours, x, k)).sum(), argnums=(0, 1))
    want = gradient(x, kernels)
    mesh = make_mesh(MeshConfig(data=-1))
    with use_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, P("data")))
        got = jax.jit(gradient)(placed, kernels)
        assert "conv_general_dilated" in str(jax.make_jaxpr(gradient)(x, kernels))
    assert got[1][0].sharding.spec[0] == "data"
    assert_close(got, want)


@pytest.mark.parametrize("check", [True, False])
def test_each_device_of_a_shard_map_computes_as_one_device(network, check):
    x, kernels = network
    mesh = make_mesh(MeshConfig(data=-1), devices=jax.devices()[:2])

    def part(x, kernels):
        g = jax.grad(lambda k: loss(ours, x, k).sum())(kernels)
        # With the check, what is replicated is summed over devices by its transpose already.
        return g if check else jax.lax.psum(g, "data")

    with use_mesh(mesh):
        mapped = jax.shard_map(
            part, in_specs=(P("data"), P()), out_specs=P(), axis_names={"data"}, check_vma=check
        )
        assert "conv_general_dilated" not in str(jax.make_jaxpr(mapped)(x, kernels))
        got = jax.jit(mapped)(x, kernels)
    assert_close(got, jax.grad(lambda k: loss(plain, x, k).sum())(kernels))


def test_half_precision_and_groups_are_the_plain_convolution():
    x, k = numbers(2, 4, 4, 6), numbers(3, 3, 3, 4, seed=1)
    want = jnp.concatenate([plain(x[..., :3], k[..., :2]), plain(x[..., 3:], k[..., 2:])], axis=-1)
    assert_close(nn.conv(x, k, groups=2), want)
    half = nn.conv(x.astype(jnp.bfloat16), numbers(3, 3, 6, 4).astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    assert_close(half.astype(jnp.float32), plain(x, numbers(3, 3, 6, 4)), 0.02)


@pytest.mark.parametrize(
    ("shapes", "how", "message"),
    [
        (((4, 4, 3), (3, 3, 3, 2)), {}, r"\(4, 4, 3\).* expected images \[b, h, w, i\]"),
        (((1, 4, 4, 3), (3, 3, 2, 2)), {}, r"3 channels.*expected a kernel \[h, w, 3 / groups"),
        (((1, 4, 4, 4), (3, 3, 2, 3)), {"groups": 2}, "groups=2 do not fit"),
        (((1, 4, 4, 3), (3, 3, 3, 2)), {"stride": 0}, "stride=0; expected 1 or more"),
        (((1, 4, 4, 3), (3, 3, 3, 2)), {"padding": "FULL"}, "padding='FULL'; expected 'SAME'"),
        (((1, 4, 4, 3), (3, 3, 3, 2)), {"padding": -1}, "padding=-1; expected 'SAME'"),
        (((1, 4, 4, 3), (5, 5, 3, 2)), {"padding": "VALID"}, r"kernel of \(5, 5\) .* no output"),
    ],
)
def test_what_does_not_fit_is_named(shapes, how, message):
    x, k = shapes
    with pytest.raises(UsageError, match=message):
        nn.conv(numbers(*x), numbers(*k), **how)


def test_a_layer_starts_with_the_variance_of_he_and_a_bias_of_zero():
    layer = nn.Conv(64, 128, 3, use_bias=True, rngs=nnx.Rngs(0))
    kernel = np.asarray(layer.kernel[...])
    assert kernel.shape == (3, 3, 64, 128)
    np.testing.assert_allclose(kernel.var(), 2 / (9 * 64), rtol=0.02)
    assert not np.asarray(layer.bias[...]).any()


def test_a_layer_is_the_convolution_plus_bias_in_its_dtype():
    ones = jax.nn.initializers.ones
    layer = nn.Conv(
        2,
        4,
        (1, 3),
        stride=(1, 2),
        padding=0,
        groups=2,
        use_bias=True,
        kernel_init=ones,
        dtype=jnp.bfloat16,
        rngs=nnx.Rngs(0),
    )
    layer.bias[...] = jnp.arange(4.0)
    y = layer(jnp.ones((1, 2, 5, 2)))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        y.astype(jnp.float32), np.broadcast_to(3 + np.arange(4.0), (1, 2, 2, 4))
    )


def test_a_layer_names_its_axes_for_the_mesh():
    view = View.of(nn.Conv(8, 4, use_bias=True, rngs=nnx.Rngs(0)))
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    shardings, notes = param_shardings(view.params, view.axes, mesh)
    assert shardings["kernel"].spec == P(None, None, "fsdp", "tensor")
    assert shardings["bias"].spec == P("tensor")
    assert notes == []


def test_groups_that_do_not_divide_are_named():
    with pytest.raises(UsageError, match="groups=3 does not divide in_dim=6 and out_dim=4"):
        nn.Conv(6, 4, groups=3, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("window", "stride"), [(2, None), ((2, 3), None), (3, 2), (2, 3), ((4, 6), None)]
)
def test_max_pool_takes_the_largest_of_each_window_and_its_derivative_goes_there(window, stride):
    x = numbers(2, 4, 6, 3)
    (h, w), (s, t) = (n if isinstance(n, tuple) else (n, n) for n in (window, stride or window))
    rows, columns = (4 - h) // s + 1, (6 - w) // t + 1
    weights = numbers(2, rows, columns, 3, seed=1)
    want, gradient = np.zeros(weights.shape), np.zeros(x.shape)
    for b, p, q, c in np.ndindex(*weights.shape):
        seen = np.asarray(x[b, s * p : s * p + h, t * q : t * q + w, c])
        r, d = np.unravel_index(seen.argmax(), seen.shape)
        want[b, p, q, c] = seen.max()
        gradient[b, s * p + r, t * q + d, c] += weights[b, p, q, c]
    pool = lambda x: nn.max_pool(x, window, stride)  # noqa: E731
    y, transpose = jax.vjp(pool, x)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_allclose(transpose(weights)[0], gradient, rtol=1e-6)


def test_of_values_that_are_largest_together_the_first_has_the_derivative_in_both_modes():
    x = jnp.asarray([[1.0, 1.0, 5.0, 2.0], [0.0, 1.0, 2.0, 2.0]])[None, :, :, None]
    pool = lambda x: nn.max_pool(x, 2).ravel()  # noqa: E731
    y, transpose = jax.vjp(pool, x)
    np.testing.assert_array_equal(
        transpose(jnp.asarray([1.0, 2.0]))[0][0, :, :, 0], [[1, 0, 2, 0], [0, 0, 0, 0]]
    )
    step = jnp.asarray([[1.0, 2.0, 4.0, 7.0], [9.0, 3.0, 7.0, 7.0]])[None, :, :, None]
    np.testing.assert_array_equal(jax.jvp(pool, (x,), (step,))[1], [1.0, 4.0])


def test_the_derivative_of_a_pooled_affine_map_survives_any_way_to_compile_it(optimised):
    x, a, b, weights = numbers(4, 4, 4, 3), numbers(3), numbers(3, seed=1), numbers(4, 2, 2, 3)
    found = jax.jit(jax.grad(lambda x: (nn.max_pool(x * a + b, 2) * weights).sum()))
    # Unfused, XLA computes the map once for the largest and once more for the derivative.
    for options in ({"xla_backend_optimization_level": 0}, optimised):
        gradient = found.lower(x).compile(compiler_options=options)(x)
        total = (gradient / a).sum(axis=(0, 1, 2))
        np.testing.assert_allclose(total, weights.sum(axis=(0, 1, 2)), rtol=1e-4)
        assert np.count_nonzero(gradient) == weights.size


def test_nan_is_the_largest_and_padding_never_is():
    x = jnp.asarray([[jnp.nan, 1.0, -5.0, -2.0], [0.0, 1.0, -3.0, -4.0]])[None, :, :, None]
    np.testing.assert_array_equal(nn.max_pool(x, 2)[0, 0, :, 0], [np.nan, -2.0])
    padded = nn.max_pool(x[:, :, 2:], 3, 2, padding=1)
    np.testing.assert_array_equal(padded.ravel(), [-2.0])
    with pytest.raises(UsageError, match="padding=2; expected 0 to 1"):
        nn.max_pool(x, 2, padding=2)


def test_a_window_larger_than_the_image_is_named():
    with pytest.raises(UsageError, match=r"window of \(5, 5\) on images of \(4, 6\)"):
        nn.max_pool(numbers(1, 4, 6, 1), 5)
