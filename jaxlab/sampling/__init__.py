"""Sampling: autoregressive decoding with constant memory."""

from __future__ import annotations

from jaxlab.sampling.autoregressive import Decoder as Decoder
from jaxlab.sampling.autoregressive import Generated as Generated
from jaxlab.sampling.autoregressive import generate as generate
from jaxlab.sampling.autoregressive import generate_stream as generate_stream
from jaxlab.sampling.logits import Sampler as Sampler
from jaxlab.sampling.logits import filter_logits as filter_logits

__all__ = ["Decoder", "Generated", "Sampler", "filter_logits", "generate", "generate_stream"]
