"""Checks the tokenizer's keys of a base as llama.cpp reads them: texts end at a zero byte, empty ones get a name."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from .base_keys import number_of, typed
from .file import GgufFile, ValueType

# tokenizer.ggml.token_type
_BYTE: Final = 6
_BYTE_TOKEN: Final = re.compile("<0x[0-9A-Fa-f]{2}>")
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
