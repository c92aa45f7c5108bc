"""Models grown so that, sparse, they have as many weights as a smaller dense one."""

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
"""No width or depth is tried beyond this many times the base's."""


@dataclasses.dataclass(frozen=True)
class CapacityMatch(Generic[C]):
    """A model whose kept weights are as many as a dense base has.

    Attributes:
      config: of the grown model.
      counts: `{path: number of weights kept}`, with the sum `target`.
      target: weights in the prunable kernels of the base.
      size: weights in those of the grown model.
      realised_density: `target / size`.
      error: `|realised_density - density|`, which whole widths and depths leave.
      outside: parameters of the grown model that are not counted: biases, norms, embeddings.
      base_outside: the same of the base.
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

    With K(w) the number of weights in prunable kernels, counted on an abstract model, and T that
    of the base, it is the w whose K(w) is nearest to T / density; then T weights are kept, counted
    exactly. For an MLP `K = d_in w + (depth - 1) w^2 + c w`, for example.

    Args:
      config: a frozen dataclass; of the dense model, unless there is a base.
      density: share of the grown model's weights that is kept, in (0, 1].
      grow: the integer field that grows, such as `width` or `depth`, or a tuple of integers, such
        as `widths`: then the first grows, and the others in proportion. Of several fields, as
        `("width", "depth")`, the first grows, and the others by the same factor, rounded.
      build: `build(config, rngs)` makes the model; by default `config.build(rngs)`.
      rule: how the kept weights are shared out; see `densities`.
      base: the config of the dense model, where it is not that which grows: with a deeper `config`
        than the base, the width is found for that depth.
      step: what the field grows by, where not all numbers make a model (heads, stages).
      patterns: which parameters are pruned; see `prunable`.
      allow_empty_units: as for `densities`.

    Raises:
      UsageError: a density out of (0, 1]; no such field, or one that is no whole number; a number
        of weights that does not grow with it; a model that cannot be built on the way.
    """
    if not 0 < density <= 1:
        raise UsageError(
            f"density={density}; it takes a share of the weights above 0, up to 1 (dense)"
        )
    fields = [_field(config, name) for name in ([grow] if isinstance(grow, str) else grow)]
    if not fields or len({*fields}) < len(fields):
        raise UsageError(f"grow={grow!r}; it takes one field, or several that differ")
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
                f"no model of {sizes_of(grown)} on the way to density {density}: {error}; grow by "
                "whole steps that fit, with step="
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
    """The numbers, by steps from the start, between whose sizes lies what is wanted."""
    if step < 1:
        raise UsageError(f"step={step}; {field} grows by 1 or more")

    def grows(less: int, more: int) -> None:
        if size(less) >= size(more):
            raise UsageError(
                f"the number of weights does not grow with {field}: {size(less):,} at {less}, "
                f"{size(more):,} at {more}"
            )

    low, high = 0, 0  # in steps from the start, on both sides of what is wanted
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
        raise UsageError(f"a config is a dataclass, got {type(config).__name__}")
    whole = [
        field.name for field in dataclasses.fields(config) if _is_whole(getattr(config, field.name))
    ]
    # A tuple of widths is the width of a model as well.
    for name in (grow, f"{grow}s"):
        if name in whole:
            return name
    raise UsageError(
        f"grow={grow!r}; {type(config).__name__} has the whole numbers {', '.join(whole) or 'none'}"
        f"{nearest(grow, whole)}"
    )


def _is_whole(value: Any) -> bool:
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
            f"{type(config).__name__} has no build(rngs); pass build=, which makes the model of a "
            "config and rngs"
        )
    return lambda config, rngs: config.build(rngs)
