"""The keys of a base, its architecture's and its tokenizer's: which there are, and what they may say.

    check_keys(file, "llama", sizes, faults)
    unproved_keys(file, "llama")        # keys that were not tried here: ["llama.attention.sink_count"]
    check_tokenizer(file, faults)       # the size of the vocabulary

llama.cpp believes these keys and aborts the process, or computes something else, where they contradict each other. The
common ones have ranges here. A key that is not in the list need not be wrong; its first load is tried in a child. The
tokenizer is checked as llama.cpp reads it: texts end at a zero byte, empty ones get a name.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
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


# tokenizer.ggml.token_type
_BYTE: Final = 6
_KEYS: Final = "tokenizer.ggml."
_KNOWN_KEY: Final = re.compile(
    r"tokenizer\.ggml\.(model|pre|tokens|token_type|scores|merges|[a-z]+_token_id|add_(bos|eos|sep)_token|"
    r"add_space_prefix|remove_extra_whitespaces|token_type_count|added_tokens)"
)
# With these llama.cpp aborts at the first space of a prompt.
_NO_SPACES: Final = frozenset({"whitespace"})
# Values of tokenizer.ggml.pre that were tried here; llama.cpp refuses those that it does not know.
# fmt: off
_PROVED_PRE: Final = frozenset((
    "a.x-4.0", "afmoe", "bailingmoe", "bailingmoe2", "bloom", "chameleon", "chatglm-bpe", "codeshell", "cohere2moe",
    "command-r", "dbrx", "deepseek-coder", "deepseek-llm", "deepseek-r1-qwen", "deepseek-v3", "default", "exaone",
    "exaone-moe", "exaone4", "f2llmv2", "falcon", "falcon-h1", "falcon3", "gemma4", "gigachat", "glm4", "glm5",
    "gpt-2", "gpt-4o", "gpt3-finnish", "granite-docling", "granite-embed-multi-311m", "granite-embed-multi-97m",
    "grok-2", "hunyuan", "hunyuan-dense", "hy_v4", "jais", "jais-2", "jina-de", "jina-es", "jina-v1-en",
    "jina-v2-code", "jina-v2-de", "jina-v2-es", "jina-v5-nano", "joyai-llm", "kanana2", "kimi-k2", "kormo", "laguna",
    "lfm2", "llada-moe", "llama-bpe", "llama-v3", "llama3", "llama4", "megrez", "mellum", "mellum2", "midm-2.0",
    "minerva-7b", "minicpm5", "minimax-m2", "modern-bert", "mpt", "olmo", "phi-2", "pixtral", "poro-chat", "qwen2",
    "qwen35", "refact", "roberta-bpe", "sarvam-moe", "seed-coder", "smaug-bpe", "smollm", "solar-open", "spark2_5",
    "stablelm2", "starcoder", "superbpe", "talkie", "tekken", "tiny_aya", "trillion", "ufakzeka", "viking", "youtu",
))
# fmt: on


def check_tokenizer(file: GgufFile, faults: list[str], *, proved: bool = True) -> int:
    """Checks the tokenizer's keys; returns the size of the vocabulary.

    Args:
        proved: kinds of tokenizers that were tried here are asked for.
    """
    model = typed(file, "tokenizer.ggml.model", ValueType.STRING, faults)
    pre = typed(file, "tokenizer.ggml.pre", ValueType.STRING, faults, default="default")
    typed(file, "tokenizer.chat_template", ValueType.STRING, faults, default="")

    def array(key: str, kind: ValueType, needed: bool) -> int | None:
        entry = file.metadata.get(key)
        if entry is None:
            if needed:
                faults.append(f"the key {key} is missing")
            return None
        if entry.type is not ValueType.ARRAY or entry.element_type is not kind:
            faults.append(f"{key} is not an array of {kind.name}")
            return None
        return entry.n_values

    n_vocab = array("tokenizer.ggml.tokens", ValueType.STRING, True) or 0
    for key, kind, needed in (
        ("tokenizer.ggml.token_type", ValueType.INT32, False),
        ("tokenizer.ggml.scores", ValueType.FLOAT32, model == "llama"),
    ):
        length = array(key, kind, needed)
        if length is not None and length != n_vocab:
            faults.append(f"{key} has {length} values for {n_vocab} tokens")
    array("tokenizer.ggml.merges", ValueType.STRING, model == "gpt2")
    if pre in _NO_SPACES:
        faults.append(f"tokenizer.ggml.pre is {pre!r}, with which llama.cpp aborts at the first space of a prompt")
    if not faults:
        if model not in ("gpt2", "llama") and proved:
            faults.append(f"tokenizer.ggml.model is {model!r}; 'gpt2' (BPE) and 'llama' (SPM) are handled")
        _check_tokens(file.get("tokenizer.ggml.tokens"), file.get("tokenizer.ggml.token_type", []), model, faults)
    for key in file.metadata:
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            token_id = number_of(file, key, faults)
            if not 0 <= token_id < max(n_vocab, 1):
                faults.append(f"{key} is {token_id}; the vocabulary has {n_vocab} tokens")
    return n_vocab


def unproved_tokenizer(file: GgufFile) -> list[str]:
    """The pre-tokenizer and keys of the tokenizer that were not tried here."""
    pre = file.get("tokenizer.ggml.pre", "default")
    is_bpe = file.get("tokenizer.ggml.model") == "gpt2"
    found = [f"tokenizer.ggml.pre {pre!r}"] if is_bpe and pre not in _PROVED_PRE else []
    return found + [key for key in file.metadata if key.startswith(_KEYS) and not _KNOWN_KEY.fullmatch(key)]


def _check_tokens(tokens: Sequence[str], types: Sequence[int], model: str, faults: list[str]) -> None:
    """Refuses vocabularies that end the process: twins at load, an SPM without byte tokens at the first odd byte."""
    known = set(tokens)
    if "" in known or any("\0" in token for token in tokens):
        tokens = [token.partition("\0")[0] or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
        known = set(tokens)
    if len(known) < len(tokens):
        twins = [token for token, count in Counter(tokens).items() if count > 1]
        faults += [f"the vocabulary holds {token!r} more than once" for token in twins[:5]]
    # What the model reads for "<0xNN>": its two digits, whatever else stands there.
    odd = [token for token, kind in zip(tokens, types, strict=False) if kind == _BYTE and not _is_byte(token)]
    if odd:
        faults.append(f"{odd[0][:40]!r} is marked as a byte's token; these are named <0x00> to <0xFF>")
    if model == "llama":
        # Where there is no <0xNN>, llama.cpp looks for the byte as a text, which 0 and those from 0x80 on are not.
        missing = [b for b in range(256) if f"<0x{b:02X}>" not in known and not (0 < b < 128 and chr(b) in known)]
        if missing:
            faults.append(f"the vocabulary has no token for {len(missing)} of the 256 bytes, such as {missing[0]}")


def _is_byte(token: str) -> bool:
    digits = token[3:5]
    return (
        len(token) == 6
        and token[:3] == "<0x"
        and token[5] == ">"
        and all(one in "0123456789ABCDEFabcdef" for one in digits)
    )
