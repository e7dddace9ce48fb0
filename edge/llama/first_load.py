"""The first load of a file that holds what was not tried here, in a child process that may die of it.

    ensure_loads(base)                 # nothing for files whose keys, types and tokenizer are known
    try_first_load("other.gguf")       # any file, whatever its architecture

llama.cpp aborts the process on many things that it does not expect. The child loads the file, tokenizes, decodes a
prompt and a few tokens, and saves and restores its state, within limits of time and memory. What held is remembered in
the cache by the file's sha256, and for the installed llama.cpp alone.
"""

import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from ..errors import DamagedError, DoesNotFitError, EngineError, SlmEdgeError
from ..files import cache
from ..files.read import sha256_file
from ..gguf.base import BaseInfo

# Words of several scripts, spaces, line ends, digits and marks: each way through a tokenizer
SAMPLE: Final = "Hello,  world!\n\n1234.5 it's Grüße \t你好。🙂 <|im_start|></s> e\u0301 (x_1)"
N_CTX_TOKENS: Final = 256
_STEPS: Final = 4
# A slow board reads a file at 20 MB/s from its card, and computes a few tokens in the rest.
_LEAST_TIMEOUT_S: Final = 120.0
_BYTES_PER_S: Final = 20e6
# Beside the file, which may be mapped and copied
_SPARE_BYTES: Final = 4 << 30
_LAST_WORDS: Final = 600


def ensure_loads(base: BaseInfo) -> None:
    """Tries a base with unproved parts (`BaseInfo.unproved`), unless it held before; raises as `try_first_load`."""
    if base.unproved:
        try_first_load(base.file.path, why=base.unproved)


def try_first_load(
    path: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    why: tuple[str, ...] = (),
    timeout_s: float | None = None,
) -> None:
    """Loads and uses a file in a child process, unless the cache says that it held.

    Args:
        sha256: of the file, where it is known.
        why: what was not tried, for the message.
        timeout_s: None: by the file's size.

    Raises:
        DamagedError: llama.cpp dies of it, does not end, gives no numbers, or another state than it saved.
        EngineError: llama.cpp refuses it; its own words are in `problems`.
        DoesNotFitError: memory does not suffice to try it.
    """
    path = Path(path)
    sha256 = sha256 or sha256_file(path)
    if held_before(sha256):
        return
    timeout_s = timeout_s or time_for(path.stat().st_size)
    arguments = (str(path.absolute()), str(int(timeout_s)))
    told = told_by_child("slm_edge.edge.llama.first_load", arguments, path, why=why, timeout_s=timeout_s)
    if not told["held"]:
        fault = str(told["fault"])
        if told["kind"] == EngineError.__name__:
            raise EngineError(fault, where=path, problems=[str(one) for one in told["problems"]])
        raise _died(fault, path, why, "")
    remember_held(sha256)


def time_for(n_bytes: int) -> float:
    """Seconds in which so many bytes are loaded and used, on a slow board too."""
    return _LEAST_TIMEOUT_S + n_bytes / _BYTES_PER_S


def told_by_child(
    module: str, arguments: Sequence[str], path: Path, *, why: tuple[str, ...] = (), timeout_s: float
) -> dict[str, Any]:
    """What a module tells that runs as a child process and uses a file: its JSON, with "held" true or false.

    Raises:
        DamagedError: it dies, tells nothing, or does not end.
        DoesNotFitError: it was killed for want of memory.
    """
    try:
        child = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=timeout_s,
            # Without it ggml starts a debugger when it aborts.
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )
    except subprocess.TimeoutExpired:
        raise _died(f"does not end within {timeout_s:.0f} s", path, why, "") from None
    said = child.stderr.decode(errors="replace").strip()[-_LAST_WORDS:]
    if child.returncode == -signal.SIGKILL:
        raise DoesNotFitError("was killed while it was tried, most likely for want of memory", where=path)
    if child.returncode < 0:
        raise _died(f"ends by signal {-child.returncode} ({signal.Signals(-child.returncode).name})", path, why, said)
    try:
        told: dict[str, Any] = json.loads(child.stdout)
        if not told["held"]:
            _ = told["fault"], told["kind"], told["problems"]
    except (ValueError, KeyError, TypeError):
        raise _died(f"ends with code {child.returncode}", path, why, said) from None
    return told


def _engine() -> str:
    return f"{importlib.metadata.version('llama-cpp-python')} {platform.machine()}"


def held_before(sha256: str) -> bool:
    """Whether the cache says that what has this sha256 held with the installed llama.cpp."""
    return cache.held_before(sha256, _engine())


def remember_held(sha256: str) -> None:
    """Says so from now on."""
    cache.remember_held(sha256, _engine())


def _died(how: str, path: Path, why: tuple[str, ...], said: str) -> DamagedError:
    problems = [*(f"not tried before: {one}" for one in why), *([f"its last words: {said}"] if said else [])]
    return DamagedError(f"llama.cpp {how} when it loads and uses this file", where=path, problems=problems)


def _use(path: Path) -> None:
    """What the child does."""
    import numpy as np

    from .context import Context
    from .model import Model

    with Model.load(path) as model:
        ids = model.vocab.encode(SAMPLE) + model.vocab.encode(SAMPLE, special=False, add_bos=True)
        model.vocab.decode(ids, special=True)
        for token_id in range(model.vocab.n_tokens):
            model.vocab.piece(token_id, special=True)
        ids = (ids or [0])[: N_CTX_TOKENS // 2]
        with Context(model, n_ctx_tokens=N_CTX_TOKENS, n_batch_tokens=N_CTX_TOKENS) as context:
            context.decode(ids, 0)
            context.settle(0)
            state = context.read_sequence(0)
            rows: list[tuple[int, np.ndarray[Any, Any]]] = []
            for restored in (False, True):
                if restored and not context.write_sequence(0, state):
                    raise DamagedError("does not take back the state that it saved")
                for step in range(_STEPS):
                    token_id = int(context.logits().argmax()) if not restored else rows[step][0]
                    context.decode([token_id], len(ids) + step)
                    logits = context.logits()
                    if not np.isfinite(logits).all():
                        raise DamagedError("gives what is no number")
                    if not restored:
                        rows.append((token_id, logits))
                    elif not np.array_equal(rows[step][1], logits):
                        raise DamagedError("gives other numbers from the state that it saved")


def tell_of(use: Callable[[], object], n_bytes: int, timeout_s: float) -> None:
    """In the child: does something within limits of memory and time, and prints what `told_by_child` reads.

    Args:
        n_bytes: of the files that it uses.
    """
    if sys.platform != "win32":
        import resource

        for limit, most in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_CPU, int(timeout_s) * (os.cpu_count() or 1)),
            (resource.RLIMIT_AS, 3 * n_bytes + _SPARE_BYTES),
        ):
            hard = resource.getrlimit(limit)[1]
            resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    told: dict[str, object] = {"held": True}
    try:
        use()
    except SlmEdgeError as error:
        told = {"held": False, "kind": type(error).__name__, "fault": error.message, "problems": error.problems}
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    tried = Path(sys.argv[1])
    tell_of(lambda: _use(tried), tried.stat().st_size, int(sys.argv[2]))
