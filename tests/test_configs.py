"""Every variant of every config file builds, and its parts fit one another."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pathlib

import pytest
from flax import nnx

from configs import block_recurrent, recall
from jaxlab.core import UsageError, View, from_dict, override, to_dict
from jaxlab.models import ROWS, TransformerLM, block_recurrent_config
from jaxlab.train import build_optimizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem != "__init__")
MODULES = {name: importlib.import_module(f"configs.{name}") for name in FILES}
VARIANTS = [(name, v) for name, module in MODULES.items() for v in module.VARIANTS]


def shapes(model) -> View:
    return View.abstract(lambda: TransformerLM(model, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_a_variant_builds_describes_itself_and_is_plain_data(name: str, variant: str):
    module = MODULES[name]
    make = module.VARIANTS[variant]
    config = make()
    assert (make.__doc__ or "").strip()
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config
    build_optimizer(config.train.optimizer, config.train.steps)


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_the_variants_of_the_contract(name: str):
    module = MODULES[name]
    assert {"smoke", "tiny", "paper"} <= module.VARIANTS.keys()
    assert module.DEFAULT in module.VARIANTS


PAIRS = [v for v, make in block_recurrent.VARIANTS.items() if make().baseline_layers is not None]


@pytest.mark.parametrize("variant", PAIRS)
def test_block_recurrent_models_have_shapes_and_like_cost(variant: str):
    config = block_recurrent.VARIANTS[variant]()
    assert config.tokenizer().vocab_size <= config.model.vocab_size
    for model in (config.model, config.recall.model):
        slide = recall.windowed(model, config.baseline_layers)
        assert slide.slots() == ("attention",) * (model.depth + config.baseline_layers)
        ours, theirs = shapes(model).num_params, shapes(slide).num_params
        # The state vectors and their names are no matrices that tokens are multiplied by.
        assert 0.8 < (ours - 2 * model.num_states * model.width) / theirs < 1.05


def test_only_what_trains_as_the_paper_drops_weights_of_attention():
    small = {"smoke", "tiny", "demo", "compare"}
    for variant, make in block_recurrent.VARIANTS.items():
        model = make().model
        assert model.attention_dropout == model.dropout_rate == (0 if variant in small else 0.05)
        assert recall.windowed(model, 1).attention_dropout == model.attention_dropout


def test_the_windowed_model_has_neither_a_state_nor_readers_of_one():
    config = override(block_recurrent.tiny(), {"model.state_readers": "(0,)"})
    assert set(recall.windowed(config.model, 1).slots()) == {"attention"}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_table_has_its_model_batch_and_data(row: str):
    config = block_recurrent.VARIANTS[row]()
    paper = block_recurrent.paper()
    assert config.model == block_recurrent_config(row, "150m", vocab_size=260)
    assert config.data.segment_length * config.train.batch_size == 131_072
    assert (config.data.segment_length == config.model.window) == row.startswith("xl_")
    assert (
        dataclasses.replace(config.train, batch_size=paper.train.batch_size) == paper.train
        and config.data.source == paper.data.source
    )
    large = block_recurrent.VARIANTS[f"{row}_1200m"]()
    assert (large.model.width, large.model.num_heads, large.model.mlp_dim) == (2048, 32, 16384)
    assert block_recurrent.VARIANTS[f"{row}_150m"]() == config


def test_the_paper_variant_has_the_parameters_of_the_paper():
    model = block_recurrent.paper().model
    embedding = model.vocab_size * model.width
    # Counted on the authors' code: 160.46 M, and 163.61 M for 13 layers without recurrence.
    slide = recall.windowed(model, 1)
    assert round((shapes(model).num_params - embedding) / 1e6, 2) == 160.46
    assert round((shapes(slide).num_params - embedding) / 1e6, 2) == 163.61


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"data.segment_length": "1000"},
            "1000 is not a multiple of model.window=128; nearest: 896, 1024",
        ),
        ({"model.recurrent_layers": "()"}, "needs a window and at least one recurrent layer"),
        ({"model.num_heads": "3"}, "width=128 does not divide by num_heads=3; nearest: 126, 129"),
        ({"baseline_layers": "-1"}, "baseline_layers=-1; expected 0 or more"),
        ({"recall.task.block": "8"}, "recall.task.block=8 differs from recall.model.window=16"),
        ({"recall.model.vocab_size": "40"}, "recall.model.vocab_size=40 is below the 41 ids"),
        ({"recall.eval_blocks": "3"}, "recall.eval_blocks=3; expected a multiple of recall.task"),
        (
            {"recall.num_seeds": "0"},
            "eval_sequences=512, num_seeds=0 and baseline_layers=1; expected 1, 1",
        ),
        ({"num_seeds": "0"}, "num_seeds=0; expected 1 or more"),
        ({"baseline_layers": "none"}, "baseline_layers=None trains model alone; set include_xl="),
        ({"data.segmentlength": "1"}, "did you mean 'segment_length'?"),
    ],
)
def test_parts_that_do_not_fit_give_one_line(fields: dict[str, str], words: str):
    with pytest.raises(UsageError) as caught:
        override(block_recurrent.tiny(), fields)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_vocabulary_that_is_too_small_is_named_with_the_one_needed():
    config = override(block_recurrent.tiny(), {"model.vocab_size": "200"})
    with pytest.raises(UsageError, match="200 is below the 260 ids of tokenizer .*size=260"):
        config.tokenizer()


def test_a_held_out_source_of_its_own_leaves_all_documents_to_training(tmp_path: pathlib.Path):
    for folder, names in (("train", "abc"), ("test", "d")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.txt").write_text(name)
    data = block_recurrent.DataConfig(
        source=f"text:{tmp_path / 'train'}", held_out=f"text:{tmp_path / 'test'}"
    )
    train, held_out = data.open()
    assert (train.names, held_out.names) == (("a.txt", "b.txt", "c.txt"), ("d.txt",))
    train, held_out = dataclasses.replace(data, held_out=None, held_out_rate=0.34).open()
    assert len(train) == 2 and len(held_out) == 1 and not set(train.names) & set(held_out.names)
