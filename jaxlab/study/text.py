"""What studies of language models share: numbers, figures and a table of scores; sampling."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxlab.core import Objective, on_main_process
from jaxlab.data import DocumentStream, Source, Tokenizer, token_batch_shapes
from jaxlab.evals import DocumentScores, mean_scores
from jaxlab.results import Record
from jaxlab.sampling import stream_text
from jaxlab.study.page import Bars, Lines
from jaxlab.study.repeat import python_command
from jaxlab.study.training import Training, open_record
from jaxlab.train import TrainConfig


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How a model continues a prompt.

    Attributes:
      prompt: text to continue; empty begins a document.
      num_tokens: length of the continuation.
      temperature: 0 takes the likeliest token.
      top_p: nucleus; 1 keeps all tokens.
    """

    prompt: str = "import "
    num_tokens: int = 512
    temperature: float = 0.8
    top_p: float = 0.95


def continuation(
    model: Any, tokenizer: Tokenizer, settings: SampleConfig, seed: int, stop: Sequence[str] = ()
) -> Iterator[str]:
    """Pieces of text that follow a prompt, which begins a document.

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


def text_sampler(load: Callable[[Record], tuple[Any, Tokenizer]]) -> Callable[..., None]:
    """The function of `--sample`: prints a prompt and how a trained model goes on, while it does.

    Args:
      load: opens the model and the tokenizer of a study's record.

    Returns:
      `sample(record, prompt, **SAMPLE_FLAGS)`, for `main`.
    """

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
        model, tokenizer = load(record)
        settings = SampleConfig(prompt, num_tokens, temperature, top_p)
        pieces = continuation(model, tokenizer, settings, seed, stop)
        print(prompt, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()

    return sample


TEXT_SAMPLE_FLAGS: dict[str, Any] = {
    f.name: f.default for f in dataclasses.fields(SampleConfig) if f.name != "prompt"
} | {"seed": 0, "stop": ()}
"""The flags of a `text_sampler`, with their defaults."""


def text_training(
    name: str,
    model: Any,
    objective: Objective,
    settings: TrainConfig,
    *,
    source: Callable[[], Source],
    tokenizer: Callable[[], Tokenizer],
    segment_length: int,
    align: int | None = None,
    data: Mapping[str, Any],
    **fields: Any,
) -> Training:
    """A training of a language model with a carry, on segments of documents.

    Args:
      name, model, objective, settings: see `Training`.
      source: opens the documents.
      tokenizer: opens the tokenizer.
      segment_length: tokens of a row in one step.
      align: documents start at multiples of it; by default anywhere.
      data: what tells the documents from others, as plain JSON.
      **fields: further fields of `Training`.
    """

    def stream(settings: TrainConfig, rows: tuple[int, ...]) -> DocumentStream:
        return DocumentStream(
            source(),
            tokenizer(),
            batch_size=settings.batch_size,
            segment_length=segment_length,
            align=align or 1,
            rows=rows,
            seed=settings.seed,
        )

    return Training(
        name=name,
        model=model,
        objective=objective,
        batch=token_batch_shapes(settings.batch_size, segment_length),
        stream=stream,
        settings=settings,
        data={**data, "segment_length": segment_length},
        tokens_per_step=settings.batch_size * segment_length,
        has_carry=True,
        **fields,
    )


def score_numbers(scores: Mapping[str, Sequence[DocumentScores]]) -> dict[str, Any]:
    """Numbers of `results.json` from scores of held-out documents, means over seeds.

    Args:
      scores: by model, one for each seed; all of the same documents.
    """
    mean = {name: mean_scores(of_seeds) for name, of_seeds in scores.items()}
    first = next(iter(mean.values()))
    by_position = {name: (s.loss_by_position / math.log(2)).tolist() for name, s in mean.items()}
    return {
        "held_out/bits_per_byte": {name: s.bits_per_byte for name, s in mean.items()},
        "held_out/bits_per_byte_by_seed": {
            name: [s.bits_per_byte for s in of_seeds] for name, of_seeds in scores.items()
        },
        "held_out/word_perplexity": {name: s.word_perplexity for name, s in mean.items()},
        "held_out/bits_per_token_by_position": {"from": list(first.edges)} | by_position,
        "held_out/bits_per_token_of_far_names": {
            name: s.marked_bits_per_token for name, s in mean.items()
        },
        "held_out/far_names": max(s.marked_count for s in mean.values()),
        "held_out/documents": len(first.documents),
        "held_out/bytes": first.num_bytes,
    }


def training_numbers(trainings: Sequence[Training], record: Record) -> dict[str, Any]:
    """The median time of a step and rate of the first seed of each training, by group."""
    records = {training.group: open_record(training, record) for training in trainings}
    return {
        f"time/{metric}": {name: each.median(f"time/{metric}") for name, each in records.items()}
        for metric in ("step_seconds", "tokens_per_second")
    }


def text_figures(
    numbers: Mapping[str, Any], reach: int, baseline: str | None = None
) -> dict[str, Lines | Bars]:
    """Figures of `score_numbers`, by file name.

    Args:
      numbers: see `score_numbers`.
      reach: tokens beyond which a mention of a name counts as far.
      baseline: the model to which others are shown as a difference.
    """
    positions = dict(numbers["held_out/bits_per_token_by_position"])
    starts = positions.pop("from")
    upto = [starts[1], *(2 * start for start in starts[1:])]
    lines = functools.partial(Lines, xlabel="position in the document, up to", xscale="log2")
    figures: dict[str, Lines | Bars] = {
        "by_position": lines(
            "Held-out text by position in the document; each point is the mean from the position "
            "before it up to its own.",
            {name: (upto, values) for name, values in positions.items()},
            ylabel="bits per token",
        ),
        "bits_per_byte": Bars(
            "Held-out text, all positions; lower is better.",
            numbers["held_out/bits_per_byte"],
            xlabel="bits per byte",
        ),
    }
    if baseline in positions:
        less = {
            name: (upto, np.subtract(values, positions[baseline], dtype=float))
            for name, values in positions.items()
        }
        figures["gain"] = lines(
            f"The same as a difference to the {baseline}: below 0 is better than it.",
            less,
            ylabel="difference (bits per token)",
        )
    if numbers["held_out/far_names"]:
        figures["names"] = Bars(
            f"Held-out names last mentioned more than {reach:,} tokens back, where attention no "
            f"longer reaches; {numbers['held_out/far_names']:,} tokens.",
            numbers["held_out/bits_per_token_of_far_names"],
            xlabel="bits per token",
        )
    return figures


def state_figures(training: Training, record: Record) -> dict[str, Lines]:
    """What a recurrent state did in training, where it was watched: gates, attention, size.

    The metrics are those of `probes.state_metrics`.
    """
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
    rows = open_record(training, record)
    layers = sorted({n.partition("/")[0] for row in rows.metrics for n in row if n[:6] == "state_"})
    return {
        f"{layer}_{name}": Lines(
            f"Layer {layer.partition('_')[2]} in training. {caption}",
            {label: rows.curve(f"{layer}/{metric}") for label, metric in metrics.items()},
            xlabel="step",
            ylabel=ylabel,
        )
        for layer in layers
        for name, (caption, metrics, ylabel) in shown.items()
    }


def loss_curves(trainings: Sequence[Training], record: Record) -> Lines:
    """The training loss of the first seed of each training."""
    curves = {each.group: open_record(each, record).curve("train/loss") for each in trainings}
    ylabel = "training loss (nats per token)"
    return Lines("Loss on the text being trained on.", curves, xlabel="step", ylabel=ylabel)


def text_tables(
    numbers: Mapping[str, Any], names: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """The trained models side by side, below them other compressors; and every seed, if several.

    Args:
      numbers: see `score_numbers` and `training_numbers`, with `model/parameters`.
      names: the models.
    """
    bits, rates = numbers["held_out/bits_per_byte"], numbers["time/tokens_per_second"]
    rows: list[dict[str, Any]] = [
        {
            "model": name,
            "bits per byte": bits[name],
            "perplexity by word": numbers["held_out/word_perplexity"][name],
            "parameters": numbers["model/parameters"][name],
            "training tokens/s": None if rates[name] is None else round(rates[name]),
        }
        for name in names
    ]
    others = bits.keys() - numbers["held_out/word_perplexity"].keys()
    rows += [{"model": name, "bits per byte": bits[name]} for name in sorted(others)]
    by_seed = [
        {"model": name} | {f"seed {i}": value for i, value in enumerate(values)}
        for name, values in numbers["held_out/bits_per_byte_by_seed"].items()
    ]
    tables = {"Held-out text": rows}
    return tables | ({"Bits per byte by seed": by_seed} if len(by_seed[0]) > 2 else {})


def text_hints(record: Record, sample: str) -> list[str]:
    """Where the sample is, and what to try next with a study of language models.

    Args:
      record: of the study.
      sample: the name of the sample's file in the workdir.
    """
    call = f"{python_command()} -m experiments.{record.experiment}"
    tiny = f"{call} --config=configs/{record.experiment}.py:tiny"
    return [
        f"sample   {record.workdir / sample}",
        "",
        "what to try next",
        f'  let it write:       {call} --workdir={record.workdir} --sample="def "',
        f"  train for longer:   {tiny} --workdir=runs/tiny",
        f"  on your own files:  {tiny} --config.data.source=text:FOLDER --workdir=runs/mine",
    ]


def write_text(
    path: Any, model: Any, tokenizer: Tokenizer, settings: SampleConfig, seed: int
) -> None:
    """Writes a prompt with its continuation to a file, on the main process."""

    def write() -> None:
        pieces = continuation(model, tokenizer, settings, seed)
        path.write_text(settings.prompt + "".join(pieces), encoding="utf-8")

    on_main_process(write)
