"""The models of the Block-Recurrent Transformer's table, by name (arXiv 2203.07852, table 1).

| row | what it is |
|---|---|
| `xl_512`, `xl_1024`, `xl_2048` | Transformer-XL: segments of one window, keys and values cached |
| `slide_12l`, `slide_13l` | sliding window of 512 over segments of 4,096 |
| `rec_{fixed,lstm}_{dual,single,skip}` | the same with a recurrent layer, the third from the end |
| `feedback_fixed_skip` | all other layers also read its state |
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxlab.core import UsageError, nearest
from jaxlab.models.transformer_lm import TransformerLMConfig

SIZES: dict[str, dict[str, int]] = {
    "37m": {"width": 512, "num_heads": 8, "head_dim": 64, "mlp_dim": 2048},
    "75m": {"width": 512, "num_heads": 8, "head_dim": 128, "mlp_dim": 4096},
    "150m": {"width": 1024, "num_heads": 8, "head_dim": 128, "mlp_dim": 4096},
    "300m": {"width": 1024, "num_heads": 16, "head_dim": 128, "mlp_dim": 8192},
    "600m": {"width": 2048, "num_heads": 16, "head_dim": 128, "mlp_dim": 8192},
    "1200m": {"width": 2048, "num_heads": 32, "head_dim": 128, "mlp_dim": 16384},
}
"""The authors' sizes `small_37M` to `large_1200M`: millions of parameters of 12 layers, without the
embedding and the recurrence."""

DEPTH, STATES, RECURRENT = 12, 512, -3


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: how it differs from the sliding-window model, and its segments.

    Attributes:
      changes: fields of `TransformerLMConfig`.
      segment_length: tokens of each row of the batch in one step; with `segments` rows, a device
        reads 4,096 tokens a step in every row of the table.
    """

    changes: dict[str, Any]
    segment_length: int = 4096

    @property
    def segments(self) -> int:
        """Rows of the batch on each of the paper's 32 devices."""
        return 4096 // self.segment_length


def _recurrent(gate: str, update: str) -> Row:
    return Row({"recurrent_layers": (RECURRENT,), "gate": gate, "update": update})


ROWS: dict[str, Row] = {
    **{f"xl_{w}": Row({"window": w}, segment_length=w) for w in (512, 1024, 2048)},
    "slide_12l": Row({}),
    "slide_13l": Row({"depth": DEPTH + 1}),
    **{
        f"rec_{gate}_{update}": _recurrent(gate, update)
        for gate in ("lstm", "fixed")
        for update in ("dual", "single", "skip")
    },
    "feedback_fixed_skip": Row(
        {
            **_recurrent("fixed", "skip").changes,
            "state_readers": tuple(i for i in range(DEPTH) if i != DEPTH + RECURRENT),
        }
    ),
}
"""The rows of the table, in its order."""


def block_recurrent_config(row: str, size: str = "150m", **changes: Any) -> TransformerLMConfig:
    """The model of one row of the table at one size.

    It has 512 states, T5 biases, normalised queries and keys with head scales that start at 1 (with
    Adam, start at about 8), and dropout of 0.05 on the residual path and on the weights with which
    tokens read tokens, as in the authors' base_htrans.gin. Equal layers run as a scan, computed
    again in the backward pass.

    Args:
      row: a name of `ROWS`.
      size: a name of `SIZES`.
      changes: other fields of `TransformerLMConfig`, such as `vocab_size`.

    Raises:
      UsageError: an unknown name; names the nearest.

    >>> block_recurrent_config("rec_fixed_skip", vocab_size=32128).recurrent_layers
    (-3,)
    """
    for name, value, known in (("row", row, ROWS), ("size", size, SIZES)):
        if value not in known:
            raise UsageError(
                f"{name}={value!r} is none of the table{nearest(value, known)}; it has "
                f"{', '.join(known)}"
            )
    fields = {
        "depth": DEPTH,
        "window": 512,
        "num_states": STATES,
        "dropout_rate": 0.05,
        "attention_dropout": 0.05,
        "scan_layers": True,
        "remat": True,
        **SIZES[size],
        **ROWS[row].changes,
        **changes,
    }
    return TransformerLMConfig(**fields)
