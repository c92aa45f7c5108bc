from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from jaxlab.core import UsageError, View
from jaxlab.sparsity import capacity_matched


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """A net whose config makes it."""

    width: int = 32
    depth: int = 2
    inputs: int = 784
    name: str = "mlp"

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        sizes = (self.inputs, *[self.width] * self.depth, 10)
        return nnx.Sequential(
            *[nnx.Linear(a, b, rngs=rngs) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
        )


def mlp_weights(width: int, depth: int, inputs: int = 784, classes: int = 10) -> int:
    return inputs * width + (depth - 1) * width**2 + classes * width


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """ResNet-20 on small images, its shortcuts 1x1 convolutions."""

    width: int = 16


class ResNet(nnx.Module):
    """The layers alone; nobody calls it."""

    def __init__(self, config: ResNetConfig, rngs: nnx.Rngs):
        def conv(a, b, size=3):
            return nnx.Conv(a, b, (size, size), use_bias=False, rngs=rngs)

        fan_in = config.width
        layers = [conv(3, fan_in), nnx.BatchNorm(fan_in, rngs=rngs)]
        for width in (config.width, 2 * config.width, 4 * config.width):
            for _ in range(3):
                layers += [conv(fan_in, width), conv(width, width)]
                layers += [conv(fan_in, width, 1)] if fan_in != width else []
                fan_in = width
        self.layers = nnx.List([*layers, nnx.Linear(fan_in, 10, rngs=rngs)])


@pytest.mark.parametrize("density", [1.0, 0.5, 0.2, 0.05, 0.01])
def test_the_width_of_an_mlp_is_the_nearest_by_its_formula(density):
    match = capacity_matched(MLPConfig(), density)
    assert match.target == mlp_weights(32, 2) == 26_432
    widths = range(32, 2000)
    nearest = min(widths, key=lambda w: abs(mlp_weights(w, 2) - 26_432 / density))
    assert match.config == MLPConfig(width=nearest)
    assert match.size == mlp_weights(nearest, 2) and sum(match.counts.values()) == 26_432
    assert match.realised_density == 26_432 / match.size
    assert match.error == abs(match.realised_density - density) <= 0.02 * density
    assert (match.base_outside, match.outside) == (32 + 32 + 10, 2 * nearest + 10)


def test_the_width_of_a_resnet_is_the_nearest_by_its_formula():
    sizes = {width: 1054 * width**2 + 67 * width for width in range(16, 60)}
    match = capacity_matched(ResNetConfig(), 0.11, build=lambda config, rngs: ResNet(config, rngs))
    assert match.target == sizes[16] == 270_896
    nearest = min(sizes, key=lambda w: abs(sizes[w] - 270_896 / 0.11))
    assert match.config.width == nearest and match.size == sizes[nearest]
    assert sum(match.counts.values()) == 270_896
    assert match.outside == 2 * nearest + 10


def test_depth_grows_as_well():
    match = capacity_matched(MLPConfig(width=64, depth=3), 0.4, "depth", rule="uniform")
    nearest = min(range(3, 60), key=lambda d: abs(mlp_weights(64, d) - match.target / 0.4))
    assert match.config == MLPConfig(width=64, depth=nearest) and nearest > 15
    assert len(match.counts) == nearest + 1 and sum(match.counts.values()) == match.target


def test_the_width_is_found_for_a_deeper_net_too():
    match = capacity_matched(MLPConfig(depth=8), 0.9, base=MLPConfig())
    widths = [w for w in range(1, 64) if mlp_weights(w, 8) >= 26_432]
    nearest = min(widths, key=lambda w: abs(mlp_weights(w, 8) - 26_432 / 0.9))
    assert match.target == 26_432 and match.config == MLPConfig(width=nearest, depth=8)
    assert nearest < 32 and match.base_outside == 74


def test_width_and_depth_grow_together():
    match = capacity_matched(MLPConfig(width=32, depth=4), 0.2, ("width", "depth"))
    sizes = {w: mlp_weights(w, round(4 * w / 32)) for w in range(32, 200)}
    nearest = min(sizes, key=lambda w: abs(sizes[w] - match.target / 0.2))
    assert match.config == MLPConfig(width=nearest, depth=round(nearest / 8))
    assert match.config.depth > 5 and match.size == sizes[nearest]
    assert sum(match.counts.values()) == match.target == mlp_weights(32, 4)


def test_widths_grow_in_proportion():
    @dataclasses.dataclass(frozen=True)
    class Config:
        widths: tuple[int, ...] = (8, 12)

    def build(config, rngs):
        sizes = (20, *config.widths, 3)
        return nnx.Sequential(
            *[nnx.Linear(a, b, rngs=rngs) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
        )

    match = capacity_matched(Config(), 0.1, build=build)
    sizes = {w: 20 * w + w * round(1.5 * w) + round(1.5 * w) * 3 for w in range(8, 80)}
    nearest = min(sizes, key=lambda w: abs(sizes[w] - match.target / 0.1))
    assert match.config.widths == (nearest, round(1.5 * nearest))


def test_only_fitting_widths_are_tried_when_steps_are_given():
    def build(config, rngs):
        if config.width % 8:
            raise UsageError(f"width={config.width} does not divide by num_heads=8")
        return config.build(rngs)

    match = capacity_matched(MLPConfig(), 0.2, build=build, step=8)
    assert match.config.width % 8 == 0 and sum(match.counts.values()) == 26_432
    with pytest.raises(UsageError, match=r"no model with width=\d+.* num_heads=8; choose incr"):
        capacity_matched(MLPConfig(), 0.2, build=build)


def test_nothing_is_allocated():
    match = capacity_matched(MLPConfig(width=2**13), 0.01)
    assert match.size > 2**30
    view = View.abstract(lambda: match.config.build(nnx.Rngs(0)))
    assert all(isinstance(p, jax.ShapeDtypeStruct) for p in view.params.values())
    assert np.isclose(match.realised_density, 0.01, rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((MLPConfig(), 0.0), "density=0.0; it takes a fraction"),
        ((MLPConfig(), 1.5), "density=1.5; it takes a fraction"),
        ((MLPConfig(), 0.5, "widht"), "MLPConfig has the integers .*; did you mean 'width'"),
        ((MLPConfig(), 0.5, "name"), "grow='name'; MLPConfig has the integers width, depth"),
        ((MLPConfig(), 0.5, ()), r"grow=\(\); it takes one field, or several different ones"),
        ((MLPConfig(), 0.5, ("width", "width")), "it takes one field, or several different ones"),
        ((ResNetConfig(), 0.5), r"ResNetConfig has no build\(rngs\); pass build="),
        (({"width": 3}, 0.5), "config is a dict; expected a dataclass"),
    ],
)
def test_bad_input_is_named(arguments, words):
    with pytest.raises(UsageError, match=words):
        capacity_matched(*arguments)


def test_a_field_that_grows_no_kernel_is_named():
    def build(config, rngs):
        return nnx.Linear(4, 4, rngs=rngs)

    with pytest.raises(UsageError, match="does not grow with width: 16 at 32, 16 at 33"):
        capacity_matched(MLPConfig(), 0.5, build=build)


def test_units_that_would_be_empty_are_named_unless_allowed():
    arguments = (MLPConfig(), 0.001)
    with pytest.raises(UsageError, match="fewer than one for each of its 4,"):
        capacity_matched(*arguments, rule="uniform")
    match = capacity_matched(*arguments, rule="uniform", allow_empty_units=True)
    assert sum(match.counts.values()) == 26_432
