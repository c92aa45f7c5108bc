"""Block-Recurrent Transformers (Hutchins et al., NeurIPS 2022, arXiv:2203.07852).

Claim: one layer with a recurrent state, read and written once a window, lets a sliding-window
language model use what lies far beyond its window, for the cost of about one more layer.

    python -m experiments.block_recurrent --config=configs/block_recurrent.py:tiny \\
        --workdir=runs/tiny
    python -m experiments.block_recurrent --workdir=runs/tiny --sample="def "

Trains the block-recurrent model and a sliding-window model with one layer more on the same text in
the same order, and measures both on held-out documents: in all, by position in the document, and
with the state taken away at every segment. Trains both kinds on a task that asks for what stood
outside the window, too (experiments/recall.py).

`tiny` takes about 20 minutes on two cores. To expect: the recall claims hold; on text the sliding
window stays ahead by about 0.02 bits per byte after so few steps (docs/block_recurrent_results.md).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from configs.block_recurrent import Config
from configs.recall import windowed
from experiments import recall
from experiments.recall import PAPER, RECURRENT, RESET, WINDOWED, reset_states
from jaxlab import checkpoint, data, evals, probes, study
from jaxlab.core import View, from_dict, make_mesh, to_dict, whole
from jaxlab.evals import DocumentScores, HeldOutText
from jaxlab.models import TransformerLM, TransformerLMConfig
from jaxlab.objectives import next_token
from jaxlab.results import Claim, Record

XL, OTHER, XZ = "Transformer-XL", "block-recurrent, state of another", "xz -9e"
NAMES = {RECURRENT: "block_recurrent", WINDOWED: "sliding_window", XL: "transformer_xl"}
CONTROLS = {RESET: "reset/scores", OTHER: "swapped/scores"}
SAMPLE, SLOWER = "sample.txt", 1.10  # SLOWER: times the step of the sliding-window model


def trainings(config: Config) -> list[study.Training]:
    """The models that are compared on text, then those of the recall task."""
    return on_text(config) + (recall.trainings(config.recall) if config.include_recall else [])


def on_text(config: Config) -> list[study.Training]:
    """The models that are compared on text; their groups are their names for people."""
    config.tokenizer()
    own = RECURRENT if config.model.recurrent_layers else WINDOWED
    length, rows, window = config.data.segment_length, config.train.batch_size, config.model.window
    models = {own: (config.model, length, rows)}
    if config.baseline_layers is not None:
        slide = windowed(config.model, config.baseline_layers)
        models[WINDOWED] = slide, length, rows
        if config.include_xl:
            models[XL] = slide, window, rows * length // window
    return [training(config, group, *parts) for group, parts in models.items()]


def training(
    config: Config, group: str, model: TransformerLMConfig, length: int, rows: int
) -> study.Training:
    """A model that reads `rows` rows of segments of a length."""

    def bits(view: View) -> dict[str, float]:
        return {"held_out/bits_per_byte": held_out_text(config).score(view).bits_per_byte}

    def states(view: View) -> Mapping[str, Any]:
        first = held_out_text(config).first_segments(config.train.mesh)
        return probes.state_metrics(view, first["inputs"], first["start"])

    return study.text_training(
        NAMES[group],
        model,
        next_token,
        dataclasses.replace(config.train, batch_size=rows),
        source=lambda: opened(config)[0],
        tokenizer=config.tokenizer,
        segment_length=length,
        align=model.window,
        data=to_dict(config.data),
        group=group,
        evaluate=bits if config.train.eval_every else None,
        watch=states if model.recurrent_layers else None,
    )


@functools.lru_cache(maxsize=1)
def opened(config: Config) -> tuple[data.Source, data.Source]:
    """The training and the held-out documents."""
    source, held_out = config.data.open()
    if config.data.tokenizer == "bytes" and (bad := data.find_invalid_utf8(source, 1000)):
        print(f"{bad}: its bytes are read as they are")
    return source, held_out


def reach_of(config: Config) -> int:
    """How many tokens back the deepest model's attention reaches."""
    return config.model.window * (config.model.depth + (config.baseline_layers or 0))


