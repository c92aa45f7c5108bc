"""A small language model behind the shared command line, for runs of several processes.

    python tests/train/hosts_study.py --config=tests/train/hosts_study.py --workdir=DIR

With PAUSE_AT=N in the environment every process, after step N, makes a file `paused-<process>` in
the workdir and goes on once there is a file `go`.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time

import jax
from flax import nnx

from jaxlab import data, evals, study, train
from jaxlab.core import View, local_rows, make_mesh
from jaxlab.models import TransformerLM, TransformerLMConfig
from jaxlab.objectives import next_token

TEXTS = tuple(f"{i} " * (40 + 7 * i) for i in range(24))


@dataclasses.dataclass(frozen=True)
class Config:
    """The model and its training."""

    model: TransformerLMConfig = TransformerLMConfig(
        vocab_size=260, width=16, depth=1, num_heads=2, mlp_dim=32, window=8
    )
    train: train.TrainConfig = train.TrainConfig(
        steps=9,
        batch_size=8,
        log_every=1,
        save_every=3,
        eval_every=3,
        keep_last=3,
        optimizer=train.OptimizerConfig("adamw", learning_rate=1e-2, schedule="constant"),
    )


VARIANTS = {"small": Config}
DEFAULT = "small"


class Pause(train.Hook):
    """Waits after one step until somebody says so."""

    def __init__(self, workdir: pathlib.Path):
        self.workdir, self.at = workdir, int(os.environ.get("PAUSE_AT", 0))

    def after_step(self, run: train.Run) -> None:
        if run.step == self.at and not (self.workdir / "go").exists():
            (self.workdir / f"paused-{jax.process_index()}").touch()
            while not (self.workdir / "go").exists():
                time.sleep(0.01)


def run(config: Config, record) -> None:
    mesh = make_mesh(config.train.mesh)
    rows = local_rows(config.train.batch_size, mesh)
    sizes = {"batch_size": config.train.batch_size, "segment_length": 16, "rows": rows}
    source, tokenizer = data.Documents(TEXTS), data.Bytes()
    stream = data.DocumentStream(source, tokenizer, **sizes)
    held_out = data.walk(data.Documents(TEXTS[:5]), tokenizer, **sizes)
    view = View.abstract(lambda: TransformerLM(config.model, rngs=nnx.Rngs(0)))

    def init_carry(size: int):
        return view.apply(view.params, size, method="init_carry")

    def evaluate(state: train.TrainState) -> dict[str, float]:
        scores = evals.evaluate_documents(view.at(state.params), held_out, init_carry=init_carry)
        return {"held_out/bits_per_byte": scores.bits_per_byte}

    train.run_training(
        config.train,
        build=lambda rngs: TransformerLM(config.model, rngs=rngs),
        objective=next_token,
        stream=stream,
        workdir=record,
        init_carry=init_carry,
        evaluate=evaluate,
        hooks=[Pause(record.workdir)],
    )
    print(f"read rows {rows}")
    record.write_results([], {})


def main() -> None:
    study.main(run)


if __name__ == "__main__":
    main()
