"""How many weights each kernel keeps: shares of one total, in whole numbers that sum up to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from jaxlab.core import UsageError, matches, nearest
from jaxlab.sparsity.kernels import kernel_shape, prunable

Rule = Literal["erk", "er", "uniform", "level"]
"""How a total is shared out over the kernels; see `densities`."""


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
    """How many weights each kernel keeps; the numbers sum up to the total exactly.

    With N_l weights in kernel l, of which a share d_l is kept, the total is
    `T = sum_l (N_l - floor((1 - density) N_l))` or given as a number. The rules:

    * `uniform`: every d_l is the same.
    * `er` (arXiv 1707.04780): d_l goes as `(fan_in + fan_out) / (fan_in fan_out)`.
    * `erk` (arXiv 1911.11134): d_l goes as the sum of the axes of the kernel over their product,
      a convolution's window included. With `er` and `erk`, kernels that would have to keep more
      than they have stay dense, and the others share what is left.
    * `level` (arXiv 2010.14495): no kernel keeps more than c weights, the largest c that fits; what
      is left over goes to the largest kernel.

    Shares are rounded down, and the largest remainders up; every kernel keeps at least one weight.

    Args:
      params: `{path: array or shape}`; axes are read as by `kernel_shape`.
      density: share of the weights that is kept, in (0, 1]; 1 is dense.
      rule: one of the above, or `{pattern: density}`, which is `uniform` with that for `own`.
      total: T itself, in place of a density.
      own: `{pattern: density}` of kernels that have a density of their own, by the first pattern
        that fits; without a `total` they are left out of T.
      patterns: which parameters are pruned; see `prunable`.
      allow_empty_units: accept kernels that keep fewer weights than they have outputs.

    Returns:
      `{path: number of weights kept}` of all prunable kernels, in natural order.

    Raises:
      UsageError: a density out of (0, 1]; a total out of reach; not one of both; an unknown rule;
        a pattern that fits no kernel; a kernel left without one weight for each output.

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
                f"each of its {kernels[path][-1]:,} outputs; take a higher density or another "
                "rule, or accept outputs without inputs by allow_empty_units=True"
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
    """The share d_l that each kernel keeps by a rule, before it is made a whole number of weights.

    The arguments are those of `densities`.
    """
    kernels = _kernels(params, patterns)
    shares = _shares(kernels, density, rule, total, own)
    return {path: float(share / math.prod(kernels[path])) for path, share in shares.items()}


def require_counts(params: Mapping[str, Any], counts: Mapping[str, int]) -> None:
    """Checks that each count is of a parameter, and between one and its size.

    Raises:
      UsageError: it is not.
    """
    for path, count in counts.items():
        if path not in params:
            raise UsageError(f"a count is for {path!r}, no parameter{nearest(path, params)}")
        size = math.prod(params[path].shape)
        if isinstance(count, bool) or count != int(count) or not 1 <= count <= size:
            raise UsageError(
                f"{path!r} has {size:,} weights and should keep {count}; it takes a whole number "
                f"from 1 to {size:,}"
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
    """Weights that each kernel keeps, not yet whole numbers. Exact, so that ties are ties."""
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
                f"total={total}; the kernels take a whole number from {least + taken:,} (one "
                f"weight each) to {most + taken:,}"
            )
    else:
        raise UsageError(f"density={density} and total={total}; give one of both")
    shares |= RULES[rule](rest, sizes, kept) if rest else {}
    return {path: shares[path] for path in kernels}


def _own(kernels: Mapping[str, Any], own: Mapping[str, float]) -> dict[str, float]:
    for pattern in own:
        if not any(matches(path, pattern) for path in kernels):
            raise UsageError(f"pattern {pattern!r} fits no kernel{nearest(pattern, kernels)}")
    fitting = {path: [p for p in own if matches(path, p)] for path in kernels}
    return {path: own[found[0]] for path, found in fitting.items() if found}


def _at(density: float, size: int) -> int:
    """`size - floor((1 - density) size)`, with the density as it is written: .1 is a tenth."""
    if isinstance(density, bool) or not 0 < density <= 1:
        raise UsageError(
            f"density={density}; it takes a share of the weights above 0, up to 1 (dense)"
        )
    # Twelve digits: 1 - .98 is .02, as well as .02 is.
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
    """Whole numbers from 1 to the size that sum up to what the shares do."""
    counts = {path: min(max(int(share), 1), sizes[path]) for path, share in shares.items()}
    left = int(sum(shares.values())) - sum(counts.values())
    while left:
        step = 1 if left > 0 else -1
        free = [p for p in counts if 1 <= counts[p] + step <= sizes[p]]
        # The first of the largest, in natural order; where kernels were lifted to one weight, the
        # others give way in the same manner.
        path = max(free, key=lambda path: step * (shares[path] - counts[path]))
        counts[path] += step
        left -= step
    return counts
