"""Understanding the effect of sparsity on neural networks' robustness (arXiv:2206.10915).

Claim: what compressed nets lose in robustness they lose with their capacity. Sparse nets that grow
so that they keep as many weights as a dense one are as accurate and as robust, or more so, up to a
high sparsity.

    python -m experiments.sparsity_robustness --config=configs/sparsity_robustness.py:tiny \\
        --workdir=runs/sparsity

Trains a dense net; sparse nets of its capacity that are wider or deeper; and a wide net that is
made sparse as it is. Each is tested on clean images, on corrupted and attacked ones, and with noise
on its weights, over several seeds.

`tiny` takes about a quarter of an hour of one core. docs/sparsity_robustness_results.md says which
claims hold.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from configs.sparsity_robustness import Config, DataConfig
from jaxlab import data, sparsity, study, train
from jaxlab.core import to_dict
from jaxlab.data import ImageSet, augment
from jaxlab.objectives import classify
from jaxlab.results import Claim, Record

PAPER = "Understanding the effect of sparsity on neural networks' robustness, arXiv:2206.10915"
DENSE, WIDER, FALLING = "dense", "capacity kept in width", "capacity falls"
DEEPER, SKIPS = "capacity kept in depth", "capacity kept in depth, norm and skips"
TESTS = {
    "clean": "clean images",
    "corruption": "corrupted images, mean",
    "fgsm": "FGSM",
    "pgd": "PGD",
    "relative": "weights times noise",
    "rms": "weights plus noise",
    "worst": "worst weights in a ball",
}
# The three kinds of robustness, each by the test that claims are judged by.
KINDS = {"corrupted data": "corruption", "attack": "pgd", "noise on weights": "relative"}


def trainings(config: Config) -> list[study.Training]:
    """All nets of the study; a net's group and x are its curve and its place there."""
    images = (config.data.blank() if study.is_dry_run() else None) or opened(config.data)[0]
    objective = classify
    if config.data.augment:
        objective = data.augmented(classify, augment.crop(4), augment.flip())

    def stream(settings: train.TrainConfig, rows: tuple[int, ...]) -> data.ImageStream:
        return data.ImageStream(opened(config.data)[0], settings.batch_size, settings.seed, rows)

    def net(name: str, group: str, x: float, model: Any, **masks: Any) -> study.Training:
        sparse = {"density": None, "init": "he", "allow_empty_units": True} | masks
        return study.Training(
            name=name,
            model=model,
            objective=objective,
            batch=data.image_batch_shapes(config.train.batch_size, images.image_shape),
            stream=stream,
            settings=config.train,
            data=config.data,
            interventions=(sparsity.SparsityConfig(**sparse),) if masks else (),
            group=group,
            x=x,
        )

    base = config.model(images)
    nets = [net("dense", DENSE, 1.0, base)]
    capacity = sparsity.num_weights(nets[0].params)
    for rule in config.rules:
        for density in config.densities:
            options = {"rule": rule, "allow_empty_units": True}
            match = sparsity.capacity_matched(base, density, "width", **options)
            name, x = f"wide_{rule}_{density:g}", match.realised_density
            masks = {"total": match.target, "rule": rule}
            nets.append(net(name, f"{WIDER}, {rule}", x, match.config, **masks))
    if config.falling_width is not None:
        model = config.model(images, width=config.falling_width)
        nets.append(net("falling_1", FALLING, 1.0, model))
        size = sparsity.num_weights(nets[-1].params)
        for density in config.falling_densities:
            total = round(density * size)
            nets.append(net(f"falling_{density:g}", FALLING, density, model, total=total))
    skips = {"norm": "layer", "residual": True}
    kinds = {"deep": (DEEPER, {})} | ({"skips": (SKIPS, skips)} if config.with_skips else {})
    for prefix, (group, parts) in kinds.items():
        for depth in config.depths:
            model = config.model(images, width=config.depth_width, depth=depth, **parts)
            nets.append(net(f"{prefix}_{depth}", group, depth, model, total=capacity))
    return nets