@functools.lru_cache(maxsize=1)
def held_out_text(config: Config) -> HeldOutText:
    """The held-out documents as all models read them."""
    return HeldOutText.of(
        opened(config)[1],
        config.tokenizer(),
        window=config.model.window,
        reach=reach_of(config),
        batch_size=config.train.batch_size,
        segment_length=config.data.segment_length,
        mesh=make_mesh(config.train.mesh),
        max_document_tokens=config.data.eval_tokens,
    )


def run(config: Config, record: Record) -> study.Results:
    """Trains, measures and judges; leaves a sample in the workdir."""
    models, text = on_text(config), held_out_text(config)
    walk = text.walk
    print(
        f"text: {len(opened(config)[0]):,} documents of {config.data.source} to train on; "
        f"{walk.num_documents:,} others are held out, {walk.num_bytes:,} bytes of them evaluated"
    )

    def measurements(model: study.Training) -> study.Measurements:
        def scored(view: View, change: Any = None) -> dict[str, Any]:
            return evals.scores_to_json(text.score(view, change))

        controls = {
            "reset/scores": lambda view: scored(view, reset_states),
            "swapped/scores": lambda view: scored(view, swap_states),
        }
        return {"held_out/scores": scored} | (controls if model.group == RECURRENT else {})

    settings = {"data": to_dict(config.data), "rows": config.train.batch_size}
    rows = study.measure(models, record, config.num_seeds, measurements, settings)
    recalled = recall.measure(config.recall, record) if config.include_recall else None
    results = judge(config, models, rows, record)
    view = study.fit(models[0], record)
    model, seed = view.model(whole(view.params)), config.train.seed
    study.write_text(record.workdir / SAMPLE, model, config.tokenizer(), config.sample, seed)
    if recalled is None:
        return results
    more = recall.judge(config.recall, recalled)
    return study.Results([*results.claims, *more.claims], {**results.numbers, **more.numbers})


def swap_states(view: View, carry: Any) -> Any:
    """The carry with the recurrent states of another row's document."""
    return view.apply(view.params, carry, method="swap_states")


def judge(
    config: Config, models: Sequence[study.Training], rows: study.Rows, record: Record
) -> study.Results:
    """Claims and numbers of the models on text."""
    metrics = {model.group: (model.name, "held_out/scores") for model in models}
    if RECURRENT in metrics:
        metrics |= {control: (NAMES[RECURRENT], metric) for control, metric in CONTROLS.items()}
    scores = {
        name: [evals.scores_from_json(values) for values in rows.values_of(*metric)]
        for name, metric in metrics.items()
    }
    numbers = study.score_numbers(scores) | study.training_numbers(models, record)
    numbers["held_out/bits_per_byte"] |= {XZ: held_out_text(config).xz_bits_per_byte()}
    numbers["model/parameters"] = {each.group: each.setup.view.num_params for each in models}
    return study.Results(
        claims_of(scores, numbers["time/step_seconds"], config.model.window), numbers
    )


