"""Larger sparse models with as many weights as a smaller dense one."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from flax import nnx

from jaxlab.core import UsageError, View, nearest
from jaxlab.sparsity.densities import Rule, densities
from jaxlab.sparsity.kernels import prunable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")

MOST = 2**20
"""The largest factor by which a width or depth may grow."""


@dataclasses.dataclass(frozen=True)
class CapacityMatch(Generic[C]):
    """A model that keeps as many weights as a dense base model has.

    Attributes:
      config: the config of the grown model.
      counts: `{path: number of weights kept}`, which sum to `target`.
      target: number of weights in the prunable kernels of the base.
      size: number of weights in the prunable kernels of the grown model.
      realised_density: `target / size`.
      error: `|realised_density - density|`, because widths and depths are integers.
      outside: parameters of the grown model that are not counted: biases, norms, embeddings.
      base_outside: the same for the base.
    """

    config: C
    counts: dict[str, int]
    target: int
    size: int
    realised_density: float
    error: float
    outside: int
    base_outside: int


def capacity_matched(
    config: C,
    density: float,
    grow: str | Sequence[str] = "width",
    build: Callable[[C, nnx.Rngs], nnx.Module] | None = None,
    *,
    rule: Rule = "erk",
    base: C | None = None,
    step: int = 1,
    patterns: Sequence[str] | None = None,
    allow_empty_units: bool = False,
) -> CapacityMatch[C]:
    """Finds the width, depth or both at which a sparse model has the capacity of a dense one.

    Let K(w) be the number of weights in prunable kernels, counted on an abstract model, and T that
    of the base. The result is the w whose K(w) is nearest to T / density, of which exactly T
    weights are kept. For an MLP, for example, `K = d_in w + (depth - 1) w^2 + c w`.

    Args:
      config: a frozen dataclass, the config of the dense model unless `base` is given.
      density: fraction of the grown model's weights to keep, in (0, 1].
      grow: the integer field to grow, such as `width` or `depth`, or a tuple of integers such as
        `widths`, which grow in proportion to the first. With several fields, such as
        `("width", "depth")`, all grow by the same factor, rounded, which the first determines.
      build: `build(config, rngs)` makes the model; by default `config.build(rngs)`.
      rule: how the kept weights are distributed; see `densities`.
      base: the config of the dense model, if it is not `config`: for a deeper `config` than the
        base, this finds the width at that depth.
      step: the increment of the field, if not every number makes a model (heads, stages).
      patterns: patterns of the parameters to prune; see `prunable`.
      allow_empty_units: as for `densities`.

    Raises:
      UsageError: a density out of (0, 1]; an unknown field, or one that is not a positive integer;
        a number of weights that does not grow with it; a size tried cannot be built.
    """
    if not 0 < density <= 1:
        raise UsageError(
            f"density={density}; it takes a fraction of the weights above 0, up to 1 (dense)"
        )
    fields = [_field(config, name) for name in ([grow] if isinstance(grow, str) else grow)]
    if not fields or len({*fields}) < len(fields):
        raise UsageError(f"grow={grow!r}; it takes one field, or several different ones")
    field, *others = fields
    make = build or _own_build(config)

    start = _first(getattr(config, field))

    def sizes_of(grown: C) -> str:
        return ", ".join(f"{name}={getattr(grown, name)}" for name in fields)

    @functools.cache
    def sized(number: int) -> tuple[int, C, View]:
        grown = _with(config, field, number)
        for other in others:
            first = _first(getattr(config, other))
            grown = _with(grown, other, max(1, round(first * number / start)))
        try:
            view = View.abstract(lambda: make(grown, nnx.Rngs(0)))
        except UsageError as error:
            raise UsageError(
                f"no model with {sizes_of(grown)}, tried for density {density}: {error}; choose "
                "increments that fit with step="
            ) from None
        return _size(view, patterns), grown, view

    view = sized(start)[2]
    if base is not None:
        view = View.abstract(lambda: make(base, nnx.Rngs(0)))
    target = _size(view, patterns)
    ends = _around(lambda n: sized(n)[0], start, step, target / density, field)
    # A model with fewer weights than the base cannot keep as many.
    large_enough = [number for number in ends if sized(number)[0] >= target]
    if not large_enough:
        raise UsageError(f"no {field} up to {MOST:,} times {start} gives {target:,} weights")
    number = min(large_enough, key=lambda number: abs(sized(number)[0] - target / density))
    size, grown, grown_view = sized(number)
    counts = densities(
        grown_view.params,
        rule=rule,
        total=target,
        patterns=patterns,
        allow_empty_units=allow_empty_units,
    )
    return CapacityMatch(
        config=grown,
        counts=counts,
        target=target,
        size=size,
        realised_density=target / size,
        error=abs(target / size - density),
        outside=grown_view.num_params - size,
        base_outside=view.num_params - target,
    )


def _around(
    size: Callable[[int], int], start: int, step: int, wanted: float, field: str
) -> tuple[int, int]:
    """Returns the numbers, at multiples of `step` from the start, whose sizes enclose `wanted`."""
    if step < 1:
        raise UsageError(f"step={step}; {field} grows by at least 1")

    def grows(less: int, more: int) -> None:
        if size(less) >= size(more):
            raise UsageError(
                f"the number of weights does not grow with {field}: {size(less):,} at {less}, "
                f"{size(more):,} at {more}"
            )

    low, high = 0, 0  # in steps from the start; their sizes will enclose what is wanted
    least, most = -((start - 1) // step), start * MOST // step
    while size(start + high * step) < wanted and high < most:
        low, high = high, min(max(1, 2 * high), most)
        grows(start + low * step, start + high * step)
    while size(start + low * step) > wanted and low > least:
        low, high = max(min(-1, 2 * low), least), low
        grows(start + low * step, start + high * step)
    while high - low > 1:
        middle = (low + high) // 2
        grows(start + low * step, start + middle * step)
        grows(start + middle * step, start + high * step)
        low, high = (low, middle) if size(start + middle * step) >= wanted else (middle, high)
    return start + low * step, start + high * step


def _size(view: View, patterns: Sequence[str] | None) -> int:
    return sum(math.prod(view.params[path].shape) for path in prunable(view.params, patterns))


def _field(config: Any, grow: str) -> str:
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise UsageError(f"config is a {type(config).__name__}; expected a dataclass")
    integers = [
        field.name for field in dataclasses.fields(config) if _is_size(getattr(config, field.name))
    ]
    # `width` also means a tuple called `widths`.
    for name in (grow, f"{grow}s"):
        if name in integers:
            return name
    raise UsageError(
        f"grow={grow!r}; {type(config).__name__} has the integers {', '.join(integers) or 'none'}"
        f"{nearest(grow, integers)}"
    )


def _is_size(value: Any) -> bool:
    values = value if isinstance(value, tuple) and value else (value,)
    return all(type(each) is int and each > 0 for each in values)


def _first(value: int | tuple[int, ...]) -> int:
    return value[0] if isinstance(value, tuple) else value


def _with(config: C, field: str, number: int) -> C:
    value = getattr(config, field)
    if isinstance(value, tuple):
        value = (number, *(max(1, round(number * each / value[0])) for each in value[1:]))
    else:
        value = number
    return dataclasses.replace(config, **{field: value})


def _own_build(config: Any) -> Callable[[Any, nnx.Rngs], nnx.Module]:
    if not callable(getattr(config, "build", None)):
        raise UsageError(
            f"{type(config).__name__} has no build(rngs); pass build=, a function that makes the "
            "model from a config and rngs"
        )
    return lambda config, rngs: config.build(rngs)
