"""Sampling: autoregressive generation of tokens and of text, in constant memory."""

from __future__ import annotations

from jaxlab.sampling.autoregressive import Decoder as Decoder
from jaxlab.sampling.autoregressive import Generated as Generated
from jaxlab.sampling.autoregressive import generate as generate
from jaxlab.sampling.autoregressive import generate_stream as generate_stream
from jaxlab.sampling.logits import Sampler as Sampler
from jaxlab.sampling.logits import filter_logits as filter_logits
from jaxlab.sampling.text import generate_text as generate_text
from jaxlab.sampling.text import stream_text as stream_text

__all__ = [
    "Decoder",
    "Generated",
    "Sampler",
    "filter_logits",
    "generate",
    "generate_stream",
    "generate_text",
    "stream_text",
]
