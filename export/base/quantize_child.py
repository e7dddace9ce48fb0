"""The child process of `quantize.py`: takes one order as JSON on stdin, runs llama_model_quantize, tells its progress.

Lines on stdout: {"tensor": NAME, "done": N, "total": M} or {"log": TEXT of a warning or error}. Exit 0 or 1.
When stdin closes, the parent is gone and this process ends too.
"""

import contextlib
import ctypes
import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any, Final

from ...edge.llama.binding import lib
from .imatrix import read_imatrix

# Rows held at once; llama.cpp's own default is 8 GiB.
BUFFER_BYTES: Final = 64 << 20
_TENSOR: Final = re.compile(r"\[\s*(\d+)/\s*(\d+)\]\s+(\S+)")
_LEVEL_WARN: Final = 3
_TAG_INT, _TAG_STR = 0, 3
_MAX_TEXT_BYTES: Final = 127


def _tell(**event: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _listen(level: int, text: bytes, _: Any) -> None:
    line = text.decode("utf-8", errors="replace")
    match = _TENSOR.match(line)
    if match:
        _tell(tensor=match[3], done=int(match[1]) - 1, total=int(match[2]))
    elif level >= _LEVEL_WARN and line.strip(" =\n"):
        _tell(log=line.strip())


def _set_imatrix(llama: Any, params: Any, path: Path) -> list[Any]:
    """Fills the importance matrix and the keys that tell of it; returns what must stay alive meanwhile."""
    imatrix = read_imatrix(path)
    rows = (llama.llama_model_imatrix_data * (len(imatrix.entries) + 1))()
    kept: list[Any] = [rows]
    for row, (name, values) in zip(rows, imatrix.entries.items(), strict=False):
        row.name = name.encode()
        row.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        row.size = len(values)
        kept.append(values)
    params.imatrix = ctypes.cast(rows, ctypes.POINTER(llama.llama_model_imatrix_data))
    facts: list[tuple[str, int | str]] = [
        ("quantize.imatrix.file", path.name),
        ("quantize.imatrix.dataset", imatrix.dataset.replace("\\", "/").rpartition("/")[2]),
        ("quantize.imatrix.entries_count", len(imatrix.entries)),
        ("quantize.imatrix.chunks_count", imatrix.n_chunks),
    ]
    overrides = (llama.llama_model_kv_override * (len(facts) + 1))()
    for override, (key, fact) in zip(overrides, facts, strict=False):
        override.key = key.encode()
        if isinstance(fact, int):
            override.tag, override.value.val_i64 = _TAG_INT, fact
        else:
            override.tag = _TAG_STR
            override.value.val_str = fact.encode()[:_MAX_TEXT_BYTES].decode(errors="ignore").encode()
    params.kv_overrides = ctypes.cast(overrides, ctypes.POINTER(llama.llama_model_kv_override))
    return [*kept, overrides]


def main() -> int:
    """Runs one order."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    llama = lib()
    callback = llama.llama_log_callback(_listen)
    llama.llama_log_set(callback, None)
    params = llama.llama_model_quantize_default_params()
    params.ftype = order["ftype"]
    params.nthread = order["threads"]
    params.allow_requantize = order["allow_requantize"]
    params.max_buf_size = BUFFER_BYTES
    kept = _set_imatrix(llama, params, Path(order["imatrix"])) if order["imatrix"] else []
    failed = llama.llama_model_quantize(order["source"].encode(), order["dest"].encode(), ctypes.byref(params))
    del kept
    return 1 if failed else 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # The thread that waits on stdin must not hold the exit up.
    os._exit(code)
