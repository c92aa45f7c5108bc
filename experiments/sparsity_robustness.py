"""Understanding the effect of sparsity on neural networks' robustness (arXiv:2206.10915).

Claim: what compressed nets lose in robustness they lose with their capacity. Sparse nets that grow
so that they keep as many weights as a dense one are as accurate and as robust, or more so, up to a
high sparsity.

    python -m experiments.sparsity_robustness --config=configs/sparsity_robustness.py:tiny \\
        --workdir=runs/sparsity

Trains a dense net; sparse nets of its capacity that are wider or deeper; and a wide net that is
made sparse as it is. Each is tested on clean images, on corrupted and attacked ones, and with noise
on its weights, over several seeds.

`tiny` takes about a quarter of an hour of one core. What holds and what does not stands in
docs/sparsity_robustness_results.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from configs.sparsity_robustness import DEFAULT, VARIANTS, Config, StressConfig
from jaxlab import analysis, data, evals, planning, results, sparsity, study, train
from jaxlab.core import View, local_rows, make_mesh, on_main_process, to_dict
from jaxlab.data import ImageSet, augment, corruptions
from jaxlab.objectives import classify
from jaxlab.results import Claim, Record, figures

PAPER = (
    "Understanding the effect of sparsity on neural networks' robustness, Timpl et al., 2022, "
    "arXiv:2206.10915"
)
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
SKIP_PARTS = {"norm": "layer", "residual": True}
# The three kinds of robustness, each by the test that claims are judged by.
KINDS = {"corrupted data": "corruption", "attack": "pgd", "noise on weights": "relative"}
MAY_CHANGE = tuple(f"train.{field}" for field in train.MAY_CHANGE)


class Net(NamedTuple):
    """One net of the study.

    Attributes:
      family: the curve that it is a point of.
      x: its place there: density, or depth.
      model: its config.
      sparsity: None for a dense one.
      kept, size: weights that count, and of all kernels.
    """

    family: str
    x: float
    model: Any
    sparsity: sparsity.SparsityConfig | None
    kept: int
    size: int


def run(config: Config, record: Record) -> None:
    """Trains, tests, records and draws; a complete workdir is only drawn."""
    if not record.complete:
        training, test = config.data.open()
        found = nets(config, training)
        stressed = stressed_sets(config.stress, test, record)
        accuracy = {
            name: accuracy_by_seed(config, record, name, net, training, test, stressed)
            for name, net in found.items()
        }
        command = study.repeat_command(record, VARIANTS, DEFAULT)
        record.write_results(
            claims_of(config, found, accuracy),
            study.with_command(numbers_of(found, accuracy, training, test), command),
        )
    on_main_process(lambda: draw(record))
    on_main_process(lambda: print(closing_words(record)))


def nets(config: Config, images: ImageSet) -> dict[str, Net]:
    """All nets of the study by name, which is also the folder of their trainings."""
    base = config.model(images)
    capacity = kernel_sizes(base)
    found = {"dense": Net(DENSE, 1.0, base, None, capacity, capacity)}
    for rule in config.rules:
        for density in config.densities:
            match = sparsity.capacity_matched(
                base, density, "width", rule=rule, allow_empty_units=True
            )
            found[f"wide_{rule}_{density:g}"] = Net(
                wider(rule),
                match.realised_density,
                match.config,
                sparse(total=match.target, rule=rule),
                match.target,
                match.size,
            )
    if config.falling_width is not None:
        model = config.model(images, width=config.falling_width)
        size = kernel_sizes(model)
        found["falling_1"] = Net(FALLING, 1.0, model, None, size, size)
        for density in config.falling_densities:
            kept = round(density * size)
            found[f"falling_{density:g}"] = Net(
                FALLING, density, model, sparse(total=kept, rule="erk"), kept, size
            )
    kinds = {DEEPER: {}} | ({SKIPS: SKIP_PARTS} if config.with_skips else {})
    for family, parts in kinds.items():
        for depth in config.depths:
            model = config.model(images, width=config.depth_width, depth=depth, **parts)
            found[f"{'skips' if parts else 'deep'}_{depth}"] = Net(
                family,
                depth,
                model,
                sparse(total=capacity, rule="erk"),
                capacity,
                kernel_sizes(model),
            )
    return found


def wider(rule: str) -> str:
    """The name of the curve of one rule."""
    return f"{WIDER}, {rule}"


def sparse(**fields: Any) -> sparsity.SparsityConfig:
    """Static random masks, weights drawn for the inputs that are left."""
    return sparsity.SparsityConfig(
        method="random", density=None, init="he", allow_empty_units=True, **fields
    )


def kernel_sizes(model: Any) -> int:
    """Weights of all kernels of a model, which is its capacity when dense."""
    params = View.abstract(lambda: model.build(nnx.Rngs(0))).params
    return sum(math.prod(params[path].shape) for path in sparsity.prunable(params))


def stressed_sets(stress: StressConfig, test: ImageSet, record: Record) -> dict[str, np.ndarray]:
    """The test images with noise on their pixels, and with each corruption, by name."""
    noise = dataclasses.replace(
        corruptions.make("gaussian_noise", 1, any_size=True), parameters=(stress.noise,)
    )
    key = jax.random.key(0, impl="threefry2x32")
    found = {f"noise {stress.noise:g}": np.asarray(noise(key, test.images))}
    for spec in stress.corruptions:
        name, _, severity = spec.partition("/")
        changed = data.corrupted(
            test, name, int(severity), any_size=True, cache_dir=record.workdir / "corrupted"
        )
        found[spec] = changed.images
    return found


def accuracy_by_seed(
    config: Config,
    record: Record,
    name: str,
    net: Net,
    training: ImageSet,
    test: ImageSet,
    stressed: Mapping[str, np.ndarray],
) -> list[dict[str, float]]:
    """What one net can do after each of its trainings, by test."""
    view = View.abstract(lambda: net.model.build(nnx.Rngs(0))).evaluating()
    found = []
    for seed in range(config.num_seeds):
        settings = dataclasses.replace(config.train, seed=config.train.seed + seed)
        state = fit(config, record, f"{name}/seed{seed}", net, settings, training)
        found.append(tested(config.stress, view, state, test, stressed, make_mesh(settings.mesh)))
    return found


def fit(
    config: Config,
    record: Record,
    folder: str,
    net: Net,
    settings: train.TrainConfig,
    training: ImageSet,
) -> train.TrainState:
    """Trains one net in a folder of the workdir, or reads the one that is there."""
    sparsity = net.sparsity and dataclasses.replace(net.sparsity, seed=settings.seed)
    changed = {"model": to_dict(net.model), "train": to_dict(settings)}
    changed |= {"sparsity": None if sparsity is None else to_dict(sparsity)}
    part = Record.create(
        record.workdir / folder,
        experiment=record.experiment,
        variant=record.variant,
        paper=record.paper,
        ignore=MAY_CHANGE,
        config=record.config | changed,
    )
    mesh = make_mesh(settings.mesh)
    stream = data.ImageStream(
        training,
        settings.batch_size,
        seed=settings.seed,
        rows=local_rows(settings.batch_size, mesh),
    )
    _, done = train.run_training(
        settings,
        build=net.model.build,
        objective=objective_of(config),
        stream=stream,
        workdir=part,
        description=folder,
        interventions=[] if sparsity is None else [sparsity],
    )
    return done.state


def objective_of(config: Config) -> Any:
    """Classification, of augmented images where the config says so."""
    if not config.data.augment:
        return classify
    return data.augmented(classify, augment.crop(4), augment.flip())


def tested(
    stress: StressConfig,
    view: View,
    state: train.TrainState,
    test: ImageSet,
    stressed: Mapping[str, np.ndarray],
    mesh: Any,
) -> dict[str, float]:
    """Accuracy of one trained net under every test, in [0, 1]."""
    where = {"params": state.params, "state": state.model_state, "mesh": mesh}
    images, labels = test.images, test.labels
    found = {"clean": evals.predict(view, images, labels, **where).accuracy}
    for name, changed in stressed.items():
        found[name] = evals.predict(view, changed, labels, **where).accuracy
    found["corruption"] = float(np.mean([found[name] for name in stressed]))
    attacks = {
        "fgsm": evals.fgsm(view, stress.eps),
        "pgd": evals.pgd(view, stress.eps, steps=stress.steps),
    }
    for name, attack in attacks.items():
        found[name] = evals.attack_accuracy(
            view, attack, images, labels, key=jax.random.key(0), **where
        ).accuracy
    for kind, field in {"relative": "relative", "rms": "rms", "worst_case": "worst"}.items():
        curve = evals.weight_noise_curve(
            view,
            images,
            labels,
            kind=kind,
            sizes=[getattr(stress, field)],
            key=jax.random.key(1),
            draws=1 if field == "worst" else stress.draws,
            **where,
        )
        found[field] = float(curve.accuracies.mean())
    return found


Accuracy = Mapping[str, Sequence[Mapping[str, float]]]


def difference(accuracy: Accuracy, test: str, net: str, other: str) -> analysis.Interval:
    """Accuracy of a net less that of another, over seeds that they share."""
    pairs = zip(accuracy[net], accuracy[other], strict=True)
    return analysis.mean_over_seeds([a[test] - b[test] for a, b in pairs])


def claims_of(config: Config, found: Mapping[str, Net], accuracy: Accuracy) -> list[Claim]:
    """What the paper's abstract says, and whether it shows here."""
    density = min(config.densities, key=lambda d: abs(math.log(d / config.claimed)))
    claims: list[Claim] = []
    for rule in config.rules:
        net = f"wide_{rule}_{density:g}"
        width = found[net].model.width
        what = f"of density {found[net].x:.3g} ({rule}, width {width}) and the same capacity"
        claims += kept_claims(config, accuracy, net, "dense", what)
    for prefix, family in {"deep": "", "skips": " with layer norm and skips"}.items():
        depths = [d for d in config.depths if d > config.depth and f"{prefix}_{d}" in found]
        if depths:
            net = f"{prefix}_{depths[-1]}"
            what = f"of {depths[-1]} hidden layers{family} and the same capacity"
            if config.classifier != "mlp":
                what = f"of depth {depths[-1]}{family} and the same capacity"
            claims += kept_claims(config, accuracy, net, "dense", what)
    if "falling_1" in found and config.falling_densities:
        claims += falling_claims(config, accuracy, density)
    return claims


