"""What the bits of keys and values depend on beside tokens and adapters: the base's bytes and how it is computed.

The fingerprint of a base stays the same through every quantisation, so it is not enough here: the base's sha256 goes
in too. It takes seconds for a large base and is noted in the folder, beside the file's place, size and time.
"""

import contextlib
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Final

from ..errors import SlmEdgeError
from ..files.atomic import locked, write_json
from ..files.read import read_json, sha256_file
from ..gguf.base import BaseInfo
from ..llama.binding import LEAST_COLUMNS, LEAST_OF_PAIRS, lib, prompt_kernels
from ..llama.context import Context
from ..options import BATCH_TOKENS, CHUNK_TOKENS, EngineOptions

NOTES: Final = "bases.json"
MAX_NOTES: Final = 64


def kv_domain(base: BaseInfo, context: Context, options: EngineOptions, folder: Path) -> str:
    """Hex hash that names a way of computing; `folder` is where the base's sha256 is noted and looked up.

    Raises:
        OSError: the base cannot be read.
    """
    kernels = prompt_kernels()
    facts = {
        "base": base_sha256(base.file.path, folder),
        "fingerprint": base.fingerprint,
        "llama_cpp": importlib.metadata.version("llama-cpp-python"),
        "cpu": lib().llama_print_system_info().decode(errors="replace"),
        **({"prompt_kernels": [kernels.name, kernels.sha256, LEAST_COLUMNS, LEAST_OF_PAIRS]} if kernels.name else {}),
        "threads": [context.threads, context.threads_batch, context.pace.adapts],
        "batch_tokens": context.n_batch_tokens,
        "chunk_tokens": [CHUNK_TOKENS, BATCH_TOKENS],
        "repack": options.get("repack", True),
        "both_layouts": options.get("both_layouts", False),
        "kv_type": options.get("kv_type", "f16"),
        "turns_long": context.turns_long,
        "flash_attention": options.get("flash_attention", "auto"),
    }
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=20).hexdigest()


def base_sha256(path: Path, folder: Path) -> str:
    """The sha256 of a file, from the notes in `folder` while its place, size and time are as they were."""
    stat = path.stat()
    key = f"{stat.st_dev}-{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"
    notes = _notes(folder / NOTES)
    if key in notes:
        return notes[key]
    sha256 = sha256_file(path)
    with contextlib.suppress(OSError, SlmEdgeError), locked(folder / ".lock", wait=False):
        kept = list(_notes(folder / NOTES).items())[-(MAX_NOTES - 1) :]
        write_json(folder / NOTES, dict([*kept, (key, sha256)]))
    return sha256


def _notes(path: Path) -> dict[str, str]:
    """The notes, empty if there are none or they are damaged."""
    if not path.exists():
        return {}
    try:
        data = read_json(path)
    except SlmEdgeError:
        return {}
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        return {}
    return data
