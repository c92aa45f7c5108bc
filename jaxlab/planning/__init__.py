"""What a step costs before it runs: compiled programs, collectives, pods, rooflines."""

from __future__ import annotations

from jaxlab.planning.pods import Pod as Pod

__all__ = ["Pod"]