def claims_of(
    scores: Mapping[str, Sequence[DocumentScores]], seconds: Mapping[str, float], window: int
) -> list[Claim]:
    """What the paper says of language models, and whether it shows here."""
    if RECURRENT not in scores or WINDOWED not in scores:
        return []
    seeds = len(scores[RECURRENT])
    interval = "with its 95% interval over documents" + (
        f", and that over {seeds} seeds," * (seeds > 1)
    )

    def ahead_of(name: str, claim: str, what: str = "difference") -> Claim:
        difference = evals.bits_per_byte_over_seeds(scores[RECURRENT], scores[name])
        expected = f"{what} below 0, {interval}"
        return Claim(claim, expected, str(difference), difference.is_below_zero)

    mean = {name: evals.mean_scores(of_seeds) for name, of_seeds in scores.items()}
    near, far = (
        mean[RECURRENT].bits_per_token(bins) - mean[WINDOWED].bits_per_token(bins)
        for bins in (slice(0, 1), slice(2, None))
    )
    ratio = seconds[RECURRENT] / seconds[WINDOWED]
    versus_xl = "It needs fewer than a Transformer-XL of the same window."
    return [
        ahead_of(
            WINDOWED,
            "The block-recurrent model needs fewer bits per byte of held-out documents than the "
            "sliding-window model.",
        ),
        *([ahead_of(XL, versus_xl)] if XL in scores else []),
        Claim(
            "Its advantage comes from beyond the window.",
            f"difference in bits per token from position {2 * window} on below 0, and below that "
            f"of the first {window}",
            f"{far:+.4f} from {2 * window} on, {near:+.4f} before {window}",
            far < min(near, 0),
        ),
        ahead_of(
            RESET,
            "The state carries what helps: reset at every segment, the same model predicts worse.",
            "difference to it",
        ),
        ahead_of(
            OTHER,
            "What it carries is of its document: with the state of another it predicts worse.",
            "difference to it",
        ),
        Claim(
            "Recurrence costs no more than the layer that it replaces.",
            f"step time at most {SLOWER:.2f} times that of the sliding-window model",
            f"{ratio:.2f} times",
            ratio <= SLOWER,
        ),
    ]


def page(record: Record, numbers: Mapping[str, Any]) -> study.Page:
    """Figures of text, state and recall; the models side by side; what was asked."""
    config = from_dict(Config, record.config)
    window, layers, seeds = config.model.window, config.baseline_layers, config.num_seeds
    models = on_text(config)
    figures = study.text_figures(numbers, reach_of(config), baseline=WINDOWED)
    figures["training"] = study.loss_curves(models, record)
    figures |= study.state_figures(models[0], record)
    tables = study.text_tables(numbers, [model.group for model in models])
    if config.include_recall:
        figures["recall"] = recall.figure(numbers, config.recall.task.num_blocks)
        tables["Recall: accuracy by the block that asks"] = recall.table(numbers)
    question = (
        f"How well does a language model with a window of {window} tokens predict text?"
        if layers is None
        else "Does one layer with a recurrent state help a sliding-window language model beyond "
        f"its window of {window} tokens, for the cost of {layers} more of its ordinary layers?"
    )
    documents = f"{numbers['held_out/documents']:,} documents"
    size = f"{numbers['held_out/bytes']:,} bytes"
    sample = (record.workdir / SAMPLE).read_text("utf-8")
    return study.Page(
        "Block-Recurrent Transformer",
        f"{question}\n\nEach model was trained on the same text ({config.data.source}) for "
        f"{config.train.steps:,} steps, with {seeds} seed(s), those of one seed in the same order"
        f"{' (a Transformer-XL in more, shorter rows)' * config.include_xl}, and read {documents} "
        f"held out, {size}, each from its start.",
        figures=figures,
        tables=tables,
        samples={f"What the {models[0].group} model writes": sample},
        introduction=f"{documents} that no model has seen, {size}; fewer bits are better:",
        hints=study.text_hints(record, SAMPLE),
    )


def load(record: Record) -> tuple[TransformerLM, data.Tokenizer]:
    """The first model of a workdir, and its tokenizer, for `--sample`."""
    config = from_dict(Config, record.config)
    folder = record.workdir / on_text(config)[0].folder
    return checkpoint.load_model(folder, TransformerLM), config.tokenizer()


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see `jaxlab.study.main`."""
    grows = "num_seeds", "recall.num_seeds", "include_xl", "include_recall", "sample"
    options = {"sample": study.text_sampler(load), "sample_flags": study.TEXT_SAMPLE_FLAGS}
    options |= {"train_sections": ("train", "recall.train"), "paper": PAPER, "argv": argv}
    study.main(run, page=page, trainings=trainings, grows=grows, **options)


if __name__ == "__main__":
    main()
