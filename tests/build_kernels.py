"""What the tests of our kernels share."""

import platform
import shutil
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import quants
from slm_edge.benchmarks.made.gguf_out import copy_keys, finish
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.prompt_kernels.build import VARIANTS, compile_library

# The variants that could be built for this machine
HERE = [*VARIANTS.get({"arm64": "aarch64"}.get(platform.machine(), platform.machine()), ())]


def quantised(path, like, type):
    """Writes the base `like` with all matrices in one type."""
    source = GgufFile.open(like)
    writer = gguf.GGUFWriter(path, source.get("general.architecture"))
    copy_keys(writer, source)
    for name, info in source.tensors.items():
        values = source.array(name)
        if len(info.shape) == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, quants.quantize(np.asarray(values, np.float32), type), raw_dtype=type)
    finish(writer)
    return path


def arm_command(tmp_path, monkeypatch):
    """The words that run `product_main.cpp` over the library for Arm, under qemu; skips where it cannot be built."""
    compiler = shutil.which("aarch64-linux-gnu-g++")
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if not compiler or not emulator:
        pytest.skip("needs g++-aarch64-linux-gnu and qemu-user")
    monkeypatch.setenv("CXX", compiler)
    assert compile_library(tmp_path / "arm.so", "aarch64") == list(VARIANTS["aarch64"]) == ["dotprod"]
    program = tmp_path / "product"
    source = Path(__file__).parent / "edge" / "llama" / "product_main.cpp"
    subprocess.run([compiler, "-O1", str(source), "-o", str(program), "-ldl"], check=True)
    return [emulator, "-L", "/usr/aarch64-linux-gnu", "-cpu", "max", str(program), str(tmp_path / "arm.so"), "dotprod"]
