from __future__ import annotations

import random

import pytest

from jaxlab.core import UsageError, flatten, matches, natural_key, natural_sort, select, unflatten


def random_tree(rng: random.Random, depth: int = 3) -> dict:
    """Nested dicts of numbered leaves; no dict but the root may be empty."""
    names = rng.sample(["a", "b", "10", "2", "kernel", "x.y", "ß"], rng.randint(1, 4))
    return {
        name: random_tree(rng, depth - 1) if depth and rng.random() < 0.5 else rng.random()
        for name in names
    }


def leaves(tree: dict) -> list:
    return [x for v in tree.values() for x in (leaves(v) if isinstance(v, dict) else [v])]


def test_flatten_and_unflatten_are_inverses_on_random_trees():
    rng = random.Random(0)
    for _ in range(100):
        tree = random_tree(rng)
        flat = flatten(tree)
        assert unflatten(flat) == tree
        assert flatten(unflatten(flat)) == flat
        assert list(flat.values()) == leaves(tree)


def test_anything_but_a_mapping_is_a_leaf():
    assert flatten({"a": [1, {"b": 2}], "c": {3: None}}) == {"a": [1, {"b": 2}], "c/3": None}


def test_natural_order_is_the_order_of_the_numbers():
    paths = [f"blocks/{i}/{name}" for i in range(25) for name in ("bias", "kernel")] + ["head"]
    shuffled = random.Random(1).sample(paths, len(paths))
    assert list(natural_sort(dict.fromkeys(shuffled))) == paths
    assert sorted(shuffled) != paths


def test_natural_order_does_not_depend_on_the_order_before():
    paths = ["a/01", "a/1", "a/001", "a", "a1b", "1", "²", "x²", ""]
    orders = {
        tuple(sorted(random.Random(seed).sample(paths, len(paths)), key=natural_key))
        for seed in range(20)
    }
    assert len(orders) == 1


def test_natural_sort_keeps_the_values():
    assert natural_sort({"b10": 1, "b9": 2}) == {"b10": 1, "b9": 2}


@pytest.mark.parametrize(
    ("path", "pattern", "fits"),
    [
        ("blocks/0/mlp/up/kernel", "blocks/*/mlp/*", True),
        ("blocks/0/mlp/up/kernel", "*/kernel", True),
        ("blocks/0/mlp/up/kernel", "kernel", False),
        ("kernel", "*kernel", True),
        ("Blocks/0", "blocks/*", False),
        ("a/kernel", ["x", "a/*"], True),
        ("a/kernel", [], False),
    ],
)
def test_patterns_fit_whole_paths_and_cross_slashes(path, pattern, fits):
    assert matches(path, pattern) is fits


def test_select_marks_every_path():
    paths = ["a/kernel", "a/bias", "b/kernel"]
    assert select(iter(paths), ["a/*", "*/bias"]) == {
        "a/kernel": True,
        "a/bias": True,
        "b/kernel": False,
    }
    assert select(paths, []) == dict.fromkeys(paths, False)


def test_select_names_the_pattern_that_fits_nothing():
    with pytest.raises(UsageError, match="'a/kernal' matches no .*did you mean 'a/kernel'"):
        select(["a/kernel", "a/bias"], ["a/bias", "a/kernal"])


def test_paths_that_collide_are_refused():
    with pytest.raises(UsageError, match="two leaves have the path 'a/b'"):
        flatten({"a/b": 1, "a": {"b": 2}})
    for flat in ({"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}):
        with pytest.raises(UsageError, match="parent"):
            unflatten(flat)
