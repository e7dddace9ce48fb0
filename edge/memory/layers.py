"""What the layers of a base keep of a sequence, from the file's header: keys and values, windows, states.

    kept = kept_of(GgufFile.open("base.gguf"))
    kept.kv_values, kept.windowed_kv_values, kept.state_bytes

Sizes are read layer by layer from the tensors, since layers of one model need not be alike: a layer with `attn_output`
attends, one with `ssm_*` or `shortconv.*` has a state that each token changes.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Final

from ..gguf.families import FAMILIES
from ..gguf.file import GgufFile

Shapes = dict[str, tuple[int, ...]]
_STATE: Final = ("ssm_", "shortconv.", "time_mix_")
_STATE_VALUE_BYTES: Final = 4


@dataclass(frozen=True)
class Kept:
    """What is kept.

    Attributes:
        kv_values: values of keys and values that each token leaves in layers that keep all tokens.
        windowed_kv_values: those in layers that keep the last `window_tokens` only; 0 where it is not known which
            layers do, and all count as keeping all.
        has_window: some layers may keep a window only.
        n_states, state_bytes: layers with a state, and what they take for each sequence.
        widest: values of the widest row of queries, and of the widest feed-forward part.
        row_values: lengths of the rows of keys and of values of one head, in the layers that attend.
    """

    kv_values: int
    windowed_kv_values: int
    window_tokens: int
    has_window: bool
    n_states: int
    state_bytes: int
    n_q: int
    n_ff: int
    row_values: frozenset[int]

    @property
    def cuttable(self) -> bool:
        """As `llama.states.Memory.cuttable` of the base when it is loaded."""
        return not self.has_window and not self.n_states


def kept_of(file: GgufFile) -> Kept:
    """That of a base."""
    arch = str(file.get("general.architecture"))
    layers: defaultdict[int, Shapes] = defaultdict(dict)
    for name, info in file.tensors.items():
        if name.startswith("blk."):
            _, number, rest = name.split(".", 2)
            layers[int(number)][rest] = info.shape
    family, window = FAMILIES.get(arch), file.get(f"{arch}.attention.sliding_window", 0)
    # Mistral's and Qwen's files name a window that their architectures in llama.cpp do not have.
    no_window = family is not None and family.proved and not family.window_every
    has_window = bool(window) and not no_window
    rows = {i: _kv_rows(file, arch, i, shapes) for i, shapes in layers.items() if _attends(shapes)}
    windowed = {i for i in rows if family is not None and family.windowed(i)} if has_window else set()
    states = [shapes for shapes in layers.values() if any(name.startswith(_STATE) for name in shapes)]
    n_embd = _width(file)
    everything = [shape for shapes in layers.values() for shape in shapes.items()]
    return Kept(
        kv_values=sum(sum(rows[i]) for i in rows if i not in windowed),
        windowed_kv_values=sum(sum(rows[i]) for i in windowed),
        window_tokens=int(window) if windowed else 0,
        has_window=has_window,
        n_states=len(states),
        state_bytes=_STATE_VALUE_BYTES * len(states) * _state_values(file, arch, n_embd),
        n_q=max([shape[1] for name, shape in everything if name in ("attn_q.weight", "attn_qkv.weight")] or [n_embd]),
        n_ff=max([shape[0] for name, shape in everything if name == "ffn_down.weight"] or [2 * n_embd]),
        row_values=frozenset(value // max(_kv_heads(file, arch, i), 1) for i, row in rows.items() for value in row),
    )


def _width(file: GgufFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    return int(embedding.shape[0]) if embedding is not None else 0


def _attends(shapes: Shapes) -> bool:
    return "attn_output.weight" in shapes or "attn_k.weight" in shapes


def _number(file: GgufFile, key: str, layer: int, default: int) -> int:
    value: Any = file.get(key, default)
    if isinstance(value, list | tuple):
        return int(value[layer]) if layer < len(value) else default
    return int(value)


def _kv_heads(file: GgufFile, arch: str, layer: int) -> int:
    n_heads = _number(file, f"{arch}.attention.head_count", layer, 1)
    return _number(file, f"{arch}.attention.head_count_kv", layer, n_heads)


def _kv_rows(file: GgufFile, arch: str, layer: int, shapes: Shapes) -> tuple[int, int]:
    """Values of the keys and of the values of one token in one layer."""
    key, value = shapes.get("attn_k.weight"), shapes.get("attn_v.weight")
    if key is not None and len(key) == 2:
        return key[1], value[1] if value is not None else key[1]
    n_embd = _width(file)
    head = n_embd // max(_number(file, f"{arch}.attention.head_count", layer, 1), 1)
    n_kv = _kv_heads(file, arch, layer)
    lengths = (_number(file, f"{arch}.attention.{name}_length", layer, head) for name in ("key", "value"))
    one, other = (n_kv * length for length in lengths)
    return one, other


def _state_values(file: GgufFile, arch: str, n_embd: int) -> int:
    """Values of the state of one layer and sequence: of its convolution, and of what it remembers."""
    cached = int(file.get(f"{arch}.shortconv.l_cache", 0))
    if cached:
        return n_embd * (cached - 1)
    names = ("conv_kernel", "inner_size", "group_count", "state_size")
    conv, inner, groups, state = (int(file.get(f"{arch}.ssm.{name}", 0)) for name in names)
    return max(conv - 1, 0) * (inner + 2 * groups * state) + state * inner
