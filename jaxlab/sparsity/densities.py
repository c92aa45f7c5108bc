"""The number of weights that each kernel keeps, by rules that distribute a total exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from jaxlab.core import UsageError, matches, nearest
from jaxlab.sparsity.kernels import kernel_shape, prunable

Rule = Literal["erk", "er", "uniform", "level"]
"""How a total is distributed over the kernels; see `densities`."""


def densities(
    params: Mapping[str, Any],
    density: float | None = None,
    rule: Rule | Mapping[str, float] = "erk",
    *,
    total: int | None = None,
    own: Mapping[str, float] | None = None,
    patterns: Sequence[str] | None = None,
    allow_empty_units: bool = False,
) -> dict[str, int]:
    """Returns how many weights each kernel keeps; the counts sum to the total exactly.

    With N_l weights in kernel l, of which a fraction d_l is kept, the total is
    `T = sum_l (N_l - floor((1 - density) N_l))`, or is given. The rules:

    * `uniform`: every d_l is the same.
    * `er` (arXiv 1707.04780): d_l is proportional to `(fan_in + fan_out) / (fan_in fan_out)`.
    * `erk` (arXiv 1911.11134): d_l is proportional to the sum of the kernel's axes over their
      product, a convolution's window included. With `er` and `erk`, kernels that would have to
      keep more weights than they have stay dense, and the others share the rest.
    * `level` (arXiv 2010.14495): no kernel keeps more than c weights, for the largest c that fits;
      the remainder goes to the largest kernel.

    Counts are rounded by largest remainders; every kernel keeps at least one weight.

    Args:
      params: `{path: array or shape}`; for the meaning of axes see `kernel_shape`.
      density: fraction of the weights to keep, in (0, 1]; 1 is dense.
      rule: one of the above, or `{pattern: density}`, which means `uniform` with that as `own`.
      total: T, instead of a density.
      own: `{pattern: density}` for kernels with their own density, by the first pattern that
        matches; without a `total` they do not count in T.
      patterns: patterns of the parameters to prune; see `prunable`.
      allow_empty_units: accept kernels that keep fewer weights than they have outputs.

    Returns:
      `{path: number of weights kept}` of all prunable kernels, in natural order.

    Raises:
      UsageError: a density out of (0, 1]; an impossible total; not exactly one of the two; an
        unknown rule; a pattern that matches no kernel; a kernel with fewer weights than outputs.

    >>> import jax
    >>> net = {'a/kernel': (784, 64), 'b/kernel': (64, 64), 'c/kernel': (64, 10)}
    >>> net = {path: jax.ShapeDtypeStruct(shape, 'float32') for path, shape in net.items()}
    >>> densities(net, total=26_432)
    {'a/kernel': 22409, 'b/kernel': 3383, 'c/kernel': 640}
    >>> densities(net, total=26_432, rule='level')
    {'a/kernel': 21696, 'b/kernel': 4096, 'c/kernel': 640}
    """
    kernels = _kernels(params, patterns)
    shares = _shares(kernels, density, rule, total, own)
    sizes = {path: math.prod(shape) for path, shape in kernels.items()}
    counts = _whole(shares, sizes)
    for path, count in counts.items():
        if count < kernels[path][-1] and not allow_empty_units:
            raise UsageError(
                f"{path!r} of {sizes[path]:,} weights would keep {count:,}, fewer than one for "
                f"each of its {kernels[path][-1]:,} outputs; use a higher density or another rule, "
                "or accept outputs without inputs with allow_empty_units=True"
            )
    return counts


def layer_densities(
    params: Mapping[str, Any],
    density: float | None = None,
    rule: Rule | Mapping[str, float] = "erk",
    *,
    total: int | None = None,
    own: Mapping[str, float] | None = None,
    patterns: Sequence[str] | None = None,
) -> dict[str, float]:
    """Returns the fraction d_l that each kernel keeps by a rule, before counts are rounded.

    The arguments are those of `densities`.
    """
    kernels = _kernels(params, patterns)
    shares = _shares(kernels, density, rule, total, own)
    return {path: float(share / math.prod(kernels[path])) for path, share in shares.items()}


def require_counts(params: Mapping[str, Any], counts: Mapping[str, int]) -> None:
    """Checks that each count belongs to a parameter and is between 1 and its size.

    Raises:
      UsageError: it is not.
    """
    for path, count in counts.items():
        if path not in params:
            raise UsageError(
                f"there is a count for {path!r}, which is no parameter{nearest(path, params)}"
            )
        size = math.prod(params[path].shape)
        if isinstance(count, bool) or count != int(count) or not 1 <= count <= size:
            raise UsageError(
                f"{path!r} has {size:,} weights and should keep {count}; it takes an integer from "
                f"1 to {size:,}"
            )


def _kernels(
    params: Mapping[str, Any], patterns: Sequence[str] | None
) -> dict[str, tuple[int, ...]]:
    return {p: kernel_shape(p, params[p].shape) for p in prunable(params, patterns)}


def _shares(
    kernels: Mapping[str, tuple[int, ...]],
    density: float | None,
    rule: Rule | Mapping[str, float],
    total: int | None,
    own: Mapping[str, float] | None,
) -> dict[str, Fraction]:
    """Returns the weights that each kernel keeps, as exact fractions, so that ties are exact."""
    if isinstance(rule, Mapping):
        if own:
            raise UsageError("the rule is {pattern: density} already; leave own out")
        own, rule = rule, "uniform"
    if rule not in RULES:
        raise UsageError(
            f"rule={rule!r}{nearest(rule, RULES)}; it takes {', '.join(RULES)}, or "
            "{pattern: density}"
        )
    sizes = {path: math.prod(shape) for path, shape in kernels.items()}
    shares = {path: Fraction(_at(d, sizes[path])) for path, d in _own(kernels, own or {}).items()}
    rest = {path: shape for path, shape in kernels.items() if path not in shares}
    sizes = {path: sizes[path] for path in rest}
    if not rest and total is None:
        return shares
    if density is not None and total is None:
        kept = sum(_at(density, size) for size in sizes.values())
    elif total is not None and density is None:
        kept = total - int(sum(shares.values()))
        least, most = len(rest), sum(sizes.values())
        if total != int(total) or not least <= kept <= most:
            taken = total - kept
            raise UsageError(
                f"total={total}; the kernels take an integer from {least + taken:,} (one weight "
                f"each) to {most + taken:,}"
            )
    else:
        raise UsageError(f"density={density} and total={total}; give exactly one of them")
    shares |= RULES[rule](rest, sizes, kept) if rest else {}
    return {path: shares[path] for path in kernels}


def _own(kernels: Mapping[str, Any], own: Mapping[str, float]) -> dict[str, float]:
    for pattern in own:
        if not any(matches(path, pattern) for path in kernels):
            raise UsageError(f"pattern {pattern!r} matches no kernel{nearest(pattern, kernels)}")
    matching = {path: [p for p in own if matches(path, p)] for path in kernels}
    return {path: own[patterns[0]] for path, patterns in matching.items() if patterns}


def _at(density: float, size: int) -> int:
    """Returns `size - floor((1 - density) size)` for the decimal density: 0.1 is exactly 1/10."""
    if isinstance(density, bool) or not 0 < density <= 1:
        raise UsageError(
            f"density={density}; it takes a fraction of the weights above 0, up to 1 (dense)"
        )
    # Twelve digits, so that 1 - 0.98 is the same as 0.02.
    return math.ceil(Fraction(f"{density:.12g}") * size)


Sizes = Mapping[str, int]
"""`{path: number of weights}`."""


def _uniform(
    kernels: Mapping[str, tuple[int, ...]], sizes: Sizes, kept: int
) -> dict[str, Fraction]:
    total = sum(sizes.values())
    return {path: Fraction(kept * size, total) for path, size in sizes.items()}


def _er(kernels: Mapping[str, tuple[int, ...]], sizes: Sizes, kept: int) -> dict[str, Fraction]:
    fans = {path: shape[-2:] for path, shape in kernels.items()}
    return _in_proportion({p: Fraction(sum(f), math.prod(f)) for p, f in fans.items()}, sizes, kept)


def _erk(kernels: Mapping[str, tuple[int, ...]], sizes: Sizes, kept: int) -> dict[str, Fraction]:
    raw = {path: Fraction(sum(shape), sizes[path]) for path, shape in kernels.items()}
    return _in_proportion(raw, sizes, kept)


def _in_proportion(raw: Mapping[str, Fraction], sizes: Sizes, kept: int) -> dict[str, Fraction]:
    dense: set[str] = set()
    while True:
        others = [path for path in sizes if path not in dense]
        if not others:
            return {path: Fraction(size) for path, size in sizes.items()}
        left = kept - sum(sizes[path] for path in dense)
        scale = left / sum((raw[path] * sizes[path] for path in others), Fraction())
        most = max(raw[path] for path in others)
        if scale * most <= 1:
            break
        dense |= {path for path in others if raw[path] == most}
    return {
        path: Fraction(size) if path in dense else scale * raw[path] * size
        for path, size in sizes.items()
    }


def _level(kernels: Mapping[str, tuple[int, ...]], sizes: Sizes, kept: int) -> dict[str, Fraction]:
    low, high = 0, max(sizes.values())
    while low < high:
        middle = (low + high + 1) // 2
        fits = sum(min(size, middle) for size in sizes.values()) <= kept
        low, high = (middle, high) if fits else (low, middle - 1)
    counts = {path: min(size, low) for path, size in sizes.items()}
    left = kept - sum(counts.values())
    for path in sorted(sizes, key=lambda path: -sizes[path]):
        more = min(left, sizes[path] - counts[path])
        counts[path] += more
        left -= more
    return {path: Fraction(count) for path, count in counts.items()}


RULES: dict[str, Callable[..., dict[str, Fraction]]] = {
    "erk": _erk,
    "er": _er,
    "uniform": _uniform,
    "level": _level,
}
"""The rules by name."""


def _whole(shares: Mapping[str, Fraction], sizes: Sizes) -> dict[str, int]:
    """Rounds shares to integers from 1 to the size, preserving their sum."""
    counts = {path: min(max(int(share), 1), sizes[path]) for path, share in shares.items()}
    left = int(sum(shares.values())) - sum(counts.values())
    while left:
        step = 1 if left > 0 else -1
        free = [p for p in counts if 1 <= counts[p] + step <= sizes[p]]
        # The largest remainder first, ties in natural order; if kernels were raised to one weight,
        # the others lose weights in the same way.
        path = max(free, key=lambda path: step * (shares[path] - counts[path]))
        counts[path] += step
        left -= step
    return counts