def kept_claims(config: Config, accuracy: Accuracy, net: str, other: str, what: str) -> list[Claim]:
    """A sparse net of a dense one's capacity is as accurate, and more robust in three ways."""
    clean = difference(accuracy, "clean", net, other)
    found = [
        Claim(
            f"A sparse net {what} is as accurate as the dense one.",
            f"difference over seeds above {-config.margin:g}, with its 95% interval",
            str(clean),
            clean.low > -config.margin,
        )
    ]
    for kind, test in KINDS.items():
        gain = difference(accuracy, test, net, other)
        found.append(
            Claim(
                f"It is more robust to {kind} ({TESTS[test]}).",
                "difference over seeds above 0, with its 95% interval",
                str(gain),
                gain.low > 0,
            )
        )
    return found


def falling_claims(config: Config, accuracy: Accuracy, density: float) -> list[Claim]:
    """Lost capacity costs accuracy and robustness; sparsity that keeps it does not."""
    least = f"falling_{min(config.falling_densities):g}"
    losses = {
        name: difference(accuracy, test, least, "falling_1")
        for name, test in {"clean images": "clean", **KINDS}.items()
    }
    found = [
        Claim(
            f"At the very high sparsity of {1 - min(config.falling_densities):g} accuracy and "
            "robustness fall together.",
            "differences to its dense start below 0, with their 95% intervals",
            "; ".join(f"{name} {loss}" for name, loss in losses.items()),
            all(loss.high < 0 for loss in losses.values()),
        )
    ]
    near = min(config.falling_densities, key=lambda d: abs(math.log(d / density)))
    kept, fallen = f"wide_{config.rules[0]}_{density:g}", f"falling_{near:g}"
    for kind, test in KINDS.items():
        rows = zip(*(accuracy[net] for net in (kept, "dense", fallen, "falling_1")), strict=True)
        gains = [(a[test] - b[test]) - (c[test] - d[test]) for a, b, c, d in rows]
        gain = analysis.mean_over_seeds(gains)
        found.append(
            Claim(
                f"Robustness to {kind} is lost with capacity, not with density: at density "
                f"{near:g} the net that keeps its capacity loses less to its dense start.",
                "difference of differences over seeds above 0, with its 95% interval",
                str(gain),
                gain.low > 0,
            )
        )
    return found


