"""Recall over many windows, with Block-Recurrent Transformers (arXiv:2203.07852).

Claim: the recurrent state carries an answer past the window of attention, and nothing else does.

    python -m experiments.recall --config=configs/recall.py:tiny --workdir=runs/recall

Trains the block-recurrent model and a sliding-window model with one layer more on sequences whose
first block holds pairs of a key and a value, and which ask for a value in every later block. Both
are measured by how far back the answer lies, in sequences longer than those of the training.

`tiny` takes about three minutes of one core. To expect: all claims hold.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from configs.recall import RecallConfig, windowed
from jaxlab import data, evals, study, train
from jaxlab.core import View
from jaxlab.models import TransformerLMConfig
from jaxlab.objectives import next_token
from jaxlab.results import Claim, Record

PAPER = "Block-Recurrent Transformers, Hutchins et al., NeurIPS 2022, arXiv:2203.07852"
RECURRENT, WINDOWED = "block-recurrent", "sliding window"
RESET = "block-recurrent, state reset"
NAMES = {RECURRENT: "recall/block_recurrent", WINDOWED: "recall/sliding_window"}
ACCURACY, AFTER_RESET = "recall/accuracy_by_block", "recall_reset/accuracy_by_block"
# Accuracies of the claims; chance is 1/16.
RECALLED, AT_CHANCE = 0.95, 0.12


def trainings(config: RecallConfig) -> list[study.Training]:
    """The block-recurrent and the sliding-window model."""
    rows, length = config.train.batch_size, config.task.num_blocks * config.task.block
    batch = data.token_batch_shapes(rows, length)

    def stream(settings: train.TrainConfig, rows: tuple[int, ...]) -> data.RecallStream:
        return config.task.stream(settings.batch_size, settings.seed, rows)

    def training(group: str, model: TransformerLMConfig) -> study.Training:
        return study.Training(
            name=NAMES[group],
            model=model,
            objective=next_token,
            batch=batch | {"position": batch["inputs"]},
            stream=stream,
            settings=config.train,
            data=config.task,
            group=group,
            tokens_per_step=rows * length,
            has_carry=True,
        )

    slide = windowed(config.model, config.baseline_layers)
    return [training(RECURRENT, config.model), training(WINDOWED, slide)]


def run(config: RecallConfig, record: Record) -> study.Results:
    """Trains, measures and judges."""
    return judge(config, measure(config, record))


def measure(config: RecallConfig, record: Record) -> study.Rows:
    """Accuracy by the block that asks, of each model and seed, and with the state reset."""
    task = config.task

    def measurements(training: study.Training) -> study.Measurements:
        # Training draws its sequences from the seeds themselves: these are others.
        seed = training.settings.seed + 1000
        batch = functools.partial(task.batch, seed, 0, config.eval_sequences, config.eval_blocks)

        def accuracy(view: View, change: Any = None) -> list[float]:
            return evals.accuracy_by_block(
                view,
                batch(),
                task.block,
                segment_length=task.num_blocks * task.block,
                before_segment=change,
            ).tolist()

        if training.group == WINDOWED:
            return {ACCURACY: accuracy}
        return {ACCURACY: accuracy, AFTER_RESET: lambda view: accuracy(view, reset_states)}

    settings = {"sequences": config.eval_sequences, "blocks": config.eval_blocks}
    return study.measure(trainings(config), record, config.num_seeds, measurements, settings)


def reset_states(view: View, carry: Any) -> Any:
    """The carry with the recurrent state of a new document."""
    return view.apply(view.params, carry, method="reset_states")


def judge(config: RecallConfig, rows: study.Rows) -> study.Results:
    """Claims and numbers."""
    accuracy = {
        RECURRENT: rows.values_of(NAMES[RECURRENT], ACCURACY),
        WINDOWED: rows.values_of(NAMES[WINDOWED], ACCURACY),
        RESET: rows.values_of(NAMES[RECURRENT], AFTER_RESET),
    }
    ranges = {
        name: [f"{low:.3f} to {high:.3f}" for low, high in zip(*ends(of_seeds), strict=True)][1:]
        for name, of_seeds in accuracy.items()
    }
    numbers = {
        "recall/block": list(range(1, config.eval_blocks)),
        ACCURACY: {n: np.mean(values, axis=0).tolist()[1:] for n, values in accuracy.items()},
        "recall/accuracy_over_seeds": ranges,
    }
    reach = config.model.depth + config.baseline_layers
    return study.Results(
        claims_of(accuracy, config.task.num_blocks, config.eval_blocks, reach), numbers
    )


def ends(of_seeds: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """The least and the most over seeds, by block."""
    return np.min(of_seeds, axis=0), np.max(of_seeds, axis=0)


def claims_of(
    accuracy: Mapping[str, Sequence[Sequence[float]]], trained: int, total: int, reach: int
) -> list[Claim]:
    """The state carries an answer past the window, and nothing else does.

    `accuracy` is by model, seed and block; sequences were trained with `trained` blocks and are
    asked in `total`; the windowed model sees `reach` windows back.
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


def figure(numbers: Mapping[str, Any], segment: int) -> study.Lines:
    """Accuracy by the block that asks."""
    return study.Lines(
        "Recall of a value that stood in block 0, by the block that asks for it, mean over seeds; "
        f"chance is 0.0625. Segments are of {segment} blocks.",
        {name: (numbers["recall/block"], values) for name, values in numbers[ACCURACY].items()},
        xlabel="block of the query",
        ylabel="accuracy",
    )


def table(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accuracy in the first block that asks, and in some later ones."""
    blocks = numbers["recall/block"]
    shown = [b for b in (1, 2, 3, 6, 12, blocks[-1]) if b <= blocks[-1]]
    return [
        {"model": name} | {f"block {b}": round(values[b - 1], 3) for b in shown}
        for name, values in numbers[ACCURACY].items()
    ]


def page(record: Record, numbers: Mapping[str, Any]) -> study.Page:
    """One figure, one table, and what was asked."""
    config = record.config
    summary = (
        "Does a recurrent state carry an answer past the window of attention?\n\nBoth models were "
        f"trained on sequences of {config['task']['num_blocks']} blocks of one window, with "
        f"{config['num_seeds']} seed(s), and asked in sequences of {config['eval_blocks']}."
    )
    return study.Page(
        "Recall over many windows",
        summary,
        figures={"recall": figure(numbers, config["task"]["num_blocks"])},
        tables={"Accuracy by the block that asks": table(numbers)},
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see `jaxlab.study.main`."""
    grows = "num_seeds", "eval_sequences", "eval_blocks"
    study.main(run, page=page, trainings=trainings, grows=grows, paper=PAPER, argv=argv)


if __name__ == "__main__":
    main()
