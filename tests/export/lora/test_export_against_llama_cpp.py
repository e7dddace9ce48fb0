"""Our exports against llama.cpp's own converter scripts, tensor for tensor: SLM_EDGE_LLAMA_CPP names its source folder.

SLM_EDGE_LLAMA_CPP=…/llama.cpp pytest tests/export/lora/test_export_against_llama_cpp.py
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from build_hf import LLAMA3_SCALING, tiny_checkpoint
from build_peft import real_adapter
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.export.base.base import Options, export_base
from slm_edge.export.base.quantize import TYPES
from slm_edge.export.lora.lora import export_lora
from transformers import AutoConfig, AutoTokenizer

pytestmark = pytest.mark.reference

# what each side says in its own words, or does not say: names, dates, sizes
SAID_DIFFERENTLY = ("general.", "slm_edge.", "GGUF.")
# the converter writes these always; we only where the checkpoint has them
LEFT_OUT = {"tokenizer.ggml.padding_token_id", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_sep_token"}
# means nothing to a byte-level BPE
LEFT_OUT |= {"tokenizer.ggml.add_space_prefix"}


@pytest.fixture(scope="module")
def llama_cpp():
    """llama.cpp's source folder with its converter scripts."""
    folder = os.environ.get("SLM_EDGE_LLAMA_CPP")
    if not folder:
        pytest.skip("SLM_EDGE_LLAMA_CPP does not name a source folder of llama.cpp")
    return Path(folder)


def run_script(llama_cpp, script, *args):
    env = os.environ | {"PYTHONPATH": str(llama_cpp / "gguf-py"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, llama_cpp / script, *map(str, args)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def checkpoint(folder, family, tokenizer, **fields):
    """A tiny random checkpoint with a real tokenizer, which the converter knows by the hash of its ids."""
    n_tokens = len(AutoTokenizer.from_pretrained(tokenizer))
    small = {"n_embd": 32, "n_ff": 64, "n_heads": 2, "n_kv_heads": 1}
    tiny_checkpoint(folder, family, vocab_size=n_tokens, chat_template=None, **small, **fields)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / file).unlink(missing_ok=True)
        if (tokenizer / file).is_file():
            shutil.copy(tokenizer / file, folder)
    assert AutoConfig.from_pretrained(folder).vocab_size == n_tokens
    return folder


def assert_same_tensors(ours, theirs):
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        assert ours.tensors[name].shape == tensor.shape, name
        assert ours.tensors[name].type == tensor.type, name
        assert np.array_equal(ours.raw(name), theirs.raw(name)), name


TOKENIZER = "tokenizer_qwen2.5"
CASES = {
    "llama, llama3 rope, tied": ("llama", {"rope_scaling": LLAMA3_SCALING}),
    "llama, untied": ("llama", {"tied": False}),
    "qwen2": ("qwen2", {}),
    "qwen3, untied": ("qwen3", {"tied": False}),
    "mistral": ("mistral", {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("type", ["f32", "f16", "q8_0"])
def test_base(tmp_path, shared_data, llama_cpp, case, type):
    family, fields = CASES[case]
    hf = checkpoint(tmp_path / "hf", family, shared_data / TOKENIZER, **fields)
    run_script(llama_cpp, "convert_hf_to_gguf.py", hf, "--outfile", tmp_path / "theirs.gguf", "--outtype", type)
    export_base(hf, tmp_path / "ours.gguf", TYPES[type], Options())
    ours, theirs = GgufFile.open(tmp_path / "ours.gguf"), GgufFile.open(tmp_path / "theirs.gguf")
    assert_same_tensors(ours, theirs)
    wrong = {
        key: (ours.get(key), theirs.get(key))
        for key in theirs.metadata
        if not key.startswith(SAID_DIFFERENTLY) and key not in LEFT_OUT and str(ours.get(key)) != str(theirs.get(key))
    }
    assert not wrong, str(wrong)[:2000]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_adapter(tmp_path, shared_data, llama_cpp, family):
    """A plain LoRA on all seven linear layers: where the converter is right, the same tensors and alpha."""
    hf = checkpoint(tmp_path / "hf", family, shared_data / TOKENIZER)
    peft = real_adapter(tmp_path / "peft", hf, r=8, lora_alpha=16)
    export_base(hf, tmp_path / "base.gguf", TYPES["f32"], Options())
    export_lora(peft, tmp_path / "base.gguf", tmp_path / "ours.gguf", kind="f32")
    script = ("convert_lora_to_gguf.py", peft, "--base", hf, "--outfile", tmp_path / "theirs.gguf", "--outtype", "f32")
    run_script(llama_cpp, *script)
    ours, theirs = GgufFile.open(tmp_path / "ours.gguf"), GgufFile.open(tmp_path / "theirs.gguf")
    assert_same_tensors(ours, theirs)
    assert ours.get("adapter.lora.alpha") == theirs.get("adapter.lora.alpha") == 16
