"""Matrix products and ReLU as compiled code for CPUs, called through `jax.ffi`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.nn.bilinear import on_one_cpu_device
from jaxlab.nn.cpu.compiled import TARGETS, require_compiled
from jaxlab.nn.products import matmul, matmul_primitive, product_shape, require_inner


def compiled_matmul(
    x: jax.Array, y: jax.Array, *, transpose_x: bool = False, transpose_y: bool = False
) -> jax.Array:
    """`products.matmul` by the C++ of `compiled_products.cc`.

    Under `jax.vmap`, and in a program of many devices, which the compiler partitions, it is
    `dot_general`.

    Raises:
      TypeError: inner sizes that differ.
      UsageError: where compiled code cannot run, see `compiled`.
    """
    require_inner(x, y, transpose_x=transpose_x, transpose_y=transpose_y)
    for factor in (x, y):
        require_compiled(factor.dtype)
    compute = _matmul if on_one_cpu_device() else matmul
    return compute(x, y, transpose_x=transpose_x, transpose_y=transpose_y)


@jax.custom_jvp
def compiled_relu(x: jax.Array) -> jax.Array:
    """`max(x, 0)` of float32 numbers; its derivative, 0 at 0, keeps the result, not the input.

    XLA does not look into compiled code, so it cannot decide to keep the input as well.
    """
    result = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.ffi.ffi_call(TARGETS["rectify"], result, vmap_method="broadcast_all")(x)


compiled_relu.defjvps(lambda tangent, result, _: jnp.where(result > 0, tangent, 0))


def _product(x: jax.Array, y: jax.Array, *, transpose_x: bool, transpose_y: bool) -> jax.Array:
    shape = product_shape(x, y, transpose_x=transpose_x, transpose_y=transpose_y)
    call = jax.ffi.ffi_call(TARGETS["matrix_product"], jax.ShapeDtypeStruct(shape, jnp.float32))
    flops = np.int64(2 * x.size * shape[1])
    return call(x, y, transpose_x=transpose_x, transpose_y=transpose_y, flops=flops)


_matmul = matmul_primitive("compiled_matmul", _product, lambda: compiled_matmul)
