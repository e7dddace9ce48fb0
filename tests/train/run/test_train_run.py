"""Whole runs over the command line on tiny bases: files, records, repeats, kill -9, refusals."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from build_hf import as_transformers_4, as_transformers_5, edit_config, tiny_checkpoint
from build_rows import SMALL, dolly_row, gsm8k_row, mbpp_row, write_jsonl
from click.testing import CliRunner
from peft import PeftConfig
from slm_edge.edge.datasets.prompts import dolly_held_out
from slm_edge.edge.errors import InputError, UnsupportedError
from slm_edge.export.lora.lora import export_lora
from slm_edge.train.cli.group import train as train_command
from slm_edge.train.data.prepare import NEVER_TRAINED_ON
from slm_edge.train.recipe import Recipe
from slm_edge.train.run.job import train
from slm_edge.train.tools.starter import STARTER, train_starter


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", [gsm8k_row(n) for n in range(40)])


def weights(folder):
    return hashlib.sha256((Path(folder) / "adapter_model.safetensors").read_bytes()).hexdigest()


def run(base, rows, output, threads=1, **fields):
    recipe = Recipe(task="math", **{**SMALL, "steps": 8, **fields})
    return train(recipe, base=base, data=[rows], output=output, threads=threads)


def test_a_run_writes_a_peft_folder_that_says_what_it_is(base, rows, tmp_path):
    output = tmp_path / "new" / "math"
    args = ["math", "--base", base, "--data", rows, "-o", output, "--threads", "2", "--epochs", "2", "--json"]
    args += [part for key, value in SMALL.items() for part in ("--" + key.replace("_", "-"), value)]
    result = CliRunner().invoke(train_command, list(map(str, args)), catch_exceptions=False)
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert record == json.loads((output / "train.json").read_text())
    assert sorted(path.name for path in output.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "loss.svg",
        "train.json",
    ]
    config = PeftConfig.from_pretrained(str(output))
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (4, 32, "tiny.gguf")
    assert config.target_modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert record["base"]["sha256"] == hashlib.sha256(base.read_bytes()).hexdigest()
    assert record["data"][0]["sha256"] == hashlib.sha256(rows.read_bytes()).hexdigest()
    assert record["counts"] == {"rows": 40, "kept": 40, "dropped": {}, "train": 36, "held_out": 4}
    assert record["steps"] == record["steps_planned"] == 18
    assert record["held_out_loss"]["adapter"] < record["held_out_loss"]["base"]
    assert record["curve"][-1]["loss"] < record["curve"][0]["loss"]
    assert Recipe.from_mapping(record["recipe"]).batch == 4


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_folders_of_transformers_4_and_5_train_the_same(rows, tmp_path, family):
    """A step on either form of one checkpoint gives the same bytes; a base of the speeds read wrongly would not."""
    folder = tiny_checkpoint(tmp_path / "hf", family, rope_theta=500.0)
    for name, form in (("4", as_transformers_4), ("5", as_transformers_5)):
        form(folder)
        run(folder, rows, tmp_path / name, steps=1)
    assert weights(tmp_path / "4") == weights(tmp_path / "5")
    edit_config(folder, rope_parameters=None, rope_theta=10_000.0)
    run(folder, rows, tmp_path / "other", steps=1)
    assert weights(tmp_path / "other") != weights(tmp_path / "4")


def test_it_exports_without_a_hand_edit(base, rows, tmp_path):
    run(base, rows, tmp_path / "peft", steps=2)
    export_lora(tmp_path / "peft", base, tmp_path / "math.gguf")
    assert (tmp_path / "math.gguf").stat().st_size > 0


def test_the_same_seed_gives_the_same_adapter_whatever_the_threads(base, rows, tmp_path):
    run(base, rows, tmp_path / "a")
    run(base, rows, tmp_path / "b", threads=2)
    run(base, rows, tmp_path / "c", seed=2)
    run(base, rows, tmp_path / "d", threads=2, dropout=0.2)
    run(base, rows, tmp_path / "e", dropout=0.2)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert len({weights(tmp_path / name) for name in "acd"}) == 3
    assert weights(tmp_path / "d") == weights(tmp_path / "e")


def wait_for(path, alive=lambda: True):
    while not path.exists():
        assert alive()
        time.sleep(0.01)


def test_a_run_killed_goes_on_to_the_same_result(base, rows, tmp_path, capsys):
    fields = {**SMALL, "steps": 40, "dropout": 0.1}
    command = [sys.executable, "-m", "slm_edge.edge", "train", "math", "--base", str(base), "--data", str(rows)]
    command += [part for key, value in fields.items() for part in ("--" + key.replace("_", "-"), str(value))]
    output = tmp_path / "cut"
    process = subprocess.Popen([*command, "--threads", "1", "--save-every", "0", "-o", str(output)])
    wait_for(tmp_path / "cut.run" / "checkpoint.pt", alive=lambda: process.poll() is None)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not output.exists()
    again = run(base, rows, output, steps=40, dropout=0.1)
    assert "taken up at step" in capsys.readouterr().err
    whole = run(base, rows, tmp_path / "whole", steps=40, dropout=0.1)
    assert weights(output) == weights(tmp_path / "whole")
    assert again == whole


def test_a_run_told_to_stop_saves_and_goes_on_later(base, rows, tmp_path, capsys):
    recipe = Recipe(task="math", **{**SMALL, "steps": 30})
    output = tmp_path / "cut"

    def stop():
        wait_for(tmp_path / "cut.run" / "checkpoint.pt")
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(KeyboardInterrupt):
        train(recipe, base=base, data=[rows], output=output, threads=1, save_every_s=0)
    stopper.join()
    assert not output.exists()
    run(base, rows, output, steps=30)
    assert "taken up at step" in capsys.readouterr().err
    run(base, rows, tmp_path / "whole", steps=30)
    assert weights(output) == weights(tmp_path / "whole")


def test_a_run_can_be_finished_where_it_stands(base, rows, tmp_path):
    with pytest.raises(InputError, match="no save to finish from"):
        train(Recipe(task="math", **SMALL), base=base, data=[rows], output=tmp_path / "x", finish=True)
    recipe = Recipe(task="math", **{**SMALL, "steps": 6})
    train(recipe, base=base, data=[rows], output=tmp_path / "y", threads=1)
    (tmp_path / "y").rename(tmp_path / "z")
    record = train(recipe, base=base, data=[rows], output=tmp_path / "y", threads=1, finish=True)
    assert record["steps"] == 6
    assert weights(tmp_path / "y") == weights(tmp_path / "z")


def test_a_checkpoint_of_other_settings_is_refused_and_can_be_dropped(base, rows, tmp_path):
    run(base, rows, tmp_path / "a", steps=2)
    (tmp_path / "a").rename(tmp_path / "old")
    with pytest.raises(InputError, match="another recipe"):
        run(base, rows, tmp_path / "a", steps=3)
    recipe = Recipe(task="math", **{**SMALL, "steps": 3})
    train(recipe, base=base, data=[rows], output=tmp_path / "a", threads=1, fresh=True)


def test_an_output_that_exists_is_left_alone(base, rows, tmp_path):
    output = tmp_path / "there"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        run(base, rows, output)
    assert [path.name for path in output.iterdir()] == ["mine.txt"]


def test_code_and_summaries_train_from_a_hugging_face_folder_too(tmp_path):
    folder = tiny_checkpoint(tmp_path / "hf", "qwen2")
    code = write_jsonl(tmp_path / "mbpp.jsonl", [mbpp_row(n) for n in range(500, 530)])
    recipe = Recipe(task="code", **{**SMALL, "max_tokens": 400, "steps": 3})
    record = train(recipe, base=folder, data=[code], output=tmp_path / "code", threads=1)
    assert record["counts"]["dropped"] == {"MBPP's prompt and test tasks (1-510)": 11}
    assert record["base"]["kind"] == "hf"
    dolly = write_jsonl(tmp_path / "dolly.jsonl", [dolly_row(n) for n in range(60)])
    recipe = Recipe(task="summarize", **{**SMALL, "steps": 3})
    record = train(recipe, base=folder, data=[dolly], output=tmp_path / "summarize", threads=1)
    assert record["counts"]["dropped"]["held out for scoring"] == sum(dolly_held_out(dolly_row(n)) for n in range(60))


def test_made_rows_are_mixed_in_where_the_task_makes_any(base, rows, tmp_path):
    record = run(base, rows, tmp_path / "a", steps=1, made_rows=20)
    assert record["counts"]["rows"] == 60
    with pytest.raises(InputError, match="makes no rows of its own"):
        recipe = Recipe(task="code", made_rows=5)
        train(recipe, base=base, data=[rows], output=tmp_path / "b", threads=1)


def test_data_that_leaves_nothing_says_why(base, rows, tmp_path):
    with pytest.raises(InputError) as caught:
        train(Recipe(task="summarize"), base=base, data=[rows], output=tmp_path / "a", threads=1)
    assert caught.value.problems == ("40 x not a row of dolly",)


def test_the_command_refuses_a_recipe_before_anything_is_read(base, rows, tmp_path):
    args = ["math", "--base", base, "--data", rows, "-o", tmp_path / "a", "--lr", "7"]
    result = CliRunner().invoke(train_command, list(map(str, args)))
    assert isinstance(result.exception, InputError)
    with pytest.raises(UnsupportedError):
        Recipe.from_mapping({"task": "math", "use_dora": True})


def test_the_starter_names_every_missing_file(base, tmp_path):
    with pytest.raises(InputError) as caught:
        train_starter(base, tmp_path, tmp_path / "out")
    assert sorted(caught.value.problems) == sorted(file for a in STARTER.values() for file in a.files)


@pytest.mark.reference
def test_a_test_set_is_refused_as_training_data(base, shared_data, tmp_path):
    assert NEVER_TRAINED_ON
    with pytest.raises(InputError, match="GSM8K test"):
        run(base, shared_data / "gsm8k/test.jsonl", tmp_path / "a")
