"""The tutorial's way on a small random model: checkpoint and data in, an answer out."""

import json
import subprocess
import sys

from build_hf import tiny_checkpoint


def slm_edge(*args, cwd, code=0):
    result = subprocess.run(
        [sys.executable, "-m", "slm_edge.edge", *map(str, args)], capture_output=True, text=True, cwd=cwd, timeout=300
    )
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout


def test_from_checkpoint_and_data_to_an_answer(tmp_path):
    tiny_checkpoint(tmp_path / "hf", "llama", tied=True)
    rows = [
        {"question": f"Tom has {n} eggs and eats 1.", "answer": f"{n} - 1 = <<{n}-1={n - 1}>>{n - 1}\n#### {n - 1}"}
        for n in range(2, 26)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))

    slm_edge("export", "base", "hf", "-o", "base.gguf", "--type", "q8_0", cwd=tmp_path)
    slm_edge(
        *("train", "math", "--base", "base.gguf", "--data", "train.jsonl", "-o", "peft"),
        *("--steps", "3", "--batch", "4", "--rank", "4", "--held-out", "2", "--made-rows", "0", "--lr", "0.01"),
        cwd=tmp_path,
    )
    slm_edge("export", "lora", "peft", "--base", "base.gguf", "-o", "math.gguf", cwd=tmp_path)
    slm_edge(
        "export",
        "verify",
        "peft",
        "--base-gguf",
        "base.gguf",
        "--gguf",
        "base.gguf",
        "--lora",
        "math.gguf",
        cwd=tmp_path,
    )
    slm_edge("pack", "build", "-o", "my-pack", "--base", "base.gguf", "--adapter", "math=math.gguf", cwd=tmp_path)
    slm_edge("pack", "verify", "my-pack", cwd=tmp_path)
    run = ("run", "--pack", "my-pack", "--max-tokens", "8", "--json", "A box has 12 eggs.")
    answer = json.loads(slm_edge(*run, "--adapter", "math", cwd=tmp_path))
    assert answer["adapter"] == "math"
    assert 0 < answer["n_tokens"] <= 8
    again = json.loads(slm_edge(*run, "--adapter", "math", cwd=tmp_path))
    assert again["text"] == answer["text"]
    assert json.loads(slm_edge(*run, "--adapter", "none", cwd=tmp_path))["adapter"] is None

    adapter = tmp_path / "my-pack" / "adapters" / "math.gguf"
    data = bytearray(adapter.read_bytes())
    data[-1] ^= 1
    adapter.write_bytes(data)
    slm_edge("pack", "verify", "my-pack", cwd=tmp_path, code=5)
    slm_edge(*run, "--adapter", "math", cwd=tmp_path, code=5)
