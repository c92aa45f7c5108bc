"""Block-Recurrent Transformers (Hutchins et al., NeurIPS 2022, arXiv:2203.07852).

Claim: one layer with a recurrent state, read and written once a window, lets a sliding-window
language model use what lies far beyond its window, for the cost of about one more layer.

    python -m experiments.block_recurrent --config=configs/block_recurrent.py:tiny \\
        --workdir=runs/tiny
    python -m experiments.block_recurrent --workdir=runs/tiny --sample="def "

Trains the block-recurrent model and a sliding-window model with one layer more on the same text in
the same order, measures both on held-out documents (in all, by position in the document, and with
the state taken away at every segment), and trains both kinds on a task that asks for what stood
outside the window.

`tiny` takes about 20 minutes on two cores. To expect: the recall claims hold; on text the sliding
window stays ahead by about 0.02 bits per byte after so few steps (docs/block_recurrent_results.md).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from configs.block_recurrent import DEFAULT, VARIANTS, Config, SampleConfig, windowed
from jaxlab import analysis, checkpoint, data, evals, planning, probes, results, study, train
from jaxlab.core import (
    Params,
    View,
    batch_sharding,
    from_dict,
    local_rows,
    make_mesh,
    on_main_process,
    place_rows,
    to_dict,
    whole,
)
from jaxlab.evals import DocumentScores
from jaxlab.models import TransformerLM, TransformerLMConfig
from jaxlab.objectives import next_token
from jaxlab.results import Claim, Record, figures
from jaxlab.sampling import stream_text

PAPER = "Block-Recurrent Transformers, Hutchins et al., NeurIPS 2022, arXiv:2203.07852"
RECURRENT, WINDOWED, XL = "block-recurrent", "sliding window", "Transformer-XL"
RESET, OTHER = "block-recurrent, state reset", "block-recurrent, state of another"
XZ = "xz -9e"
# Folders of the trainings on text in the workdir; that of the first model is the workdir itself.
FOLDERS = {RECURRENT: "", WINDOWED: "slide", XL: "xl"}
RECALL = {RECURRENT: "recall", WINDOWED: "recall_slide"}
# Accuracies of the recall claims (chance is 1/16), and how much longer a step may take.
RECALLED, AT_CHANCE, SLOWER = 0.95, 0.12, 1.10
MAY_CHANGE = tuple(f"{part}{f}" for part in ("train.", "recall.train.") for f in train.MAY_CHANGE)


def run(config: Config, record: Record) -> None:
    """Trains, measures, records and draws; a complete workdir is only drawn."""
    if not record.complete:
        claims, numbers = on_text(config, record)
        if config.include_recall:
            more_claims, more_numbers = on_recall(config, record)
            claims, numbers = claims + more_claims, numbers | more_numbers
        command = study.repeat_command(record, VARIANTS, DEFAULT)
        record.write_results(claims, study.with_command(numbers, command))
    on_main_process(lambda: draw(record))
    on_main_process(lambda: print(closing_words(record)))


def on_text(config: Config, record: Record) -> tuple[list[Claim], dict[str, Any]]:
    """All models on text: claims and numbers; leaves a sample in the workdir."""
    window, limit = config.model.window, config.data.eval_tokens
    mesh = make_mesh(config.train.mesh)
    tokenizer = config.tokenizer()
    source, held_out = config.data.open()
    if config.data.tokenizer == "bytes" and (found := data.find_invalid_utf8(source, 1000)):
        print(f"{found}: its bytes are read as they are")
    walk = data.walk(
        held_out,
        tokenizer,
        batch_size=config.train.batch_size,
        align=window,
        segment_length=config.data.segment_length,
        max_document_tokens=limit,
        rows=local_rows(config.train.batch_size, mesh),
    )
    texts = evals.evaluated_texts(held_out, tokenizer, limit)
    reach = window * max(model.model.depth for model in text_models(config).values())
    names = evals.far_names(held_out, tokenizer, reach, max_document_tokens=limit)
    print(
        f"text: {len(source):,} documents of {config.data.source} to train on; "
        f"{walk.num_documents:,} others are held out, {walk.num_bytes:,} bytes of them evaluated"
    )

    def score(fitted: Fitted, **kwargs: Any) -> DocumentScores:
        return evals.evaluate_documents(
            fitted.view,
            fitted.params,
            walk,
            init_carry=fitted.init_carry,
            edges=evals.doubling_edges(window, max(map(len, texts))),
            marks=names,
            mesh=mesh,
            **kwargs,
        )

    scores: dict[str, list[DocumentScores]] = {}
    sizes = {}
    for seed in range(config.num_seeds):
        for name, text_model in text_models(config, seed).items():
            fitted = fit_text(record, name, text_model, source, tokenizer, walk, score)
            scores.setdefault(name, []).append(score(fitted))
            sizes[name] = fitted.view.num_params
            if name == RECURRENT:
                for control, method in ((RESET, "reset_states"), (OTHER, "swap_states")):
                    change = functools.partial(fitted.view.apply, method=method)
                    scores.setdefault(control, []).append(score(fitted, before_segment=change))
            if not text_model.folder:
                trained = fitted.view.model(whole(fitted.params))
                # The lambda is called at once, before the loop goes on.
                on_main_process(
                    lambda: write_sample(record, trained, tokenizer, config)  # noqa: B023
                )
    folders = {name: model.folder for name, model in text_models(config).items()}
    seconds, rates = (
        {name: typical(record, folder, f"time/{metric}") for name, folder in folders.items()}
        for metric in ("step_seconds", "tokens_per_second")
    )
    mean = {name: evals.mean_scores(of_seeds) for name, of_seeds in scores.items()}
    numbers = {
        "bits per byte": {name: s.bits_per_byte for name, s in mean.items()}
        | {XZ: evals.xz_bits_per_byte(texts)},
        "bits per byte by seed": {
            name: [s.bits_per_byte for s in of_seeds] for name, of_seeds in scores.items()
        },
        "perplexity by word": {name: s.word_perplexity for name, s in mean.items()},
        "bits per token by position": {"from": list(mean[next(iter(mean))].edges)}
        | {name: list(s.loss_by_position / math.log(2)) for name, s in mean.items()},
        "bits per token of names out of reach": {
            name: s.marked_bits_per_token for name, s in mean.items()
        },
        "names out of reach": {
            "reach": reach,
            "tokens": max(s.marked_count for s in mean.values()),
        },
        "parameters": sizes,
        "training step seconds": seconds,
        "training tokens per second": rates,
        "held-out": {"documents": walk.num_documents, "bytes": walk.num_bytes},
    }
    return text_claims(scores, seconds, window), numbers


class TextModel(NamedTuple):
    """One training on text: its folder in the workdir, and what differs between the models."""

    folder: str
    model: TransformerLMConfig
    segment_length: int
    train: train.TrainConfig


def text_models(config: Config, seed: int = 0) -> dict[str, TextModel]:
    """The models that are compared on text, for one seed, counted from `train.seed`."""
    length, window = config.data.segment_length, config.model.window
    settings = dataclasses.replace(config.train, seed=config.train.seed + seed)
    own = RECURRENT if config.model.recurrent_layers else WINDOWED
    found = {own: TextModel("", config.model, length, settings)}
    if config.baseline_layers is not None:
        slide = windowed(config.model, config.baseline_layers)
        found[WINDOWED] = TextModel(FOLDERS[WINDOWED], slide, length, settings)
        if config.include_xl:
            rows = dataclasses.replace(settings, batch_size=settings.batch_size * length // window)
            found[XL] = TextModel(FOLDERS[XL], slide, window, rows)
    if seed:
        found = {
            name: model._replace(folder=f"seed{seed}/{FOLDERS[name] or 'recurrent'}")
            for name, model in found.items()
        }
    return found


def fit_text(
    record: Record,
    name: str,
    text_model: TextModel,
    source: data.Source,
    tokenizer: data.Tokenizer,
    walk: data.Walk,
    score: Callable[[Fitted], DocumentScores],
) -> Fitted:
    """Trains one of the models on text, watching its state if it has one."""
    folder, model, length, settings = text_model
    mesh = make_mesh(settings.mesh)
    stream = data.DocumentStream(
        source,
        tokenizer,
        batch_size=settings.batch_size,
        segment_length=length,
        align=model.window,
        rows=local_rows(settings.batch_size, mesh),
        seed=settings.seed,
    )
    watched = settings.watch_every and model.recurrent_layers
    return fit(
        part(record, folder, model, settings, segment_length=length),
        f"{name}, seed {settings.seed}" if folder.startswith("seed") else name,
        model,
        settings,
        stream,
        settings.batch_size * length,
        measure=lambda fitted: {"held_out/bits_per_byte": score(fitted).bits_per_byte},
        watch=state_watch(model, settings, walk, mesh) if watched else None,
    )


def state_watch(
    model: TransformerLMConfig, settings: train.TrainConfig, walk: data.Walk, mesh: Any
) -> Callable[[Params], Mapping[str, Any]]:
    """What the state of a model does while it reads the first held-out segments, by metric."""
    first = next(iter(walk))
    batch = place_rows({key: first[key] for key in ("inputs", "start")}, batch_sharding(mesh))
    _, view, init_carry = planned(model)

    @jax.jit
    def statistics(params: Params) -> Mapping[str, Any]:
        carry = init_carry(settings.batch_size)
        found = probes.state_statistics(view, params, batch["inputs"], carry, batch["start"])
        return {
            f"state_{path.split('/')[1]}/{metric}": value
            for path, values in found.items()
            for metric, value in values.items()
        }

    return statistics


def text_claims(
    scores: Mapping[str, Sequence[DocumentScores]], seconds: Mapping[str, float], window: int
) -> list[Claim]:
    """What the paper says of language models, and whether it shows here."""
    if RECURRENT not in scores or WINDOWED not in scores:
        return []
    mean = {name: evals.mean_scores(of_seeds) for name, of_seeds in scores.items()}
    seeds = len(scores[RECURRENT])
    interval = "with its 95% interval over documents" + (
        f", and that over {seeds} seeds," * (seeds > 1)
    )

    def difference(name: str) -> tuple[str, bool]:
        """Bits per byte of the recurrent model less those of another; whether it is ahead."""
        documents = evals.bits_per_byte_difference(mean[RECURRENT], mean[name])
        if seeds == 1:
            return str(documents), documents.high < 0
        pairs = zip(scores[RECURRENT], scores[name], strict=True)
        over = analysis.mean_over_seeds([a.bits_per_byte - b.bits_per_byte for a, b in pairs])
        return f"{documents} over documents, {over} over seeds", max(documents.high, over.high) < 0

    near, far = (
        mean[RECURRENT].bits_per_token(bins) - mean[WINDOWED].bits_per_token(bins)
        for bins in (slice(0, 1), slice(2, None))
    )
    ratio = seconds[RECURRENT] / seconds[WINDOWED]
    versus_xl = (
        [
            Claim(
                "It needs fewer than a Transformer-XL of the same window.",
                f"difference below 0, {interval}",
                *difference(XL),
            )
        ]
        if XL in scores
        else []
    )
    return [
        Claim(
            "The block-recurrent model needs fewer bits per byte of held-out documents than the "
            "sliding-window model.",
            f"difference below 0, {interval}",
            *difference(WINDOWED),
        ),
        *versus_xl,
        Claim(
            "Its advantage comes from beyond the window.",
            f"difference in bits per token from position {2 * window} on below 0, and below that "
            f"of the first {window}",
            f"{far:+.4f} from {2 * window} on, {near:+.4f} before {window}",
            far < min(near, 0),
        ),
        Claim(
            "The state carries what helps: reset at every segment, the same model predicts worse.",
            f"difference to it below 0, {interval}",
            *difference(RESET),
        ),
        Claim(
            "What it carries is of its document: with the state of another it predicts worse.",
            f"difference to it below 0, {interval}",
            *difference(OTHER),
        ),
        Claim(
            "Recurrence costs no more than the layer that it replaces.",
            f"step time at most {SLOWER:.2f} times that of the sliding-window model",
            f"{ratio:.2f} times",
            ratio <= SLOWER,
        ),
    ]


def on_recall(config: Config, record: Record) -> tuple[list[Claim], dict[str, Any]]:
    """Both models on the recall task: accuracy by the block that asks, of each seed."""
    recall = config.recall
    task, size = recall.task, recall.train.batch_size
    segment = task.num_blocks * task.block
    models = {
        RECURRENT: recall.model,
        WINDOWED: windowed(recall.model, config.baseline_layers or 0),
    }
    accuracy: dict[str, list[list[float]]] = {RECURRENT: [], WINDOWED: [], RESET: []}
    for seed in range(recall.num_seeds):
        settings = dataclasses.replace(recall.train, seed=recall.train.seed + seed)
        # Training draws its sequences from the seeds themselves: these are others.
        batch = task.batch(settings.seed + 1000, 0, recall.eval_sequences, recall.eval_blocks)
        rows = local_rows(size, make_mesh(settings.mesh))
        for name, model in models.items():
            fitted = fit(
                part(record, RECALL[name] + (f"_{seed}" if seed else ""), model, settings),
                f"recall, {name}" + (f", seed {settings.seed}" if seed else ""),
                model,
                settings,
                task.stream(size, settings.seed, rows),
                size * segment,
            )
            controls = {name: None}
            if name == RECURRENT:
                controls[RESET] = functools.partial(fitted.view.apply, method="reset_states")
            for control, change in controls.items():
                by_block = evals.accuracy_by_block(
                    fitted.view,
                    fitted.params,
                    batch,
                    task.block,
                    segment_length=segment,
                    before_segment=change,
                )
                accuracy[control].append(by_block.tolist())
    numbers = {"block": list(range(1, recall.eval_blocks))} | {
        name: np.mean(of_seeds, axis=0).tolist()[1:] for name, of_seeds in accuracy.items()
    }
    worst = {
        name: [
            f"{lowest:.3f} to {highest:.3f}"
            for lowest, highest in zip(
                np.min(of_seeds, axis=0)[1:], np.max(of_seeds, axis=0)[1:], strict=True
            )
        ]
        for name, of_seeds in accuracy.items()
    }
    reach = models[WINDOWED].depth
    claims = recall_claims(accuracy, task.num_blocks, recall.eval_blocks, reach)
    return claims, {"recall accuracy by block": numbers, "recall accuracy over seeds": worst}


def recall_claims(
    accuracy: Mapping[str, Sequence[Sequence[float]]], trained: int, total: int, reach: int
) -> list[Claim]:
    """The state carries an answer past the window, and nothing else does.

    `accuracy` is by model, seed and block; sequences were trained with `trained` blocks and are
    asked in `total`; `reach` windows back is as far as the windowed model sees.
    """
    seeds = len(accuracy[RECURRENT])
    each = f", with each of {seeds} seeds" * (seeds > 1)

    def low_high(name: str, blocks: range) -> tuple[float, float]:
        values = [of_seed[j] for of_seed in accuracy[name] for j in blocks]
        return min(values, default=math.nan), max(values, default=math.nan)

    def kept(text: str, blocks: range) -> Claim:
        low, _ = low_high(RECURRENT, blocks)
        return Claim(
            text,
            f"accuracy of at least {RECALLED} in each of the blocks {blocks[0]} to {blocks[-1]}"
            f"{each}",
            f"at least {low:.3f}",
            low >= RECALLED,
        )

    def at_chance(text: str, name: str, blocks: range) -> Claim:
        _, high = low_high(name, blocks)
        return Claim(
            text,
            f"accuracy of at most {AT_CHANCE} in each of the blocks {blocks.start} to "
            f"{blocks.stop - 1}{each}; chance is 0.0625",
            f"at most {high:.3f}",
            high <= AT_CHANCE,
        )

    return [
        kept("The block-recurrent model recalls what lies outside its window.", range(1, trained)),
        kept(
            "Its state carries that on to a second segment, though it was trained on one.",
            range(trained, 2 * trained),
        ),
        at_chance(
            "With the state reset between segments it no longer knows.",
            RESET,
            range(max(trained, reach + 1), total),
        ),
        at_chance(
            "The sliding-window model is at chance where its layers no longer reach.",
            WINDOWED,
            range(reach + 1, total),
        ),
    ]


class Fitted(NamedTuple):
    """A trained model: its view in shapes, its parameters, and how its carry begins."""

    view: View
    params: Params
    init_carry: Callable[[int], Any]


def fit(
    record: Record,
    name: str,
    model: TransformerLMConfig,
    config: train.TrainConfig,
    stream: data.Stream,
    tokens_per_step: int,
    measure: Callable[[Fitted], Mapping[str, float]] | None = None,
    watch: Callable[[Params], Mapping[str, Any]] | None = None,
) -> Fitted:
    """Trains one model in the workdir of `record`, or reads the one that is there."""
    build, view, init_carry = planned(model)
    measured = measure is not None and config.eval_every is not None
    shapes = Fitted(view, {}, init_carry)
    _, done = train.run_training(
        config,
        build=build,
        objective=next_token,
        stream=stream,
        workdir=record,
        init_carry=init_carry,
        tokens_per_step=tokens_per_step,
        description=name,
        evaluate=(lambda state: measure(shapes._replace(params=state.params)))
        if measured
        else None,
        watch=None if watch is None else (lambda state: jax.device_get(watch(state.params))),
    )
    return shapes._replace(params=done.state.params)


def planned(model: TransformerLMConfig) -> tuple[train.Build, View, Callable[[int], Any]]:
    """How a model is built, its view in shapes, and how its carry begins."""

    def build(rngs: nnx.Rngs) -> TransformerLM:
        return TransformerLM(model, rngs=rngs)

    view = View.abstract(lambda: build(nnx.Rngs(0)))
    return build, view, functools.partial(view.apply, view.params, method="init_carry")


def part(
    record: Record,
    folder: str,
    model: TransformerLMConfig,
    config: train.TrainConfig,
    segment_length: int | None = None,
) -> Record:
    """The record of one training, in a folder of the workdir."""
    if not folder:
        return record
    changed = {"model": to_dict(model), "train": to_dict(config)}
    if segment_length is not None:
        changed["data"] = record.config["data"] | {"segment_length": segment_length}
    return Record.create(
        record.workdir / folder,
        experiment=record.experiment,
        variant=record.variant,
        paper=record.paper,
        ignore=MAY_CHANGE,
        config=record.config | changed,
    )


def typical(record: Record, folder: str, metric: str) -> float:
    """The median of a metric over one training; NaN where it was too short to have any."""
    rows = Record.open(record.workdir / folder).metrics
    values = [row[metric] for row in rows if row.get(metric) is not None]
    return float(np.median(values)) if values else math.nan


def continuation(
    model: TransformerLM,
    tokenizer: data.Tokenizer,
    settings: SampleConfig,
    seed: int,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Pieces of text that follow the prompt, which begins a document.

    They end with the document, or before one of the strings in `stop`.
    """
    pieces = stream_text(
        model,
        tokenizer,
        [settings.prompt],
        num_tokens=settings.num_tokens,
        key=jax.random.key(seed),
        temperature=settings.temperature,
        top_p=settings.top_p,
        stop=stop,
    )
    return (piece for [piece] in pieces)


