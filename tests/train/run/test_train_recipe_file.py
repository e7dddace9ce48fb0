"""Recipes as TOML files: read whole, refused whole, run; those that ship; data and bases by hub name."""

import dataclasses
import json
import os
import subprocess
import sys
import tomllib

import pyarrow
import pytest
from build_gguf import tiny_base
from build_hf import tiny_checkpoint
from build_hub import SHA, serving
from build_rows import gsm8k_row, mbpp_row, write_jsonl
from click.testing import CliRunner
from pyarrow import parquet
from slm_edge.edge.errors import InputError, UnsupportedError
from slm_edge.train.cli.group import train as train_command
from slm_edge.train.data.examples import read_rows
from slm_edge.train.data.sources import find_data
from slm_edge.train.recipe import TARGETS, Recipe
from slm_edge.train.run import recipe_file
from slm_edge.train.run.recipe_file import Inputs, parse

BASES = {"llama-3.2-1b-instruct", "llama-3.2-3b-instruct", "qwen2.5-1.5b-instruct", "smollm2-135m-instruct"}
SMALL = {"rank": 4, "batch": 4, "max_tokens": 300, "forward_tokens": 160, "held_out": 4, "steps": 3}


def invoke(*args):
    return CliRunner().invoke(train_command, list(map(str, args)), catch_exceptions=False)


def test_every_task_has_a_recipe_for_every_base():
    names = {tuple(name.split("/")) for name in recipe_file.shipped_names()}
    assert names == {(task, base) for task in ("math", "code", "summarize") for base in BASES}


@pytest.mark.parametrize("name", recipe_file.shipped_names())
def test_recipes_that_ship_are_valid_at_every_rank(name, tmp_path):
    values = recipe_file.shipped(name)
    for rank in (16, 32, 64, 128):
        told = parse({**values, "rank": rank}, tmp_path)
        assert (told.recipe.task, told.recipe.rank, told.recipe.targets) == (name.partition("/")[0], rank, TARGETS)
    assert told.inputs.base.lower().endswith(name.partition("/")[2])


def test_a_printed_recipe_is_whole_explained_and_the_same():
    text = invoke("recipes", "code/qwen2.5-1.5b-instruct").stdout
    values = tomllib.loads(text)
    told = parse(values, None)
    assert told == parse(recipe_file.shipped("code/qwen2.5-1.5b-instruct"), None)
    fields = [*dataclasses.fields(Inputs), *dataclasses.fields(Recipe)]
    assert set(values) == {field.name for field in fields} - {"steps"}
    plain = " ".join(line.removeprefix("# ") for line in text.splitlines())
    assert all(field.metadata["doc"] in plain for field in fields)


def test_every_field_is_explained_by_a_command():
    shown = invoke("recipes", "--fields").stdout
    for kind in (Inputs, Recipe):
        for field in dataclasses.fields(kind):
            assert f"\n{field.name} (" in f"\n{shown}"
            assert field.metadata["doc"] in shown
    assert json.loads(invoke("recipes", "--json").stdout) == recipe_file.shipped_names()


def test_text_survives_toml():
    values = {"task": "math", "alora_invocation": '<|im_start|>"a\\b"\n\t'}
    assert tomllib.loads(recipe_file.as_toml(values))["alora_invocation"] == values["alora_invocation"]


def test_unknown_missing_and_wrong_keys_are_named_at_once():
    with pytest.raises(InputError) as caught:
        parse({"task": "math", "data": "one.jsonl", "rnak": 3, "lr": "high", "weights": 4}, None)
    assert {problem.partition(":")[0] for problem in caught.value.problems} == {"base", "data", "rnak", "lr", "weights"}
    assert "did you mean rank" in str(caught.value)
    with pytest.raises(InputError, match="no task 'poetry'"):
        parse({"task": "poetry", "base": "b", "data": ["d"]}, None)


@pytest.mark.parametrize("key", ["use_dora", "bias", "modules_to_save", "trainable_token_indices"])
def test_a_file_that_asks_for_what_llama_cpp_cannot_hold_is_refused(tmp_path, key):
    file = tmp_path / "r.toml"
    file.write_text(f'task = "math"\nbase = "none.gguf"\ndata = ["none.jsonl"]\noutput = "o"\n{key} = true\n')
    with pytest.raises(UnsupportedError, match="cannot hold"):
        invoke(file)


def test_a_recipe_file_trains_with_flags_before_it(tmp_path, monkeypatch):
    folder = tmp_path / "recipes"
    folder.mkdir()
    tiny_base(folder / "tiny.gguf")
    write_jsonl(folder / "rows.jsonl", [gsm8k_row(n) for n in range(20)])
    fields = "\n".join(f"{key} = {value}" for key, value in SMALL.items())
    (folder / "my.toml").write_text(
        f'task = "math"\nbase = "tiny.gguf"\ndata = ["rows.jsonl"]\noutput = "out"\nalpha = 8\n{fields}\n'
    )
    monkeypatch.chdir(tmp_path)
    record = json.loads(invoke("recipes/my.toml", "--steps", "2", "--threads", "1", "--json").stdout)
    assert record["recipe"]["steps"] == 2
    assert record["recipe"]["alpha"] == 8
    assert record["recipe"]["lr"] == 1e-3
    assert (folder / "out" / "adapter_model.safetensors").is_file()
    invoke("recipes/my.toml", "-o", "here", "--threads", "1")
    assert (tmp_path / "here" / "train.json").is_file()


