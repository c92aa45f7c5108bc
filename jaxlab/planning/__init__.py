"""What a step costs before it runs: memory, FLOPs, collectives and time on devices not yet here."""

from __future__ import annotations

from jaxlab.planning.pods import Pod as Pod
from jaxlab.planning.pods import tpu_pod as tpu_pod
from jaxlab.planning.pods import virtual_pod as virtual_pod
from jaxlab.planning.step_cost import StepCost as StepCost
from jaxlab.planning.step_cost import bounds as bounds
from jaxlab.planning.step_cost import cost_lines as cost_lines
from jaxlab.planning.step_cost import step_cost as step_cost

__all__ = ["Pod", "StepCost", "bounds", "cost_lines", "step_cost", "tpu_pod", "virtual_pod"]
