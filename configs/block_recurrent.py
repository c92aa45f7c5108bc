"""Configs of `experiments/block_recurrent.py`: the Block-Recurrent Transformer, arXiv 2203.07852.

Costs were measured on two cores of a shared x86-64 machine and include compilation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from configs import recall
from configs.recall import RecallConfig
from jaxlab.core import MeshConfig, UsageError
from jaxlab.data import Source, Tokenizer, open_source, open_tokenizer, split
from jaxlab.models import ROWS, SIZES, TransformerLMConfig, block_recurrent_config
from jaxlab.study import SampleConfig
from jaxlab.train import OptimizerConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The text to read, and how.

    Attributes:
      source: `stdlib`, `text:/path/to/folder`, `repositories:/path/to/folder:*.py,*.c`,
        `tex:/path/to/folder` or `tfds:pg19/train`; see `jaxlab.data.open_source`.
      data_dir: the folder of the tensorflow_datasets data sets.
      held_out: a separate source for evaluation; None holds out whole documents of `source`.
      held_out_rate: the fraction of documents to hold out.
      tokenizer: `bytes` or `sentencepiece:/path/to.model`.
      segment_length: tokens per row and step, a multiple of the model's window.
      eval_tokens: evaluate only this many tokens at the start of each held-out document; None: all.
    """

    source: str = "stdlib"
    data_dir: str | None = None
    held_out: str | None = None
    held_out_rate: float = 0.1
    tokenizer: str = "bytes"
    segment_length: int = 1024
    eval_tokens: int | None = 32_768

    def open(self) -> tuple[Source, Source]:
        """Opens the training and the held-out documents."""
        source = open_source(self.source, data_dir=self.data_dir)
        if self.held_out is None:
            return split(source, self.held_out_rate)
        return source, open_source(self.held_out, data_dir=self.data_dir)


@dataclasses.dataclass(frozen=True)
class Config:
    """The study: language models of equal cost on the same text, and the recall task.

    Attributes:
      model: the block-recurrent model, or any model with a window if it is trained alone.
      baseline_layers: extra layers of the sliding-window model, instead of recurrence; 1 is the
        paper's comparison at equal cost (table 1: Rec:fixed:skip and Slide:13L). None: no baseline.
      include_xl: also train a Transformer-XL: the sliding-window model on segments of one window,
        with as many more rows for the same number of tokens per step. It reads other rows.
      num_seeds: number of trainings per model, with `train.seed` and the following seeds.
      data, train: settings for all models; with the same seed they see the same text in order.
      include_recall: whether the run includes the recall task.
      recall: see `configs/recall.py`.
      sample: see `jaxlab.study.SampleConfig`.

    Raises:
      UsageError: inconsistent fields.
    """

    model: TransformerLMConfig = TransformerLMConfig()
    baseline_layers: int | None = 1
    include_xl: bool = False
    num_seeds: int = 1
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    include_recall: bool = True
    recall: RecallConfig = RecallConfig()
    sample: SampleConfig = SampleConfig()

    def __post_init__(self):
        window, length = self.model.window, self.data.segment_length
        alone = self.baseline_layers is None and not self.include_recall
        if window is None or not (self.model.recurrent_layers or alone):
            raise UsageError(
                f"model.window={window} and model.recurrent_layers={self.model.recurrent_layers}; "
                "the study needs a window and at least one recurrent layer, e.g. -2"
            )
        if length < 1 or length % window:
            low = max(length // window, 1) * window
            raise UsageError(
                f"data.segment_length={length} is not a multiple of model.window={window}; "
                f"nearest: {low}, {low + window}"
            )
        if self.baseline_layers is not None and self.baseline_layers < 0:
            raise UsageError(f"baseline_layers={self.baseline_layers}; expected 0 or more")
        if self.baseline_layers is None and (self.include_xl or self.include_recall):
            raise UsageError(
                "baseline_layers=None trains model alone; set include_xl=False and "
                "include_recall=False"
            )
        if self.num_seeds < 1:
            raise UsageError(f"num_seeds={self.num_seeds}; expected 1 or more")

    def tokenizer(self) -> Tokenizer:
        """Opens the tokenizer.

        Raises:
          UsageError: it cannot be opened, or has more ids than the model.
        """
        tokenizer = open_tokenizer(self.data.tokenizer)
        if tokenizer.vocab_size > self.model.vocab_size:
            raise UsageError(
                f"model.vocab_size={self.model.vocab_size} is below the {tokenizer.vocab_size} ids "
                f"of tokenizer {self.data.tokenizer!r}; set --config.model.vocab_size="
                f"{tokenizer.vocab_size}"
            )
        return tokenizer


def tiny() -> Config:
    """Both models on the standard library's source, and recall: about 20 minutes on two cores."""
    # Width, heads and S = W have the paper's proportions at an eighth of its width; the recurrent
    # layer is the third of four, the paper's the tenth of twelve. Adafactor is the paper's
    # optimizer; its rate and momentum, and GEGLU (ReLU in the paper), were chosen by the training
    # loss of short runs of the block-recurrent model. The windowed model was not tuned separately.
    return Config(
        model=TransformerLMConfig(
            vocab_size=260,
            width=128,
            depth=4,
            num_heads=4,
            mlp_dim=384,
            activation="gelu",
            gated=True,
            window=128,
            recurrent_layers=(-2,),
            num_states=128,
            head_scale=4.0,
        ),
        data=DataConfig(segment_length=1024, eval_tokens=32_768),
        train=TrainConfig(
            steps=400,
            batch_size=4,
            log_every=10,
            watch_every=20,
            save_every=200,
            eval_every=200,
            optimizer=OptimizerConfig(
                name="adafactor", learning_rate=0.1, warmup_steps=40, momentum=0.8
            ),
        ),
        recall=recall.tiny(),
    )


def demo() -> Config:
    """A shorter tiny with one seed of recall, for `make demo`: about four minutes."""
    base = tiny()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, depth=3, window=64, num_states=64),
        data=dataclasses.replace(base.data, segment_length=512, eval_tokens=8_192),
        train=dataclasses.replace(
            base.train,
            steps=150,
            batch_size=4,
            log_every=5,
            watch_every=None,
            save_every=75,
            eval_every=None,
            optimizer=dataclasses.replace(base.train.optimizer, warmup_steps=20),
        ),
        recall=recall.demo(),
        sample=dataclasses.replace(base.sample, num_tokens=256),
    )


