"""A recipe is checked whole, and its learning rate does what it says."""

import dataclasses
import itertools
import math

import pytest
from slm_edge.edge.errors import InputError, UnsupportedError
from slm_edge.train.recipe import Recipe


def test_every_field_is_documented():
    assert all(field.metadata["doc"] for field in dataclasses.fields(Recipe))


def test_unknown_keys_and_wrong_types_are_all_named_at_once():
    with pytest.raises(InputError) as caught:
        Recipe.from_mapping({"task": "math", "rnak": 8, "lr": "fast", "targets": "q_proj", "rslora": 1})
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["rnak", "lr", "targets", "rslora"]


def test_values_out_of_range_are_all_named_at_once():
    with pytest.raises(InputError) as caught:
        Recipe(task="math", rank=0, alpha=math.nan, dropout=1.0, lr=0, targets=("lm_head",), steps=0)
    words = {problem.split()[0] for problem in caught.value.problems}
    assert words == {"rank", "alpha", "dropout", "lr", "targets", "steps"}


@pytest.mark.parametrize("key", ["use_dora", "lora_bias", "modules_to_save", "trainable_token_indices"])
def test_what_llama_cpp_cannot_hold_is_refused(key):
    with pytest.raises(UnsupportedError, match="cannot hold"):
        Recipe.from_mapping({"task": "math", key: True})


def test_a_recipe_survives_its_record():
    recipe = Recipe(task="code", rank=8, targets=("q_proj", "v_proj"), steps=None, lr=3e-4)
    assert Recipe.from_mapping(recipe.as_dict()) == recipe


def test_numbers_may_be_whole():
    assert Recipe.from_mapping({"task": "math", "alpha": 8, "epochs": 2}).alpha == 8.0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_then_falls_to_its_end(schedule):
    recipe = Recipe(task="math", lr=2.0e-3, schedule=schedule, warmup=0.1, lr_end=0.25)
    rates = [recipe.lr_at(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([2e-3 * (step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(2e-3)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    end = 2e-3 if schedule == "constant" else 0.25 * 2e-3
    assert recipe.lr_at(100, 100) == pytest.approx(end)


def test_steps_follow_from_epochs():
    assert Recipe(task="math", epochs=1.5, batch=8).steps_for(100) == 19
    assert Recipe(task="math", steps=7, batch=8).steps_for(100) == 7
