"""Instruments that show what a model does inside, without changing it."""

from __future__ import annotations

from jaxlab.probes.recurrent_state import state_metrics as state_metrics
from jaxlab.probes.recurrent_state import state_statistics as state_statistics
