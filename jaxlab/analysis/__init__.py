"""From numbers to statements: intervals over seeds, examples and documents."""

from __future__ import annotations

from jaxlab.analysis.accuracy import accuracy_difference as accuracy_difference
from jaxlab.analysis.accuracy import accuracy_interval as accuracy_interval
from jaxlab.analysis.intervals import Interval as Interval
from jaxlab.analysis.intervals import bootstrap as bootstrap
from jaxlab.analysis.intervals import mean_over_seeds as mean_over_seeds

__all__ = ["Interval", "accuracy_difference", "accuracy_interval", "bootstrap", "mean_over_seeds"]