def numbers_of(
    found: Mapping[str, Net], accuracy: Accuracy, training: ImageSet, test: ImageSet
) -> dict[str, Any]:
    """All that was measured: nets, and accuracies in percent with intervals over seeds."""
    tests = list(next(iter(accuracy.values()))[0])
    return {
        "images": {"train": len(training), "test": len(test)},
        "nets": {
            name: {
                "family": net.family,
                "x": net.x,
                "width": net.model.width,
                "depth": net.model.depth,
                "kept weights": net.kept,
                "all weights": net.size,
            }
            for name, net in found.items()
        },
        "accuracy %": {
            test: {
                name: [
                    100 * value for value in analysis.mean_over_seeds([a[test] for a in of_seeds])
                ]
                for name, of_seeds in accuracy.items()
            }
            for test in tests
        },
        "points over the dense net": {
            test: {
                name: [100 * value for value in difference(accuracy, test, name, "dense")]
                for name in found
                if name != "dense"
            }
            for test in tests
        },
        "accuracy % by seed": {
            test: {name: [100 * a[test] for a in of_seeds] for name, of_seeds in accuracy.items()}
            for test in tests
        },
    }


def draw(record: Record) -> None:
    """Figures and report, from what lies in the workdir."""
    numbers = study.values_of(record.results["numbers"])
    shown = {}
    for test, title in TESTS.items():
        for axis, (caption, figure) in curves(numbers, test, title).items():
            shown[caption] = figures.save(figure, record.figures_dir / f"{test}_{axis}.png")
    results.write_report(
        record,
        title="Sparsity and robustness",
        summary=summary(record, numbers),
        figures=shown,
        tables={"Accuracy in percent, mean over seeds": comparison(numbers)},
        commands={"the whole run": study.repeat_command(record, VARIANTS, DEFAULT)},
    )