@functools.lru_cache(maxsize=1)
def opened(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    """Training and test images."""
    return config.open()


def run(config: Config, record: Record) -> study.Results:
    """Trains, tests and judges."""
    nets, (training, test) = trainings(config), opened(config.data)
    changed = config.stress.changed_images(test, cache_dir=record.workdir / "corrupted")
    tests = config.stress.tests(test, changed)
    settings = {"stress": to_dict(config.stress), "test": config.data.test}
    rows = study.measure(nets, record, config.num_seeds, lambda _: tests, settings)
    names = [f"changed_{name}/accuracy" for name in changed]
    rows = rows.derive("corruption/accuracy", lambda row: np.mean([row[name] for name in names]))
    sizes = {
        "train/images": len(training),
        "test/images": len(test),
        "nets/width": {net.name: net.model.width for net in nets},
        "nets/depth": {net.name: net.model.depth for net in nets},
        "nets/kept_weights": {
            net.name: sparsity.num_weights(net.params, *net.interventions) for net in nets
        },
        "nets/all_weights": {net.name: sparsity.num_weights(net.params) for net in nets},
    }
    numbers = sizes | study.numbers_of(nets, rows, baseline="dense")
    return study.Results(claims_of(config, nets, rows), numbers)


def claims_of(config: Config, nets: Sequence[study.Training], rows: study.Rows) -> list[Claim]:
    """What the paper's abstract says, and whether it shows here."""
    density = min(config.densities, key=lambda d: abs(math.log(d / config.claimed)))
    by_name = {net.name: net for net in nets}
    claims: list[Claim] = []
    for rule in config.rules:
        net = by_name[f"wide_{rule}_{density:g}"]
        what = f"density {net.x:.3g} ({rule}, width {net.model.width})"
        claims += kept_claims(config, rows, net.name, what)
    for prefix, family in {"deep": "", "skips": " with layer norm and skips"}.items():
        depths = [d for d in config.depths if d > config.depth and f"{prefix}_{d}" in by_name]
        for depth in depths[-1:]:
            what = f"{depth} hidden layers" if config.classifier == "mlp" else f"depth {depth}"
            claims += kept_claims(config, rows, f"{prefix}_{depth}", what + family)
    if "falling_1" in by_name and config.falling_densities:
        claims += falling_claims(config, rows, density)
    return claims


def kept_claims(config: Config, rows: study.Rows, net: str, what: str) -> list[Claim]:
    """A sparse net of a dense one's capacity is as accurate, and more robust in three ways."""
    as_accurate = f"A sparse net of {what} and the same capacity is as accurate as the dense one."
    clean = rows.difference(net, "dense", "clean/accuracy")
    return [study.above(as_accurate, clean, -config.margin)] + [
        study.above(
            f"It is more robust to {kind} ({TESTS[test]}).",
            rows.difference(net, "dense", f"{test}/accuracy"),
        )
        for kind, test in KINDS.items()
    ]


def falling_claims(config: Config, rows: study.Rows, density: float) -> list[Claim]:
    """Lost capacity costs accuracy and robustness; sparsity that keeps it does not."""
    least = min(config.falling_densities)
    losses = {
        name: rows.difference(f"falling_{least:g}", "falling_1", f"{test}/accuracy")
        for name, test in {"clean images": "clean", **KINDS}.items()
    }
    near = min(config.falling_densities, key=lambda d: abs(math.log(d / density)))
    kept, fallen = f"wide_{config.rules[0]}_{density:g}", f"falling_{near:g}"
    contrast = {kept: 1, "dense": -1, fallen: -1, "falling_1": 1}
    together = Claim(
        f"At the very high sparsity of {1 - least:g} accuracy and robustness fall together.",
        "differences to its dense start below 0, with their 95% intervals",
        "; ".join(f"{name} {loss}" for name, loss in losses.items()),
        all(loss.high < 0 for loss in losses.values()),
    )
    return [together] + [
        study.above(
            f"Robustness to {kind} is lost with capacity, not with density: at density {near:g} "
            "the net that keeps its capacity loses less to its dense start.",
            rows.contrast(contrast, f"{test}/accuracy"),
            what="difference of differences over seeds",
        )
        for kind, test in KINDS.items()
    ]


def page(record: Record, numbers: Mapping[str, Any]) -> study.Page:
    """Two figures for each test, a table of all nets by all tests, and what was asked."""
    config = record.config
    figures: dict[str, study.Lines] = {}
    for test, title in TESTS.items():
        figures |= figures_of(numbers, test, title)
    summary = (
        "Does sparsity itself cost robustness, or only the capacity that is lost with it?\n\n"
        f"A dense {config['classifier']} of width {numbers['nets/width']['dense']} has "
        f"{numbers['nets/all_weights']['dense']:,} weights. Sparse nets of as many weights, in "
        "wider or deeper layers, and a wide net that loses its weights, were trained alike on "
        f"{numbers['train/images']:,} images of {config['data']['train']}, with "
        f"{config['num_seeds']} seeds each, and tested on {numbers['test/images']:,} others."
    )
    table = {"Accuracy in percent, mean over seeds": comparison(numbers)}
    return study.Page("Sparsity and robustness", summary, figures=figures, tables=table)


def figures_of(numbers: Mapping[str, Any], test: str, title: str) -> dict[str, study.Lines]:
    """The figures of one test, over density and over depth."""
    by_group = study.curves(numbers, f"{test}/accuracy", scale=100)
    dense = by_group.pop(DENSE)
    deep = {name: by_group.pop(name) for name in (DEEPER, SKIPS) if name in by_group}
    wide = {
        name: np.hstack([points, dense]) if name.startswith(WIDER) else points
        for name, points in by_group.items()
    }
    what = f"{title[0].upper()}{title[1:]}: accuracy over"
    bands = "bands are 95% intervals over seeds"
    small = f"all with as many weights; the small dense net has {dense[1, 0]:.1f}"
    axes = "density of the kernels", "accuracy (%)", "log"
    figures = {f"{test}_density": study.Lines(f"{what} density; {bands}.", wide, *axes)}
    if deep:
        caption = f"{what} depth, {small}; {bands}."
        figures[f"{test}_depth"] = study.Lines(caption, deep, "depth", "accuracy (%)")
    return figures


def comparison(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All nets by all tests."""
    kept, size = numbers["nets/kept_weights"], numbers["nets/all_weights"]
    return [
        {
            "net": name,
            "width": numbers["nets/width"][name],
            "depth": numbers["nets/depth"][name],
            "weights": kept[name],
            "density": kept[name] / size[name],
        }
        | {test: round(100 * numbers[f"{test}/accuracy"][name][0], 1) for test in TESTS}
        for name in kept
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see `jaxlab.study.main`."""
    grows = "num_seeds", "densities", "rules", "falling_densities", "depths", "claimed", "margin"
    study.main(run, page=page, trainings=trainings, grows=grows, paper=PAPER, argv=argv)


if __name__ == "__main__":
    main()
