"""The recall study by itself, from the command line to its page."""

from __future__ import annotations

import json

import pytest

from configs.recall import VARIANTS, smoke
from experiments import recall
from jaxlab import study


def test_a_smoke_run_leaves_claims_numbers_and_a_figure(python, tmp_path):
    command = "-m", "experiments.recall", "--config=configs/recall.py:smoke"
    process = python(*command, f"--workdir={tmp_path}")
    assert process.returncode == 0, process.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["claims"]) == 4
    accuracy = study.values_of(results["numbers"])[recall.ACCURACY]
    assert accuracy.keys() == {recall.RECURRENT, recall.WINDOWED, recall.RESET}
    assert all(len(values) == smoke().eval_blocks - 1 for values in accuracy.values())
    assert (tmp_path / "figures" / "recall.png").stat().st_size > 1000
    assert "Accuracy by the block that asks" in process.stdout


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_compares_models_that_differ_in_the_state_alone(variant):
    config = VARIANTS[variant]()
    own, slide = recall.trainings(config)
    assert own.model.recurrent_layers and not slide.model.recurrent_layers
    assert slide.model.depth == own.model.depth + config.baseline_layers
    assert own.settings == slide.settings and own.data == slide.data