def curves(numbers: Mapping[str, Any], test: str, title: str) -> dict[str, tuple[str, Any]]:
    """Caption and figure of one test, over density and over depth."""
    families: dict[str, list[tuple[float, ...]]] = {}
    for name, net in numbers["nets"].items():
        mean, low, high = numbers["accuracy %"][test][name]
        # One seed has no interval: its ends were infinite, which JSON keeps as null.
        ends = (mean, mean) if low is None else (max(low, 0.0), min(high, 100.0))
        families.setdefault(net["family"], []).append((net["x"], mean, *ends))
    [dense] = families.pop(DENSE)
    found = {}
    over_density = {
        family: np.array(sorted([dense, *points] if family.startswith(WIDER) else points)).T
        for family, points in families.items()
        if family not in (DEEPER, SKIPS)
    }
    found["density"] = (
        f"{title[0].upper()}{title[1:]}: accuracy over density; bands are 95% intervals over "
        "seeds.",
        figures.lines(
            over_density, xlabel="density of the kernels", ylabel="accuracy (%)", xscale="log"
        ),
    )
    over_depth = {
        family: np.array(sorted(points)).T
        for family, points in families.items()
        if family in (DEEPER, SKIPS)
    }
    if over_depth:
        found["depth"] = (
            f"{title[0].upper()}{title[1:]}: accuracy over depth, all with as many weights; bands "
            f"are 95% intervals over seeds; the small dense net has {dense[1]:.1f}.",
            figures.lines(over_depth, xlabel="depth", ylabel="accuracy (%)"),
        )
    return found


def comparison(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All nets by all tests."""
    return [
        {
            "net": name,
            "width": net["width"],
            "depth": net["depth"],
            "weights": net["kept weights"],
            "density": net["kept weights"] / net["all weights"],
        }
        | {test: round(numbers["accuracy %"][test][name][0], 1) for test in numbers["accuracy %"]}
        for name, net in numbers["nets"].items()
    ]


def summary(record: Record, numbers: Mapping[str, Any]) -> str:
    """What was asked and how, in words."""
    config, images = record.config, numbers["images"]
    dense = numbers["nets"]["dense"]
    return (
        "Does sparsity itself cost robustness, or only the capacity that is lost with it?\n\n"
        f"A dense {config['classifier']} of width {dense['width']} has {dense['all weights']:,} "
        "weights. Sparse nets of as many weights, in wider or deeper layers, and a wide net that "
        f"loses its weights, were trained alike on {images['train']:,} images of "
        f"{config['data']['train']}, with {config['num_seeds']} seeds each, and tested on "
        f"{images['test']:,} others."
    )


def closing_words(record: Record) -> str:
    """What a reader wants to know at the end."""
    numbers = study.values_of(record.results["numbers"])
    return "\n".join(
        [
            "",
            results.table(comparison(numbers)),
            "",
            *results.claim_lines(record.claims),
            "",
            f"report   {record.report_path}",
        ]
    )


def plan(config: Config, pod: planning.Pod | None = None) -> list[str]:
    """Size, memory, sharding and length of the trainings; the pod is for the largest net."""
    training = config.data.blank() or config.data.open()[0]
    found = nets(config, training)
    largest = max(found, key=lambda name: found[name].size)
    shape = (config.train.batch_size, *training.image_shape)
    batch = {
        "inputs": jax.ShapeDtypeStruct(shape, np.uint8),
        "targets": jax.ShapeDtypeStruct(shape[:1], np.int32),
        "index": jax.ShapeDtypeStruct(shape[:1], np.int32),
    }
    lines = [f"{len(found)} nets, each trained with {config.num_seeds} seed(s)"]
    for name in dict.fromkeys(("dense", largest)):
        net = found[name]
        described = train.make_setup(
            config.train,
            build=net.model.build,
            objective=objective_of(config),
            batch=batch,
            interventions=[] if net.sparsity is None else [net.sparsity],
        ).describe(pod if name == largest else None)
        lines += [f"{name}:", *(f"  {line}" for line in described)]
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see `jaxlab.study.main`."""
    study.main(run, plan=plan, paper=PAPER, ignore=MAY_CHANGE, argv=argv)


if __name__ == "__main__":
    main()
