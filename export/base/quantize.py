"""The types that a base can have, and llama.cpp's quantiser, run in a process of its own.

    quantize(source, dest, TYPES["q4_k_m"], threads=2)

F32, F16, BF16 and Q8_0 of a checkpoint are written by us (`checkpoint.py`); everything else goes through
llama_model_quantize. It runs in a child process because it cannot be interrupted, ends the process on some errors,
and says how far it is only in its log.
"""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...edge.errors import EngineError, InputError
from ...edge.files.aside import full_disk
from ...edge.gguf.types import GgmlType
from ...edge.system.machine import usable_cpus
from ...edge.written import did_you_mean

WAIT_AFTER_END_S: Final = 10


@dataclass(frozen=True)
class QuantType:
    """One choice of `--type`.

    Attributes:
        ftype: llama.h's `llama_ftype`, also `general.file_type`.
        bits: per weight, about: to plan disk space. Source: llama.cpp's tools/quantize (Llama-3-8B).
        direct: the ggml type, where we write it ourselves.
        needs_imatrix: useless without an importance matrix; llama.cpp refuses.
    """

    name: str
    ftype: int
    bits: float
    direct: GgmlType | None = None
    needs_imatrix: bool = False


TYPES: Final = {
    entry.name: entry
    for entry in (
        QuantType("f32", 0, 32, GgmlType.F32),
        QuantType("f16", 1, 16, GgmlType.F16),
        QuantType("bf16", 32, 16, GgmlType.BF16),
        QuantType("q8_0", 7, 8.5, GgmlType.Q8_0),
        QuantType("q6_k", 18, 6.57),
        QuantType("q5_k_m", 17, 5.7),
        QuantType("q5_k_s", 16, 5.57),
        QuantType("q5_1", 9, 6.0),
        QuantType("q5_0", 8, 5.6),
        QuantType("q4_k_m", 15, 4.9),
        QuantType("q4_k_s", 14, 4.67),
        QuantType("q4_1", 3, 5.2),
        QuantType("q4_0", 2, 4.7),
        QuantType("iq4_nl", 25, 4.7),
        QuantType("iq4_xs", 30, 4.46),
        QuantType("q3_k_l", 13, 4.3),
        QuantType("q3_k_m", 12, 4.0),
        QuantType("q3_k_s", 11, 3.65),
        QuantType("iq3_m", 27, 3.76),
        QuantType("iq3_s", 26, 3.66),
        QuantType("iq3_xs", 22, 3.5, needs_imatrix=True),
        QuantType("iq3_xxs", 23, 3.25, needs_imatrix=True),
        QuantType("q2_k", 10, 3.2),
        QuantType("q2_k_s", 21, 3.0, needs_imatrix=True),
        QuantType("iq2_m", 29, 2.93, needs_imatrix=True),
        QuantType("iq2_s", 28, 2.7, needs_imatrix=True),
        QuantType("iq2_xs", 20, 2.6, needs_imatrix=True),
        QuantType("iq2_xxs", 19, 2.4, needs_imatrix=True),
    )
}


def find_type(name: str, *others: str) -> QuantType | None:
    """The type called `name`, in letters of any size; None for one of `others`, which a command takes beside.

    Raises:
        InputError: there is none; the nearest are named.
    """
    if name.lower() not in (*TYPES, *others):
        near = did_you_mean(name.lower(), [*TYPES, *others])
        raise InputError(f"no type {name.lower()!r}; did you mean {', '.join(near[:4])}?", where="--type")
    return TYPES.get(name.lower())


def quantize(
    source: Path,
    dest: Path,
    type: QuantType,
    *,
    threads: int | None = None,
    imatrix: Path | None = None,
    allow_requantize: bool = False,
    on_tensor: Callable[[int, int, str], object] = lambda done, total, name: None,
) -> None:
    """Quantises a GGUF model with llama_model_quantize.

    Args:
        source, dest: two different files; use `edge.files.atomic_file` for `dest`.
        threads: None for all cores.
        imatrix: an importance matrix that was checked before (`imatrix.check_imatrix`).
        on_tensor: called with how many tensors are done, of how many, and which comes now.

    Raises:
        InputError: the type needs an importance matrix.
        DoesNotFitError: the disk is full.
        EngineError: llama.cpp failed; its last words are in the message.
    """
    order = {
        "source": os.fspath(source),
        "dest": os.fspath(dest),
        "ftype": type.ftype,
        "threads": threads or usable_cpus(),
        "imatrix": None if imatrix is None else os.fspath(imatrix),
        "allow_requantize": allow_requantize,
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "slm_edge.export.base.quantize_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # A Ctrl-C in the terminal is for us; the child ends when we end it, or when its input closes with us.
        start_new_session=True,
    )
    said: list[str] = []
    try:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(json.dumps(order) + "\n")
        child.stdin.flush()
        for line in child.stdout:
            event = json.loads(line)
            if "tensor" in event:
                on_tensor(event["done"], event["total"], event["tensor"])
            elif event.get("log"):
                said.append(event["log"])
        code = child.wait()
    except BrokenPipeError:
        code = child.wait()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait(WAIT_AFTER_END_S)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                _close(pipe.close)
    if code == 0:
        return
    if any("imatrix" in line or "importance matrix" in line for line in said):
        raise InputError(f"{type.name} needs an importance matrix for this model", hint="give one: --imatrix FILE")
    if any("iostream error" in line for line in said):
        # The source was read before: it is the writing that fails.
        raise full_disk(OSError(errno.ENOSPC, "llama.cpp could not write all of it"), dest)
    how = f"it was ended by signal {-code}" if code < 0 else "it failed"
    raise EngineError(f"llama.cpp cannot quantise to {type.name}: {how}", where=source, problems=said[-5:])


def _close(close: Callable[[], object]) -> None:
    try:
        close()
    except BrokenPipeError:
        # What was left in the buffer no longer matters.
        return