def sample(
    record: Record,
    prompt: str,
    *,
    num_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    stop: Sequence[str],
) -> None:
    """Prints the prompt and how the model goes on, while it does."""
    tokenizer = from_dict(Config, record.config).tokenizer()
    settings = SampleConfig(prompt, num_tokens, temperature, top_p)
    pieces = continuation(
        checkpoint.load_model(record, TransformerLM), tokenizer, settings, seed, stop
    )
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def write_sample(
    record: Record, model: TransformerLM, tokenizer: data.Tokenizer, config: Config
) -> None:
    """Writes the report's sample."""
    pieces = continuation(model, tokenizer, config.sample, config.train.seed)
    sample_path(record).write_text(config.sample.prompt + "".join(pieces), encoding="utf-8")


def sample_path(record: Record) -> Any:
    """Where the report's sample lies."""
    return record.workdir / "sample.txt"


def draw(record: Record) -> None:
    """Figures and report, from what lies in the workdir."""
    numbers = study.values_of(record.results["numbers"])
    shown = {
        caption: figures.save(figure, record.figures_dir / f"{name}.png")
        for name, (caption, figure) in text_figures(record, numbers).items()
    }
    results.write_report(
        record,
        title="Block-Recurrent Transformer",
        summary=summary(record, numbers),
        figures=shown,
        tables={"Held-out text": comparison(numbers), **seed_table(numbers)},
        samples={"What the block-recurrent model writes": sample_path(record).read_text("utf-8")},
        commands={"the whole run": study.repeat_command(record, VARIANTS, DEFAULT)},
    )


