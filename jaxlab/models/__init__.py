"""Models: one transformer stack with slots; all of them, and those of a table, by name."""

from __future__ import annotations

from jaxlab.models.add_recurrence import add_recurrence as add_recurrence
from jaxlab.models.block_recurrent import ROWS as ROWS
from jaxlab.models.block_recurrent import SIZES as SIZES
from jaxlab.models.block_recurrent import block_recurrent_config as block_recurrent_config
from jaxlab.models.registry import ModelEntry as ModelEntry
from jaxlab.models.registry import names as names
from jaxlab.models.registry import register as register
from jaxlab.models.registry import registered as registered
from jaxlab.models.transformer_lm import TransformerLM as TransformerLM
from jaxlab.models.transformer_lm import TransformerLMConfig as TransformerLMConfig
