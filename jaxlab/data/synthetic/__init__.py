"""Synthetic tasks, whose batches are computed from a seed."""

from __future__ import annotations

from jaxlab.data.synthetic.recall import RecallStream as RecallStream
from jaxlab.data.synthetic.recall import RecallTask as RecallTask

__all__ = [
    "RecallStream",
    "RecallTask",
]