def smoke() -> Config:
    """A few steps of everything, to test that it runs: under a minute. Claims need not hold."""
    base = demo()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(
            base.model,
            width=32,
            depth=1,
            num_heads=2,
            mlp_dim=64,
            window=16,
            recurrent_layers=(-1,),
            num_states=8,
        ),
        data=dataclasses.replace(base.data, segment_length=64, held_out_rate=0.02, eval_tokens=256),
        train=dataclasses.replace(
            base.train,
            steps=4,
            batch_size=2,
            log_every=2,
            save_every=2,
            watch_every=2,
            optimizer=dataclasses.replace(base.train.optimizer, warmup_steps=2),
        ),
        include_recall=True,
        recall=recall.smoke(),
        sample=dataclasses.replace(base.sample, num_tokens=8),
    )


def paper() -> Config:
    """The paper's Rec:fixed:skip on PG-19 bytes, 12 layers, for a pod of 32 chips."""
    # Sizes, optimizer and schedule are those of the authors' configs (medium_150M, bias_skip):
    # Adafactor with a rate of 1 / sqrt(max(step, 1000)), so head scales start at 1. 131,072 tokens
    # per step for 500,000 steps are 65.5 billion bytes, about six epochs. Dropout of 0.05 applies
    # to the residual path and the attention weights of the window, not to attention from or to the
    # state. Expect 0.952 bits per byte.
    return Config(
        model=block_recurrent_config("rec_fixed_skip", vocab_size=260),
        data=DataConfig(
            source="tfds:pg19/train",
            held_out="tfds:pg19/test",
            segment_length=4096,
            eval_tokens=None,
        ),
        train=TrainConfig(
            steps=500_000,
            batch_size=32,
            log_every=100,
            save_every=5_000,
            eval_every=25_000,
            strict_sharding=True,
            mesh=MeshConfig(data=-1),
            optimizer=OptimizerConfig(
                name="adafactor", learning_rate=1.0, schedule="rsqrt", warmup_steps=1000
            ),
        ),
        include_recall=False,
        recall=recall.tiny(),
        sample=SampleConfig(prompt="CHAPTER I", num_tokens=2048),
    )


def compare() -> Config:
    """Tiny with three seeds and a Transformer-XL, without recall: about 45 minutes on one core."""
    base = tiny()
    return dataclasses.replace(
        base,
        include_xl=True,
        num_seeds=3,
        include_recall=False,
        train=dataclasses.replace(base.train, eval_every=None),
    )


def table(row: str, size: str) -> Config:
    """A row of the paper's table 1, trained alone, with its data, schedule and batch."""
    base, segments = paper(), ROWS[row]
    return dataclasses.replace(
        base,
        model=block_recurrent_config(row, size, vocab_size=base.model.vocab_size),
        baseline_layers=None,
        data=dataclasses.replace(base.data, segment_length=segments.segment_length),
        train=dataclasses.replace(base.train, batch_size=base.train.batch_size * segments.segments),
    )


def named_row(row: str, size: str) -> Callable[[], Config]:
    """Returns `table(row, size)` as a variant with its own docstring."""
    make = functools.partial(table, row, size)
    make.__doc__ = f"Row {row} of the paper's table 1 at {size}, alone, for a pod of 32 chips."
    return make


VARIANTS = {"smoke": smoke, "tiny": tiny, "demo": demo, "compare": compare, "paper": paper}
# The rows of the paper's table by name, at 150 million parameters and at its other sizes.
VARIANTS |= {row: named_row(row, "150m") for row in ROWS}
VARIANTS |= {f"{row}_{size}": named_row(row, size) for row in ROWS for size in SIZES}
DEFAULT = "tiny"
