"""Models: one transformer stack with slots."""

from __future__ import annotations

from jaxlab.models.transformer_lm import TransformerLM as TransformerLM
from jaxlab.models.transformer_lm import TransformerLMConfig as TransformerLMConfig
