"""The command for vLLM: PEFT folders are found by what the adapters say they were made from."""

import hashlib
import json
import shlex

import gguf
import numpy as np
import pytest
from build_gguf import adapter_parts, tiny_adapter, tiny_base, write_gguf
from build_peft import written_adapter
from slm_edge.edge.errors import InputError
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.pack.pack import Pack
from slm_edge.edge.pack.vllm import RANKS, for_vllm
from slm_edge.edge.pack.write import NewAdapter, build_pack


@pytest.fixture
def made(tmp_path):
    """A pack with math and code, whose PEFT folders are in out/, and style, which does not say where it comes from."""
    base = tiny_base(tmp_path / "base.gguf")
    new = []
    for seed, name in enumerate(("math", "code"), 1):
        matrix = np.full((4, 64), seed, np.float32)
        folder = written_adapter(tmp_path / "out" / name / "final", {"x": matrix}, base_model_name_or_path="me/base-1B")
        sha256 = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
        architecture, keys, tensors = adapter_parts(base, seed=seed, rank=12)
        keys["slm_edge.source.sha256"] = (sha256, gguf.GGUFValueType.STRING)
        new.append(NewAdapter(name, write_gguf(tmp_path / f"{name}.gguf", architecture, keys, tensors)))
    card = TaskCard(task="style", system="Be brief.", scale=0.5, stop=("END",))
    new.append(NewAdapter("style", tiny_adapter(tmp_path / "style.gguf", base, seed=3), card))
    return build_pack(tmp_path / "pack", base=base, adapters=new)


def test_the_folders_are_found_and_the_rest_is_said(made, tmp_path):
    plan = for_vllm(made, [tmp_path / "out"])
    words = list(plan.command)
    assert words[:4] == ["vllm", "serve", "me/base-1B", "--enable-lora"]
    assert words[words.index("--max-lora-rank") + 1] == "16" and words[words.index("--max-loras") + 1] == "3"
    modules = dict(word.split("=", 1) for word in words[words.index("--lora-modules") + 1 :])
    assert modules == {
        "math": str(tmp_path / "out/math/final"),
        "code": str(tmp_path / "out/code/final"),
        "style": "PEFT_FOLDER_OF_style",
    }
    notes = "\n".join(plan.notes)
    assert "style is not known: its file does not say" in notes and "strength 0.5" in notes
    assert "its system message, its stop texts" in notes
    assert "BASE_CHECKPOINT" not in notes and "router" not in notes
    # As a shell reads it: comments, then one command.
    lines = plan.text().splitlines()
    assert all(line.startswith("# ") for line in lines[:-1]) and shlex.split(lines[-1]) == words


def test_without_the_folders_their_hashes_are_told(made):
    plan = for_vllm(made)
    assert plan.command[2] == "BASE_CHECKPOINT" and "math=PEFT_FOLDER_OF_math" in plan.command
    notes = "\n".join(plan.notes)
    assert "--peft FOLDER looks for it" in notes and "base.gguf" in notes


def test_bases_that_differ_and_ranks_beyond_vllms_are_said(tmp_path, made):
    config = tmp_path / "out/code/final/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "other/base"}))
    plan = for_vllm(made, [tmp_path / "out/math", tmp_path / "out/code/final"])
    assert plan.command[2] == "BASE_CHECKPOINT"
    assert any("me/base-1B, other/base" in note for note in plan.notes)
    assert list(RANKS) == sorted(RANKS)


def test_a_note_is_one_comment_whatever_files_say(tmp_path, made):
    config = tmp_path / "out/code/final/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "x\nrm -rf y\rz"}))
    lines = for_vllm(made, [tmp_path / "out"]).text().splitlines()
    assert any("x rm -rf y z" in line for line in lines) and all(line.startswith("# ") for line in lines[:-1])


def test_places_without_adapters_are_refused(slm_edge, made, tmp_path):
    (tmp_path / "empty").mkdir()
    for place in ("empty", "gone"):
        with pytest.raises(InputError):
            for_vllm(made, [tmp_path / place])
    with pytest.raises(InputError, match="no adapters"):
        for_vllm(build_pack(tmp_path / "bare", base=tiny_base(tmp_path / "b.gguf"), adapters=[]))
    assert slm_edge("pack", "show", made.folder, "--peft", tmp_path / "out")[0] == 2


def test_the_command_line_prints_it(slm_edge, made, tmp_path):
    code, out, _ = slm_edge("pack", "show", made.folder, "--vllm", "--peft", tmp_path / "out")
    assert code == 0 and out.strip() == for_vllm(Pack.open(made.folder), [tmp_path / "out"]).text()
    code, out, _ = slm_edge("pack", "show", made.folder, "--vllm", "--json")
    assert code == 0 and json.loads(out)["command"][:2] == ["vllm", "serve"]
