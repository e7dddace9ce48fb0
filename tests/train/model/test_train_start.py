"""Training that goes on from an adapter: its matrices are taken over, and what doesn't fit is refused."""

import numpy as np
import pytest
from build_gguf import tiny_base
from build_rows import SMALL, gsm8k_row, write_jsonl
from safetensors.numpy import load_file, save_file
from slm_edge.edge.errors import InputError
from slm_edge.train.recipe import Recipe
from slm_edge.train.run.job import Extras, train

SIX_STEPS = {**SMALL, "steps": 6}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(base, rows, folder of a first adapter, its record)"""
    folder = tmp_path_factory.mktemp("start")
    base = tiny_base(folder / "tiny.gguf")
    rows = write_jsonl(folder / "rows.jsonl", [gsm8k_row(n) for n in range(40)])
    record = train(Recipe(task="math", **SIX_STEPS), base=base, data=[rows], output=folder / "first", threads=1)
    return base, rows, folder / "first", record


def go_on(made, output, start=None, **fields):
    base, rows, first, _ = made
    extras = Extras(start=start or first)
    return train(
        Recipe(task="math", **{**SIX_STEPS, **fields}), base=base, data=[rows], output=output, extras=extras, threads=1
    )


def test_it_begins_with_the_adapters_own_loss_and_ends_below(made, tmp_path):
    record = go_on(made, tmp_path / "second")
    first = made[3]["held_out_loss"]
    assert record["held_out_loss"]["base"] == first["base"]
    assert record["held_out_loss"]["start"] == pytest.approx(first["adapter"], rel=1e-6)
    assert record["held_out_loss"]["adapter"] < first["adapter"]
    assert record["start"]["name"] == "first"


def test_a_rate_of_almost_nothing_leaves_the_matrices_as_they_were(made, tmp_path):
    go_on(made, tmp_path / "same", lr=1e-12, steps=1)
    before, after = load_file(made[2] / WEIGHTS), load_file(tmp_path / "same" / WEIGHTS)
    assert before.keys() == after.keys()
    assert all(np.allclose(before[name], after[name], atol=1e-9) for name in before)
    assert any(values.any() for name, values in before.items() if "lora_B" in name)


def test_an_adapter_of_another_kind_is_refused_with_all_differences(made, tmp_path):
    with pytest.raises(InputError) as caught:
        go_on(made, tmp_path / "out", rank=8, targets=("q_proj",))
    assert len(caught.value.problems) == 2
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_base_and_what_is_no_adapter_are_refused(made, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapter_config.json").write_text((made[2] / "adapter_config.json").read_text())
    with pytest.raises(InputError, match="has no adapter_model"):
        go_on(made, tmp_path / "out", other)
    weights = load_file(made[2] / WEIGHTS)
    gone = sorted(weights)[0]
    changed = sorted(weights)[1]
    save_file({n: v[:, :-1].copy() if n == changed else v for n, v in weights.items() if n != gone}, other / WEIGHTS)
    with pytest.raises(InputError, match="not of this base") as caught:
        go_on(made, tmp_path / "out", other)
    assert len(caught.value.problems) == 2
    assert not (tmp_path / "out").exists()
