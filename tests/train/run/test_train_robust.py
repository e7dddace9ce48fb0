"""Long runs: evaluation and early stop, replay rows, what is written at the end, memory, several processes."""

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from build_gguf import tiny_base
from build_rows import SMALL, gsm8k_row, write_jsonl
from click.testing import CliRunner
from safetensors.torch import load_file
from slm_edge.edge.errors import InputError
from slm_edge.train.cli.group import train as train_command
from slm_edge.train.recipe import Recipe
from slm_edge.train.run.checkpoint import State
from slm_edge.train.run.job import Extras, train
from slm_edge.train.run.loop import others_on_gpu

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", [gsm8k_row(n) for n in range(24)])


def test_the_best_is_kept_and_patience_ends_the_run():
    state, parameter = State(0, 0, 0, []), torch.nn.Parameter(torch.zeros(1))
    ended = []
    for step, loss in ((5, 2.0), (10, 1.0), (15, 1.5), (20, 1.2), (25, 1.1)):
        state.step = step
        with torch.no_grad():
            parameter.fill_(step)
        state.measured(loss, {"p": parameter}, patience=3)
        ended.append(state.stopped_early)
    assert ended == [False] * 4 + [True]
    assert state.best_step == 10
    state.take_best({"p": parameter})
    assert parameter.item() == 10


def test_a_run_that_gets_worse_stops_early_with_its_best_adapter(base, rows, tmp_path, capsys):
    # a rate that is too high: the held-out loss rises soon (at a far higher one it only falls, from far above)
    fields = {**SMALL, "lr": 0.05, "warmup": 0.0, "schedule": "constant", "steps": 30, "eval_every": 1, "patience": 3}
    recipe = Recipe(task="math", **fields)
    record = train(recipe, base=base, data=[rows], output=tmp_path / "a", threads=1, save_every_s=0)
    assert record["stopped_early"]
    assert record["steps"] == record["best_step"] + 3 < 30
    losses = {entry["step"]: entry["loss"] for entry in record["evaluations"]}
    assert record["held_out_loss"]["adapter"] == pytest.approx(losses[record["best_step"]], rel=1e-6)
    assert min(losses.values()) == losses[record["best_step"]]
    # its last checkpoint gives the same once more
    first = load_file(tmp_path / "a" / "adapter_model.safetensors")
    (tmp_path / "a").rename(tmp_path / "b")
    again = train(recipe, base=base, data=[rows], output=tmp_path / "a", threads=1)
    assert again == record
    assert all(torch.equal(first[k], v) for k, v in load_file(tmp_path / "a" / "adapter_model.safetensors").items())
    card = (tmp_path / "a" / "README.md").read_text()
    assert f"Stopped early; the adapter is that of step {record['best_step']}." in card
    assert rows.name in card
    assert record["data"][0]["sha256"][:16] in card
    picture = ElementTree.fromstring((tmp_path / "a" / "loss.svg").read_text())
    lines = [node for node in picture.iter() if node.tag.endswith("polyline")]
    assert [len(line.get("points").split()) for line in lines] == [len(record["curve"])] * 2 + [len(losses) + 1]
    assert (tmp_path / "a" / "loss.svg").stat().st_size < 20_000


def test_measuring_changes_nothing_but_the_record(base, rows, tmp_path):
    for name, more in (("a", {}), ("b", {"eval_every": 1}), ("c", {"eval_every": 2, "patience": 1000})):
        recipe = Recipe(task="math", **{**SMALL, "steps": 4, "dropout": 0.1, **more})
        train(recipe, base=base, data=[rows], output=tmp_path / name, threads=1)
    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    record = json.loads((tmp_path / "c" / "train.json").read_text())
    assert [entry["step"] for entry in record["evaluations"]] == [2, 4]


def test_patience_without_anything_to_measure_is_refused():
    with pytest.raises(InputError, match="patience needs eval_every"):
        Recipe(task="math", patience=2)
    with pytest.raises(InputError, match="nothing to measure on"):
        Recipe(task="math", patience=2, eval_every=5, held_out=0)


def test_replay_rows_make_up_their_share(base, rows, tmp_path):
    general = [
        {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"{n}!"}]}
        for n in range(10)
    ]
    general += [{"prompt": f"Hello {n}", "completion": "Hi."} for n in range(5)]
    general += [{"instruction": f"Count to {n}", "input": "slowly", "output": "1"} for n in range(5)]
    replay = write_jsonl(tmp_path / "general.jsonl", general)
    recipe = Recipe(task="math", **{**SMALL, "steps": 1, "replay": 0.25})
    record = train(recipe, base=base, data=[rows], output=tmp_path / "a", extras=Extras(replay=[replay]), threads=1)
    assert record["counts"]["kept"] == 24 + 8
    assert record["counts"]["dropped"] == {"replay rows not drawn": 12}
    assert record["data"][1]["replay"] is True
    with pytest.raises(InputError, match="go together"):
        train(recipe, base=base, data=[rows], output=tmp_path / "b", threads=1)
    with pytest.raises(InputError, match=r"asks for 72 rows; replay_data has 20"):
        more = Recipe(task="math", **{**SMALL, "replay": 0.75})
        train(more, base=base, data=[rows], output=tmp_path / "c", extras=Extras(replay=[replay]), threads=1)


