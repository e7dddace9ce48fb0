"""Compiles the library of products that `llama/binding.py` adds to llama.cpp. Needs a C++ compiler and nothing else.

    python edge/prompt_kernels/build.py OUT.so [x86_64|aarch64]

It runs while a wheel is made, so it stands alone. `$CXX` is the compiler, also one for another machine.
"""

import itertools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
FLAGS: Final = ("-std=gnu++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi")
# Compiled for each kind of CPU
SOURCES: Final = ("tile", "attention")
# The kinds of CPU that one library has code for, the best first, and what the compiler must be told for it.
_AVX2: Final = ("-mavx2", "-mfma", "-mf16c")
_AVX512: Final = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512")
VARIANTS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "x86_64": {
        "amx_int8": (*_AVX2, *_AVX512, "-mamx-tile", "-mamx-int8"),
        "avx512_vnni": (*_AVX2, *_AVX512),
        "avx_vnni": (*_AVX2, "-mavxvnni"),
        "avx2": _AVX2,
    },
    "aarch64": {"dotprod": ("-march=armv8.2-a+dotprod",)},
}
_OTHER_NAMES: Final = {"amd64": "x86_64", "arm64": "aarch64"}


def compile_library(out: Path, machine: str | None = None) -> list[str]:
    """Writes the library; returns the variants in it. One that the compiler is too old for is left out.

    Raises:
        RuntimeError: there is no compiler or none for this machine's CPU; with what it said.
    """
    machine = (machine or platform.machine()).lower()
    wanted = VARIANTS.get(_OTHER_NAMES.get(machine, machine))
    if wanted is None:
        raise RuntimeError(f"there are no kernels for {machine}")
    compiler = next(_compilers(), None)
    if compiler is None:
        raise RuntimeError("there is no C++ compiler: install g++ or set CXX")
    with tempfile.TemporaryDirectory(prefix="slm-edge-kernels-") as folder:
        objects: dict[str, list[str]] = {}
        said = ""
        for name, flags in wanted.items():
            made = [str(Path(folder) / f"{name}.{source}.o") for source in SOURCES]
            for source, out_file in zip(SOURCES, made, strict=True):
                said = _run(
                    [*compiler, *FLAGS, *flags, f"-DVARIANT={name}", "-c", str(HERE / f"{source}.cpp"), "-o", out_file]
                )
                if said:
                    break
            else:
                objects[name] = made
        if not objects:
            raise RuntimeError(said)
        names = " ".join(f"X({name})" for name in objects)
        library = Path(folder) / out.name
        parts = [f"-DVARIANTS(X)={names}", str(HERE / "hook.cpp"), *itertools.chain(*objects.values())]
        said = _run([*compiler, *FLAGS, *parts, "-shared", "-o", str(library)])
        if said:
            raise RuntimeError(said)
        out.parent.mkdir(parents=True, exist_ok=True)
        # A library that a running process has mapped keeps its file.
        aside = out.with_name(f"{out.name}.new")
        shutil.copy(library, aside)
        os.replace(aside, out)
    return list(objects)


def _compilers() -> Iterator[list[str]]:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name.split()[0]):
            yield name.split()


def _run(command: list[str]) -> str:
    """What a compiler that failed said; empty if it did not."""
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    return "" if done.returncode == 0 else done.stderr.strip() or f"{command[0]} failed"


if __name__ == "__main__":
    try:
        sys.stdout.write(" ".join(compile_library(Path(sys.argv[1]), *sys.argv[2:3])) + "\n")
    except (RuntimeError, OSError) as error:
        raise SystemExit(f"no prompt kernels: {error}") from None
