"""Instruments on a model: what it does inside, without a change to it."""

from __future__ import annotations

from jaxlab.probes.recurrent_state import state_metrics as state_metrics
from jaxlab.probes.recurrent_state import state_statistics as state_statistics