def test_contamination_is_in_the_record_and_can_be_dropped(base, tmp_path):
    (tmp_path / "gsm8k").mkdir()
    question = "Ann has 3 pens and buys 4 more. How many pens has she?"
    data = write_jsonl(tmp_path / "gsm8k/train.jsonl", [gsm8k_row(n) for n in range(20)])
    others = [{"question": f"Something else altogether that nobody asks here, number {n}"} for n in range(9)]
    write_jsonl(tmp_path / "gsm8k/test.jsonl", [{"question": question}, *others])
    args = ["math", "--base", base, "--data", data, "-o", tmp_path / "a", "--threads", "1", "--json", "--steps", "1"]
    args += ["--contamination", "drop", "--rank", "4", "--held-out", "2", "--batch", "2"]
    record = json.loads(CliRunner().invoke(train_command, list(map(str, args)), catch_exceptions=False).stdout)
    assert record["contamination"]["benchmarks"] == {"GSM8K test": {"items": 10, "items_met": 1, "rows": 1}}
    assert record["counts"]["dropped"] == {"overlaps with GSM8K test": 1}
    assert "GSM8K test: 1 rows" in (tmp_path / "a" / "README.md").read_text()


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from slm_edge.train.run import loop
from slm_edge.train.recipe import Recipe

before = loop.train_step
def train_step(*args):
    # the address space that is there now, and a little more: enough for the thread, not for the step
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (160 << 20), resource.RLIM_INFINITY))
    return before(*args)
loop.train_step = train_step
from slm_edge.edge.cli import main as cli
sys.argv = ["slm-edge", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits the address space as Linux counts it")
def test_out_of_memory_says_which_knob_to_turn(tmp_path):
    base = tiny_base(tmp_path / "tiny.gguf", n_embd=256, n_ff=2048)
    rows = write_jsonl(tmp_path / "rows.jsonl", [gsm8k_row(n) for n in range(1000, 1200)])
    args = ["train", "math", "--base", base, "--data", rows, "-o", tmp_path / "o", "--threads", "1", "--steps", "1"]
    args += ["--batch", "128", "--forward-tokens", "8000", "--held-out", "0"]
    result = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, *map(str, args)], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 4, result.stderr
    for knob in ("memory ran out", "--forward-tokens (now 8000)", "--threads 1", "--weights gguf"):
        assert knob in result.stderr
    assert "Traceback" not in result.stderr


def test_a_gpu_that_others_fill_is_said():
    # An H100 that twelve trainings shared: the one that failed held 1.1 GiB
    gib = 1 << 30
    said = others_on_gpu(10 << 20, 79 * gib, 1 * gib)
    assert said.startswith("other processes hold 78.0 GiB of this GPU's 79.0 GiB: run fewer at once")
    # Alone on it: CUDA's own context is all that is not ours
    assert others_on_gpu(1 * gib, 79 * gib, 77 * gib) is None


def launched(n, args, **more):
    """The command in n processes, as torchrun and `accelerate launch` start them."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    return [*words, "-m", "slm_edge.edge", "train", *map(str, args)]


def test_two_processes_give_the_curve_of_one_with_the_whole_batch(base, rows, tmp_path):
    fields = {**SMALL, "batch": 8, "steps": 12, "eval_every": 6}
    args = ["math", "--base", base, "--data", rows, "--threads", "1", "--device", "cpu"]
    args += [part for key, value in fields.items() for part in ("--" + key.replace("_", "-"), value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        launched(2, [*args, "-o", tmp_path / "two", "--json"]), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout)
    one = train(Recipe(task="math", **fields), base=base, data=[rows], output=tmp_path / "one", threads=1)
    assert (two["processes"], one["processes"]) == (2, 1)
    for ours, theirs in zip(two["curve"], one["curve"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert [e["loss"] for e in two["evaluations"]] == pytest.approx([e["loss"] for e in one["evaluations"]], rel=1e-3)
    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    for name, values in a.items():
        # Adam divides tiny gradients by their own size: single values may differ, the matrix doesn't
        assert (b[name] - values).norm() <= 0.02 * values.norm()


def test_two_processes_stop_together_and_one_takes_up(base, rows, tmp_path):
    fields = {**SMALL, "steps": 4000, "batch": 4}
    args = ["math", "--base", base, "--data", rows, "--threads", "1", "--save-every", "0", "-o", tmp_path / "o"]
    args += [part for key, value in fields.items() for part in ("--" + key.replace("_", "-"), value)]
    process = subprocess.Popen(
        launched(2, args), stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    while not (tmp_path / "o.run" / "checkpoint.pt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode != 0
    recipe = Recipe(task="math", **fields)
    record = train(recipe, base=base, data=[rows], output=tmp_path / "o", threads=1, finish=True)
    assert 1 <= record["steps"] < 4000
