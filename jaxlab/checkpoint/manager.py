"""The orbax manager behind a folder of checkpoints; it imports orbax, which takes a second."""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orbax.checkpoint import CheckpointManager

ARRAY_ITEMS = ("params", "model_state", "train", "carry")
JSON_ITEMS = ("data", "meta")


def open_manager(
    folder: pathlib.Path,
    keep_last: int,
    keep_every: int | None,
    keep_best: int | None,
    read_only: bool,
) -> CheckpointManager:
    """Opens a folder; the arguments are those of `Checkpoints`."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    # max_to_keep with a best one would delete the newest: the policies are joined instead.
    kept = [policies.LatestN(keep_last)]
    if keep_every is not None:
        kept.append(policies.EveryNSteps(keep_every))
    if keep_best is not None:
        kept.append(
            policies.BestN(
                get_metric_fn=_rank_of, n=keep_best, keep_checkpoints_without_metrics=False
            )
        )
    with _no_warnings() if read_only else contextlib.nullcontext():
        return ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                # Without it the manager neither writes nor reads metrics.
                best_fn=_rank_of if read_only or keep_best is not None else None,
                cleanup_tmp_directories=not read_only,
                create=False,
                read_only=read_only,
            ),
            item_handlers={
                **{name: ocp.StandardCheckpointHandler() for name in ARRAY_ITEMS},
                **{name: ocp.JsonCheckpointHandler() for name in JSON_ITEMS},
            },
        )


def _rank_of(metrics: Mapping[str, float]) -> float:
    return metrics["rank"]


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Keeps orbax from warning that a folder opened to read will not be written."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl.setLevel(level)
