"""An adapter is tried in a child process, which may die of it, before a running engine loads it.

    try_apart("llama", base_path, base_fingerprint, packed)

The child opens the base, loads the adapter and computes with it. What held is remembered in the cache, for that
base and the installed llama.cpp.
"""

import contextlib
import hashlib
import os
import sys
from pathlib import Path
from typing import Final

from .. import errors
from ..engines import open_files
from ..llama.first_load import held_before, remember_held, tell_of, time_for, told_by_child
from ..options import EngineOptions
from ..pack.pack import PackedAdapter

_NAME: Final = "tried"
_N_CTX_TOKENS: Final = 256


def try_apart(engine_name: str, base_path: Path, base_fingerprint: str, packed: PackedAdapter) -> None:
    """Loads and uses an adapter in a child process, unless it held before.

    Raises:
        DamagedError: the child dies of it, or does not end.
        DoesNotFitError: memory does not suffice to try it.
        SlmEdgeError: what the child was told when it loaded and used it.
    """
    key = hashlib.sha256(f"{engine_name}\n{base_fingerprint}\n{packed.sha256}".encode()).hexdigest()
    if held_before(key):
        return
    paths = (str(base_path.absolute()), str(packed.path.absolute()))
    timeout_s = time_for(_size_bytes(*paths))
    arguments = (engine_name, *paths, str(int(timeout_s)))
    told = told_by_child("slm_edge.edge.scheduler.trial", arguments, packed.path, timeout_s=timeout_s)
    if told["held"]:
        remember_held(key)
        return
    kind = getattr(errors, str(told["kind"]), errors.DamagedError)
    problems = [str(one) for one in told["problems"]]
    raise kind(str(told["fault"]), where=packed.path, problems=problems)


def _size_bytes(*paths: str) -> int:
    """Of files, and of the files in folders."""
    files = (file for path in map(Path, paths) for file in (path.iterdir() if path.is_dir() else (path,)))
    return sum(file.stat().st_size for file in files)


def _use(engine_name: str, base: str, adapter: str) -> None:
    """What the child does: opening computes a few tokens with the adapter."""
    options: EngineOptions = {"n_ctx_tokens": _N_CTX_TOKENS, "threads": 1}
    if engine_name == "llama":
        # The base's pages are in memory already.
        options |= {"mmap": True, "repack": False}
    open_files(base, {_NAME: adapter}, engine_name, adapter=_NAME, **options).close()


if __name__ == "__main__":
    _engine, _base, _adapter, _timeout_s = sys.argv[1:]
    # Whoever answers goes first, and stays where memory is short.
    with contextlib.suppress(OSError):
        os.nice(10)
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    tell_of(lambda: _use(_engine, _base, _adapter), _size_bytes(_base, _adapter), int(_timeout_s))
