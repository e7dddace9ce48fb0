"""A base's own answers as replay rows: what the session says, whole ones alone, and a training takes them."""

import json
import os
import subprocess
import sys

import pytest
from build_gguf import tiny_base
from build_rows import mbpp_row, write_jsonl
from slm_edge.edge.datasets.prompts import dolly_held_out
from slm_edge.edge.errors import InputError
from slm_edge.edge.session.session import Session
from slm_edge.train.drawn.own_answers import own_answers, prompt_of
from slm_edge.train.recipe import Recipe
from slm_edge.train.run.job import Extras, train

MAX_TOKENS = 48


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, rows of all forms, and what the command wrote and printed."""
    folder = tmp_path_factory.mktemp("own")
    base = tiny_base(folder / "base.gguf", n_ctx_train_tokens=512)
    rows = [{"prompt": f"question {i} of the world"} for i in range(40)]
    rows += [{"instruction": f"say {i}", "input": "well"} for i in range(40)]
    rows += [{"instruction": f"what of {i}", "context": f"the place {i}", "response": "x"} for i in range(40)]
    rows += [
        {"messages": [{"role": "user", "content": f"chat {i}"}, {"role": "assistant", "content": "no"}]}
        for i in range(20)
    ]
    data = write_jsonl(folder / "general.jsonl", rows)
    command = [sys.executable, "-m", "slm_edge.edge", "train", "own-answers", "--base", base, "--data", data]
    command += [
        "-o",
        folder / "own.jsonl",
        "--prompts",
        "120",
        "--max-tokens",
        str(MAX_TOKENS),
        "--threads",
        "1",
        "--json",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    return base, rows, folder / "own.jsonl", json.loads(done.stdout)


def test_rows_are_whole_answers_of_the_base(made):
    base, rows, file, printed = made
    written = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert printed == {"prompts": 120, "rows": len(written), "file": str(file)}
    assert 5 < len(written) < 120
    allowed = [prompt_of(row) for row in rows]
    assert None in allowed
    with Session.of_files(base, {}, threads=1) as session:
        for row in written[:10]:
            *prompt, last = row["messages"]
            assert prompt in allowed
            answer = session.ask(prompt, max_tokens=MAX_TOKENS, temperature=0)
            assert (answer.stop_reason, answer.text.strip()) == ("end", last["content"])


def test_a_training_mixes_them_in(made, tmp_path):
    base, _, file, _ = made
    data = write_jsonl(tmp_path / "mbpp.jsonl", [mbpp_row(i) for i in range(601, 613)])
    recipe = Recipe(task="code", rank=2, alpha=4, batch=4, steps=1, max_tokens=400, held_out=0, replay=0.25)
    record = train(recipe, base=base, data=[data], output=tmp_path / "peft", extras=Extras(replay=(file,)), threads=1)
    assert record["counts"]["train"] == 16
    assert [row.get("replay", False) for row in record["data"]] == [False, True]


def test_rows_of_no_form_and_prompts_too_long_are_said(made, tmp_path):
    base, *_ = made
    with pytest.raises(InputError, match="neither messages, nor prompt, nor instruction"):
        prompt_of({"text": "x"})
    held_out = next(row for i in range(99) if dolly_held_out(row := {"instruction": "x", "context": f"place {i}"}))
    assert prompt_of(held_out) is None
    data = write_jsonl(tmp_path / "long.jsonl", [{"prompt": "word " * 300}])
    with pytest.raises(InputError, match="no prompt has at most 256 tokens"):
        own_answers(base, [data], tmp_path / "own.jsonl", threads=1)
    assert not (tmp_path / "own.jsonl").exists()
