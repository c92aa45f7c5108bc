"""Models: one transformer stack with slots; and all of them by name."""

from __future__ import annotations

from jaxlab.models.registry import ModelEntry as ModelEntry
from jaxlab.models.registry import names as names
from jaxlab.models.registry import register as register
from jaxlab.models.registry import registered as registered
from jaxlab.models.transformer_lm import TransformerLM as TransformerLM
from jaxlab.models.transformer_lm import TransformerLMConfig as TransformerLMConfig