def test_a_file_with_an_unknown_key_is_refused_before_flags_are_missed(tmp_path):
    (tmp_path / "r.toml").write_text('task = "math"\nbaes = "b.gguf"\n')
    with pytest.raises(InputError, match="did you mean base"):
        invoke(tmp_path / "r.toml")
    (tmp_path / "s.toml").write_text("task = \n")
    with pytest.raises(InputError, match="is not TOML"):
        invoke(tmp_path / "s.toml")
    with pytest.raises(InputError, match="no such file"):
        invoke(tmp_path / "none.toml")
    with pytest.raises(InputError, match="no recipe 'math/gpt-5'"):
        invoke("math/gpt-5")


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_parquet_and_gzip_read_as_jsonl_does(tmp_path):
    rows = [mbpp_row(n) for n in range(600, 604)]
    write_parquet(tmp_path / "rows.parquet", rows)
    plain = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert list(read_rows(tmp_path / "rows.parquet")) == list(read_rows(plain)) == rows
    (tmp_path / "bad.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(InputError, match="not a parquet file"):
        list(read_rows(tmp_path / "bad.parquet"))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    rows = [gsm8k_row(n) for n in range(20)]
    write_parquet(folder / "gsm8k/main/train-00000-of-00001.parquet", rows)
    write_parquet(folder / "gsm8k/main/test-00000-of-00001.parquet", rows[:3])
    write_parquet(folder / "gsm8k/socratic/train-00000-of-00001.parquet", rows[:4])
    (folder / "one").mkdir()
    write_jsonl(folder / "one/one-15k.jsonl", rows)
    (folder / "one/README.md").write_text("about")
    tiny_checkpoint(folder / "model", "llama")
    repositories = {"datasets/tiny/gsm8k": "gsm8k", "datasets/tiny/one": "one", "tiny/model": "model"}
    with serving({name: folder / place for name, place in repositories.items()}) as server:
        yield server


# huggingface_hub reads its environment when it is imported: each use is a process of its own
FIND = (
    "import sys, json\n"
    "from slm_edge.train.data.sources import find_data\n"
    "from slm_edge.edge.errors import InputError\n"
    "for text in sys.argv[1:]:\n"
    "    try: print(json.dumps([[s.name, str(s.path)] for s in find_data(text)]))\n"
    "    except InputError as error: print(json.dumps(str(error)))\n"
)


def test_data_is_found_by_its_hub_name(hub, tmp_path):
    texts = ["tiny/gsm8k:main/train-*.parquet", "tiny/one", "tiny/gsm8k", "tiny/none", "tiny/gsm8k:nothing*"]
    environment = os.environ | hub.environment(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", FIND, *texts], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    named, alone, unclear, none, nothing = map(json.loads, result.stdout.splitlines())
    ((name, path),) = named
    assert name == f"tiny/gsm8k@{SHA}:main/train-00000-of-00001.parquet"
    assert parquet.read_metadata(path).num_rows == 20
    assert [name for name, _ in alone] == [f"tiny/one@{SHA}:one-15k.jsonl"]
    assert "isn't clear which" in unclear
    assert "socratic/train" in unclear
    assert "no such data set on the hub" in none
    assert "no file fits 'nothing*'" in nothing
    assert not any("test-" in file or file == "README.md" for _, file in hub.fetched)


def test_base_and_data_by_hub_name_train_and_again_offline(hub, tmp_path):
    fields = "\n".join(f"{key} = {value}" for key, value in SMALL.items())
    (tmp_path / "r.toml").write_text(
        f'task = "math"\nbase = "tiny/model"\ndata = ["tiny/gsm8k:main/train-*"]\n{fields}\n'
    )
    environment = os.environ | hub.environment(tmp_path)
    words = [sys.executable, "-m", "slm_edge.edge", "train", "r.toml", "--threads", "1", "--json", "-o"]
    records = []
    for output, more in (("one", {}), ("two", {"HF_ENDPOINT": "http://127.0.0.1:9"})):
        done = subprocess.run([*words, output], env=environment | more, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        records.append(json.loads(done.stdout))
    assert records[0]["base"]["hub"] == "tiny/model"
    assert records[0]["curve"] == records[1]["curve"]
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny/model"
    assert "base_model: tiny/model" in (tmp_path / "one" / "README.md").read_text()


def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        find_data("gsm8k/train.jsonl", tmp_path)
    with pytest.raises(InputError, match="is a folder"):
        find_data(".", tmp_path)