def text_figures(record: Record, numbers: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Caption and figure by file name."""
    positions = dict(numbers["bits per token by position"])
    starts = positions.pop("from")
    upto = [starts[1], *(2 * start for start in starts[1:])]
    trained = {name: FOLDERS[name] for name in numbers["parameters"]}
    first = next(iter(trained))
    trained[first] = ""
    found = {
        "training": (
            "Loss on the text being trained on.",
            figures.lines(
                {
                    name: Record.open(record.workdir / folder).curve("train/loss")
                    for name, folder in trained.items()
                },
                xlabel="step",
                ylabel="training loss (nats per token)",
            ),
        ),
        "by_position": (
            "Held-out text by position in the document; each point is the mean from the position "
            "before it up to its own.",
            figures.lines(
                {name: (upto, values) for name, values in positions.items()},
                xlabel="position in the document, up to",
                ylabel="bits per token",
                xscale="log2",
            ),
        ),
        "bits_per_byte": (
            "Held-out text, all positions; lower is better.",
            figures.bars(numbers["bits per byte"], xlabel="bits per byte"),
        ),
    }
    if WINDOWED in positions:
        less = {
            name: (upto, np.subtract(values, positions[WINDOWED], dtype=float))
            for name, values in positions.items()
        }
        found["gain"] = (
            "The same as a difference to the sliding window: below 0 is better than it.",
            figures.lines(
                less,
                xlabel="position in the document, up to",
                ylabel="difference (bits per token)",
                xscale="log2",
            ),
        )
    if numbers["names out of reach"]["tokens"]:
        found["names"] = (
            "Held-out names whose last mention lies more than "
            f"{numbers['names out of reach']['reach']:,} tokens back, where attention no longer "
            f"reaches; {numbers['names out of reach']['tokens']:,} tokens.",
            figures.bars(numbers["bits per token of names out of reach"], xlabel="bits per token"),
        )
    found |= state_figures(record)
    if recall := numbers.get("recall accuracy by block"):
        found["recall"] = (
            "Recall of a value that stood in block 0, by the block that asks for it, mean over "
            f"seeds; chance is 0.0625. Segments are of "
            f"{record.config['recall']['task']['num_blocks']} blocks.",
            figures.lines(
                {name: (recall["block"], recall[name]) for name in (*RECALL, RESET)},
                xlabel="block of the query",
                ylabel="accuracy",
            ),
        )
    return found


def state_figures(record: Record) -> dict[str, tuple[str, Any]]:
    """What the state did in training, where it was watched: gates, attention, size."""
    columns = sorted({name for row in record.metrics for name in row if name.startswith("state_")})
    layers = sorted({column.partition("/")[0] for column in columns})
    shown = {
        "gate": (
            "What the gate keeps of the state and takes of the candidate, of 1: mean, and the 5% "
            "and 95% quantiles of what is kept.",
            {"kept": "kept", "kept, 5%": "kept_low", "kept, 95%": "kept_high", "taken": "taken"},
            "part",
        ),
        "entropy": (
            "How evenly attention reads, as entropy over that of a plain mean: 1 is a mean.",
            {
                "states read states": "entropy_self",
                "states read tokens": "entropy_tokens",
                "tokens read states": "entropy_read",
                "tokens read tokens": "entropy_window",
            },
            "entropy, of 1",
        ),
        "size": (
            "Root mean square of the state, and its change in a block over its size.",
            {"size": "norm", "change": "change"},
            "of the state",
        ),
    }
    return {
        f"{layer}_{name}": (
            f"Layer {layer.partition('_')[2]} in training. {caption}",
            figures.lines(
                {label: record.curve(f"{layer}/{metric}") for label, metric in metrics.items()},
                xlabel="step",
                ylabel=ylabel,
            ),
        )
        for layer in layers
        for name, (caption, metrics, ylabel) in shown.items()
    }


def summary(record: Record, numbers: Mapping[str, Any]) -> str:
    """What was asked and how, in words."""
    config, held_out = record.config, numbers["held-out"]
    window, layers, seeds = (
        config["model"]["window"],
        config["baseline_layers"],
        config["num_seeds"],
    )
    question = (
        f"How well does a language model with a window of {window} tokens predict text?"
        if layers is None
        else "Does one layer with a recurrent state help a sliding-window language model beyond "
        f"its window of {window} tokens, for the cost of {layers} more of its ordinary layers?"
    )
    but_xl = " (a Transformer-XL in more, shorter rows)" * config["include_xl"]
    return (
        f"{question}\n\nEach model was trained on the same text ({config['data']['source']}) for "
        f"{config['train']['steps']:,} steps, with {seeds} seed{'s' * (seeds > 1)}, those of one "
        f"seed in the same order{but_xl}, and read {held_out['documents']:,} held-out documents "
        f"({held_out['bytes']:,} bytes), each from its start."
    )


def comparison(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The models and xz side by side."""
    rows = [
        {
            "model": name,
            "bits per byte": numbers["bits per byte"][name],
            "perplexity by word": numbers["perplexity by word"][name],
            "parameters": numbers["parameters"][name],
            "training tokens/s": rounded(numbers["training tokens per second"][name]),
        }
        for name in numbers["parameters"]
    ]
    return [*rows, {"model": XZ, "bits per byte": numbers["bits per byte"][XZ]}]


def seed_table(numbers: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Bits per byte of every seed, where there are several."""
    by_seed = numbers["bits per byte by seed"]
    rows = [
        {"model": name} | {f"seed {i}": value for i, value in enumerate(values)}
        for name, values in by_seed.items()
    ]
    return {"Bits per byte by seed": rows} if len(rows[0]) > 2 else {}


def rounded(value: float | None) -> int | None:
    """A rate as a whole number; a lost one stays lost."""
    return None if value is None else round(value)


def closing_words(record: Record) -> str:
    """What a newcomer wants to know at the end."""
    numbers = study.values_of(record.results["numbers"])
    held_out, workdir = numbers["held-out"], record.workdir
    call = f"{study.python_command()} -m experiments.{record.experiment}"
    config = f"--config=configs/{record.experiment}.py:tiny"
    return "\n".join(
        [
            "",
            f"{held_out['documents']:,} documents that no model has seen, "
            f"{held_out['bytes']:,} bytes; fewer bits are better:",
            "",
            results.table(comparison(numbers)),
            "",
            *results.claim_lines(record.claims),
            "",
            f"report   {record.report_path}",
            f"sample   {sample_path(record)}",
            "models   "
            + ", ".join(
                str(workdir / (FOLDERS[name] if i else "") / "checkpoints")
                for i, name in enumerate(numbers["parameters"])
            ),
            "",
            "what to try next",
            f'  let it write:       {call} --workdir={workdir} --sample="def "',
            f"  train for longer:   {call} {config} --workdir=runs/tiny",
            f"  on your own files:  {call} {config} --config.data.source=text:FOLDER "
            "--workdir=runs/mine",
        ]
    )


def plan(config: Config, pod: planning.Pod | None = None) -> list[str]:
    """Size, memory, sharding and length of the trainings on text; the pod is for the first."""
    config.tokenizer()
    types = {"inputs": np.int32, "targets": np.int32, "mask": np.bool_, "start": np.bool_}
    lines = []
    for i, (name, text_model) in enumerate(text_models(config).items()):
        build, _, init_carry = planned(text_model.model)
        shape = (text_model.train.batch_size, text_model.segment_length)
        batch = {key: jax.ShapeDtypeStruct(shape, dtype) for key, dtype in types.items()}
        described = train.make_setup(
            text_model.train,
            build=build,
            init_carry=init_carry,
            tokens_per_step=math.prod(shape),
            objective=next_token,
            batch=batch,
        ).describe(None if i else pod)
        lines += [f"{name}:", *(f"  {line}" for line in described)]
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see `jaxlab.study.main`."""
    study.main(
        run,
        plan=plan,
        sample=sample,
        paper=PAPER,
        ignore=MAY_CHANGE,
        argv=argv,
        sample_flags={
            "num_tokens": 512,
            "temperature": 0.8,
            "top_p": 0.95,
            "seed": 0,
            "stop": (),
        },
    )


if __name__ == "__main__":
    main()
