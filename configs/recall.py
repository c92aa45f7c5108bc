"""Configs of `experiments/recall.py`: can a recurrent state answer from beyond the window?

Costs were measured on two cores of a shared x86-64 machine and include compilation.
"""

from __future__ import annotations

import dataclasses

from jaxlab.core import MeshConfig, UsageError
from jaxlab.data import RecallTask
from jaxlab.models import TransformerLMConfig, block_recurrent_config
from jaxlab.train import OptimizerConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class RecallConfig:
    """The long-range recall task, on which both kinds of models are trained from scratch.

    Attributes:
      task: the sequences; a block is one window of the models.
      model: the block-recurrent model.
      baseline_layers: extra layers of the sliding-window model, instead of recurrence.
      train: settings for both models; every sequence is read in one segment.
      num_seeds: number of trainings per model, with seeds from `train.seed` on.
      eval_sequences: number of fresh sequences for evaluation.
      eval_blocks: their length, a multiple of `task.num_blocks`: they are read in segments of
        that many blocks, each with the carry of the previous one, which training never does.

    Raises:
      UsageError: inconsistent fields.
    """

    task: RecallTask = RecallTask(block=16)
    model: TransformerLMConfig = TransformerLMConfig(window=16)
    baseline_layers: int = 1
    train: TrainConfig = TrainConfig()
    num_seeds: int = 1
    eval_sequences: int = 512
    eval_blocks: int = 24

    def __post_init__(self):
        if self.task.block != self.model.window:
            raise UsageError(
                f"recall.task.block={self.task.block} differs from recall.model.window="
                f"{self.model.window}; set both to the same number"
            )
        if self.model.vocab_size < self.task.vocab_size:
            raise UsageError(
                f"recall.model.vocab_size={self.model.vocab_size} is below the "
                f"{self.task.vocab_size} ids of the task; set it to that"
            )
        if self.eval_blocks < 1 or self.eval_blocks % self.task.num_blocks:
            raise UsageError(
                f"recall.eval_blocks={self.eval_blocks}; expected a multiple of "
                f"recall.task.num_blocks={self.task.num_blocks}"
            )
        if min(self.eval_sequences, self.num_seeds) < 1 or self.baseline_layers < 0:
            raise UsageError(
                f"recall.eval_sequences={self.eval_sequences}, num_seeds={self.num_seeds} and "
                f"baseline_layers={self.baseline_layers}; expected 1, 1 and 0 or more"
            )


def windowed(model: TransformerLMConfig, more_layers: int) -> TransformerLMConfig:
    """Returns the sliding-window model: no recurrence, and `more_layers` extra layers."""
    return dataclasses.replace(
        model, recurrent_layers=(), state_readers=(), depth=model.depth + more_layers
    )


def tiny() -> RecallConfig:
    """One pair to remember over six blocks, three seeds: three minutes on one core."""
    # Solved in 300 to 700 steps. With the fixed gate instead of the LSTM gate, which keeps about
    # half of the state per block, the accuracy is 0.95 in block 10 and 0.13 in block 23: training
    # never needs so long a memory.
    return RecallConfig(
        task=RecallTask(block=16, num_blocks=6),
        model=TransformerLMConfig(
            vocab_size=41,
            width=64,
            depth=2,
            num_heads=2,
            mlp_dim=256,
            window=16,
            include_self=True,
            recurrent_layers=(-1,),
            num_states=8,
            head_scale=8.0,
            gate="lstm",
        ),
        num_seeds=3,
        train=TrainConfig(
            steps=800,
            batch_size=16,
            log_every=25,
            save_every=400,
            optimizer=OptimizerConfig(learning_rate=3e-3, clip_norm=1.0),
        ),
    )


def demo() -> RecallConfig:
    """Tiny with one seed: a minute on one core."""
    return dataclasses.replace(tiny(), num_seeds=1)


def smoke() -> RecallConfig:
    """A few steps, to test that it runs: seconds. Claims need not hold."""
    base = tiny()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, width=16, depth=1, mlp_dim=128),
        train=dataclasses.replace(base.train, steps=4, batch_size=2, log_every=2, save_every=4),
        num_seeds=1,
        eval_sequences=8,
        eval_blocks=12,
    )


def paper() -> RecallConfig:
    """Blocks of 512 tokens, the paper's window, and a model of its width: for accelerators."""
    # The paper has no such task; these are its sizes (2203.07852, table 1).
    model = block_recurrent_config("rec_fixed_skip", vocab_size=41)
    return dataclasses.replace(
        tiny(),
        task=RecallTask(block=512, num_blocks=8),
        model=dataclasses.replace(model, gate="lstm"),
        eval_blocks=32,
        train=dataclasses.replace(
            tiny().train, steps=20_000, batch_size=32, save_every=2_000, mesh=MeshConfig(data=-1)
        ),
    )


VARIANTS = {"smoke": smoke, "tiny": tiny, "demo": demo, "paper": paper}
DEFAULT = "tiny"
