"""Bilinear primitives: products with computations and derivatives of their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
from jax.interpreters import ad, batching, mlir

from jaxlab.core import platform


def bilinear(
    name: str,
    compute: Callable[..., jax.Array],
    *,
    shape: Callable[..., tuple[int, ...]],
    by_first: Callable[..., jax.Array],
    by_second: Callable[..., jax.Array],
    batched: Callable[..., tuple[jax.Array, int]],
) -> Callable[..., jax.Array]:
    """Makes a product of two arrays, linear in each, as a primitive of JAX.

    Both modes of differentiation then follow from its two transposes, to any order if these are
    bilinear primitives too. (With a `custom_vjp` there would be no forward mode, and so no Hessian
    or Gauss-Newton products.)

    Args:
      name: shown in jaxprs.
      compute: `(x, y, **how) -> product`, from JAX operations; `how` are its keyword-only
        arguments, hashable.
      shape: `(x, y, **how) -> shape` of the product. Factors and product are of one dtype, and of
        one rank.
      by_first: `(ct, x, y, **how)`, the transpose by x; only the shape of x is known.
      by_second: `(ct, x, y, **how)`, the transpose by y.
      batched: `(factors, axes, **how) -> (product, axis)`, the rule of `jax.vmap`; the axis of a
        factor without a batch is None.

    Returns:
      `product(x, y, **how)`.
    """
    primitive = jax.extend.core.Primitive(name)
    parameters = inspect.signature(compute).parameters.values()
    how = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    primitive.def_impl(jax.jit(compute, static_argnames=how))
    primitive.def_abstract_eval(
        lambda x, y, **how: x.update(shape=shape(x, y, **how), weak_type=False)
    )
    ad.defbilinear(primitive, by_first, by_second)
    mlir.register_lowering(primitive, mlir.lower_fun(compute, multiple_results=False))
    batching.primitive_batchers[primitive] = batched

    def product(x: jax.Array, y: jax.Array, **how: Any) -> jax.Array:
        return primitive.bind(*_varying_alike(x, y), **how)

    return product


def on_one_cpu_device() -> bool:
    """Whether what is being traced will run on CPU as a program of one device.

    It will without a mesh, on a mesh of one device, and inside a `jax.shard_map` over all mesh axes
    that have more than one device: there the compiler has nothing left to partition.
    """
    mesh = jax.sharding.get_abstract_mesh()
    automatic = (n for axis, n in mesh.shape.items() if axis not in mesh.manual_axes)
    return platform() == "cpu" and all(n == 1 for n in automatic)


def _varying_alike(x: Any, y: Any) -> tuple[jax.Array, jax.Array]:
    """The factors, made to vary over all manual mesh axes that either varies over."""
    over = [jax.typeof(factor).manual_axis_type.varying for factor in (x, y)]
    missing = [tuple((over[0] | over[1]) - mine) for mine in over]
    return tuple(
        jax.lax.pcast(factor, axes, to="varying") if axes else factor
        for factor, axes in zip((x, y), missing, strict=True)
    )
