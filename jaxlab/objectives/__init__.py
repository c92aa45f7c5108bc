"""Objectives: losses as pure functions of a callable model and a batch."""

from __future__ import annotations

from jaxlab.objectives.classify import classify as classify
from jaxlab.objectives.classify import label_nats as label_nats
from jaxlab.objectives.next_token import next_token as next_token
from jaxlab.objectives.next_token import token_nats as token_nats
