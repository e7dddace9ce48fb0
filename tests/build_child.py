"""Lets llama.cpp load and use adapters in a child process, where it may die without taking the tests with it."""

import os
import subprocess
import sys
from pathlib import Path

_CHILD = """
import ctypes, sys
import numpy as np
from llama_cpp import llama_cpp as llama

quiet = llama.llama_log_callback(lambda level, text, data: None)
llama.llama_log_set(quiet, None)
llama.llama_backend_init()
base, *adapters = sys.argv[1:]
params = llama.llama_model_default_params()
# Weights as they are stored: built by gcc 12, llama.cpp's copies for AMX end the process.
params.use_extra_bufts = False
model = llama.llama_model_load_from_file(base.encode(), params)
if not model:
    sys.exit("the base does not load")
params = llama.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = 64, 64, 1, 1
context = llama.llama_init_from_model(model, params)
n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))


def logits():
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    tokens = (ctypes.c_int32 * 3)(40, 41, 42)
    assert llama.llama_decode(context, llama.llama_batch_get_one(tokens, 3)) == 0
    return np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), (n_vocab,)).copy()


plain = logits()
for path in adapters:
    adapter = llama.llama_adapter_lora_init(model, path.encode())
    moved = None
    if adapter:
        llama.llama_set_adapters_lora(context, (type(adapter) * 1)(adapter), 1, (ctypes.c_float * 1)(1.0))
        moved = float(np.abs(logits() - plain).max())
        llama.llama_set_adapters_lora(context, (type(adapter) * 1)(), 0, (ctypes.c_float * 1)(0.0))
        llama.llama_adapter_lora_free(adapter)
    print("moved", moved, flush=True)
"""


def load_in_child(base: Path, adapters: list[Path]) -> dict[Path, str]:
    """What becomes of each adapter: "refused", "died", or how far its logits move as text ("0.25", "nan")."""
    results: dict[Path, str] = {}
    left = list(adapters)
    while left:
        command = [sys.executable, "-c", _CHILD, str(base), *map(str, left)]
        # Without it ggml starts a debugger when it aborts.
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
        child = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert "the base does not load" not in child.stderr
        lines = [line.removeprefix("moved ") for line in child.stdout.splitlines() if line.startswith("moved ")]
        for path, moved in zip(left, lines, strict=False):
            results[path] = "refused" if moved == "None" else moved
        if len(lines) < len(left):
            assert child.returncode != 0
            results[left[len(lines)]] = "died"
        left = left[len(lines) + 1 :]
    return results
