"""The `ARCHITECTURE.*` keys of a base: which there are, and what they may say.

    check_keys(file, "llama", sizes, faults)
    unproved_keys(file, "llama")        # keys that were not tried here: ["llama.attention.sink_count"]

llama.cpp believes these keys and aborts the process, or computes something else, where they contradict each other. The
common ones have ranges here. A key that is not in the list need not be wrong; its first load is tried in a child.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from .families import Family
from .file import GgufFile, MetaValue, ValueType

# The integer types that llama.cpp's writers have used for counts
COUNTS: Final = (ValueType.UINT32, ValueType.INT32, ValueType.UINT16)
# Of an array under these keys; one for each layer, or for each section of the head
_MOST_VALUES: Final = 1024

# Checked with the sizes, in base.py
_SIZES: Final = frozenset(
    {
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.freq_base",
    }
)
# What these mean is not computed for the families here: there is one value that changes nothing.
_ONLY: Final[Mapping[str, object]] = {
    "expert_count": 0,
    "expert_used_count": 0,
    "expert_group_count": 0,
    "expert_group_used_count": 0,
    "expert_shared_count": 0,
    "leading_dense_block_count": 0,
    "nextn_predict_layers": 0,
    "attention.causal": True,
    "pooling_type": 0,
    "use_parallel_residual": False,
}
# least, most; llama.cpp divides by the scaling factor, and 0 is none
_NUMBERS: Final[Mapping[str, tuple[float, float]]] = {
    "rope.scaling.factor": (0.0, 1e6),
    "rope.scale_linear": (0.0, 1e6),
    "rope.scaling.attn_factor": (1e-6, 1e6),
    "rope.scaling.yarn_log_multiplier": (0.0, 1e6),
    "rope.scaling.yarn_ext_factor": (-1.0, 1e6),
    "rope.scaling.yarn_attn_factor": (1e-6, 1e6),
    "rope.scaling.yarn_beta_fast": (1e-6, 1e6),
    "rope.scaling.yarn_beta_slow": (1e-6, 1e6),
    "attention.layer_norm_epsilon": (1e-20, 1.0),
    "rope.freq_base_swa": (1e-3, 1e12),
}
_WHOLE: Final[Mapping[str, tuple[int, int]]] = {
    "vocab_size": (1, 1 << 31),
    "rope.scaling.original_context_length": (1, 1 << 28),
    "attention.sliding_window": (0, 1 << 28),
}
ROPE_SCALINGS: Final = ("none", "linear", "yarn", "longrope")
_TEXTS: Final[Mapping[str, tuple[str, ...]]] = {"rope.scaling.type": ROPE_SCALINGS}
_ANY: Final = frozenset({"tensor_data_layout", "rope.scaling.finetuned"})
# "rope.dimension_count" and these are compared with the sizes below.
_WINDOW: Final = "attention.sliding_window"
_PATTERN: Final = "attention.sliding_window_pattern"
_KNOWN: Final = {
    *_SIZES,
    *_ONLY,
    *_NUMBERS,
    *_WHOLE,
    *_TEXTS,
    *_ANY,
    _PATTERN,
    "rope.dimension_count",
    "embedding_length_out",
}


def check_keys(file: GgufFile, architecture: str, sizes: Mapping[str, int], faults: list[str]) -> None:
    """Checks all keys of the architecture that `sizes` does not come from.

    Args:
        sizes: "head" and "n_embd", as checked before.
    """
    prefix = f"{architecture}."
    for key, entry in file.metadata.items():
        if not key.startswith(prefix):
            continue
        name = key[len(prefix) :]
        if entry.type is ValueType.ARRAY and entry.n_values > _MOST_VALUES:
            faults.append(f"{key} is an array of {entry.n_values} values; {_MOST_VALUES} at most make sense")
        elif name not in _SIZES and name in _KNOWN:
            _check_known(key, name, entry, sizes, faults)
    if sizes["head"] % 2:
        faults.append(f"a head of {sizes['head']} values cannot be rotated in pairs")
    if sizes["n_o"] != sizes["n_q"]:
        faults.append(f"{prefix}attention.value_length is not its key_length, which llama.cpp does not compute")


def check_windows(file: GgufFile, family: Family, n_layers: int, faults: list[str]) -> None:
    """Checks which layers attend within a window: another pattern ends the process, or is computed otherwise."""
    if not family.window_every:
        return
    if not number_of(file, f"{family.architecture}.{_WINDOW}", faults):
        faults.append(f"{family.architecture}.{_WINDOW} is 0 or missing; each layer would attend to all tokens")
    if n_layers < family.window_every:
        faults.append(f"{n_layers} layers, of which none attends to all tokens; llama.cpp needs one")
    entry = file.metadata.get(f"{family.architecture}.{_PATTERN}")
    if entry is None:
        return
    wanted = [family.windowed(layer) for layer in range(n_layers)]
    if entry.value != family.window_every and not (entry.type is ValueType.ARRAY and [*entry.value] == wanted):
        faults.append(f"{_PATTERN} is {_shown(entry)}; all layers but each {family.window_every}th is handled")


def _check_known(key: str, name: str, entry: MetaValue, sizes: Mapping[str, int], faults: list[str]) -> None:
    if name in _ONLY:
        wanted = _ONLY[name]
        kinds = (ValueType.BOOL,) if isinstance(wanted, bool) else COUNTS
        if entry.type not in kinds or entry.value != wanted:
            faults.append(f"{key} is {_shown(entry)}; only {str(wanted).lower()} is handled")
    elif name in _NUMBERS:
        least, most = _NUMBERS[name]
        if entry.type is not ValueType.FLOAT32 or not (math.isfinite(entry.value) and least <= entry.value <= most):
            faults.append(f"{key} is {_shown(entry)}; a FLOAT32 from {least:g} to {most:g} makes sense")
    elif name in _WHOLE:
        low, high = _WHOLE[name]
        if entry.type not in COUNTS or not low <= entry.value <= high:
            faults.append(f"{key} is {_shown(entry)}; a UINT32 from {low} to {high} makes sense")
    elif name in _TEXTS:
        if entry.type is not ValueType.STRING or entry.value not in _TEXTS[name]:
            faults.append(f"{key} is {_shown(entry)}; {', '.join(_TEXTS[name])} are known")
    elif name == "rope.dimension_count" or name == "embedding_length_out":
        size = sizes["head" if name == "rope.dimension_count" else "n_embd"]
        if entry.type not in COUNTS or entry.value != size:
            faults.append(f"{key} is {_shown(entry)}; in this architecture it is {size}")


def unproved_keys(file: GgufFile, architecture: str) -> list[str]:
    """Keys of the architecture that are not in the list here."""
    prefix = f"{architecture}."
    return [key for key in file.metadata if key.startswith(prefix) and key[len(prefix) :] not in _KNOWN]


def _shown(entry: MetaValue) -> str:
    if entry.type is ValueType.ARRAY:
        return f"an array of {entry.n_values} values"
    return f"{entry.value!r}"[:80] + f" ({entry.type.name})"


def typed(file: GgufFile, key: str, kind: ValueType, faults: list[str], default: Any = None) -> Any:
    """A scalar of one type; a wrong type, or a missing key without a default, is a fault and gives None."""
    entry = file.metadata.get(key)
    if entry is None:
        if default is None:
            faults.append(f"the key {key} is missing")
        return default
    if entry.type is not kind:
        faults.append(f"{key} is {entry.type.name}, not {kind.name}")
        return None
    return entry.value


def number_of(file: GgufFile, key: str, faults: list[str], default: int | None = None) -> int:
    """A count; 0 after a fault."""
    entry = file.metadata.get(key)
    if entry is None:
        if default is None:
            faults.append(f"the key {key} is missing")
        return default or 0
    if entry.type not in COUNTS:
        faults.append(f"{key} is {entry.type.name}, not UINT32")
        return 0
    return int(entry.value)
