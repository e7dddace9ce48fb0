"""Special and added tokens of a checkpoint: which they are, and which of them the tokenizer adds by itself."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from ...edge.files.read import read_json
from ..files.gguf_writer import Value, boolean, uint32

# GGUF's word -> field of tokenizer_config.json, field of config.json
_SPECIAL: Final = {
    "bos": ("bos_token", "bos_token_id"),
    "eos": ("eos_token", "eos_token_id"),
    "unknown": ("unk_token", None),
    "padding": ("pad_token", "pad_token_id"),
}
_PROBE: Final = "a"


def optional_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one if there is no such file."""
    data = read_json(path) if path.exists() else {}
    return data if isinstance(data, dict) else {}


def added_tokens(folder: Path, tokenizer_json: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Added tokens as `{"id", "content", "special"}`: of tokenizer.json, else of the older files beside it."""
    found: list[dict[str, Any]] = list(tokenizer_json.get("added_tokens") or [])
    if found:
        return found
    decoder = optional_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    by_id = {int(index): {"id": int(index), **entry} for index, entry in decoder.items()}
    for content, index in optional_json(folder / "added_tokens.json").items():
        by_id.setdefault(int(index), {"id": int(index), "content": content, "special": False})
    return [by_id[index] for index in sorted(by_id)]


def _text(entry: Any) -> str | None:
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def special_ids(
    folder: Path, config: Mapping[str, Any], ids: Mapping[str, int], unknown: str | None
) -> dict[str, Value]:
    """GGUF keys of the special tokens, from tokenizer_config.json, special_tokens_map.json or config.json.

    Args:
        ids: token text -> id.
        unknown: the tokenizer's own unknown token, if it has one.
    """
    own = optional_json(folder / "tokenizer_config.json")
    older = optional_json(folder / "special_tokens_map.json")
    keys: dict[str, Value] = {}
    for name, (field, config_field) in _SPECIAL.items():
        content = _text(own.get(field)) or _text(older.get(field)) or (unknown if name == "unknown" else None)
        index = ids.get(content) if content else None
        if index is None and config_field:
            index = config.get(config_field)
            index = index[0] if isinstance(index, list) and index else index
        if isinstance(index, int) and 0 <= index <= max(ids.values()):
            keys[f"tokenizer.ggml.{name}_token_id"] = uint32(index)
    return keys


def end_ids(folder: Path, config: Mapping[str, Any]) -> list[int]:
    """Every id that ends an answer according to generation_config.json and config.json."""
    found: list[int] = []
    for source in (optional_json(folder / "generation_config.json"), config):
        entry = source.get("eos_token_id")
        found += [index for index in (entry if isinstance(entry, list) else [entry]) if isinstance(index, int)]
    return list(dict.fromkeys(found))


def adds_by_default(
    folder: Path, keys: Mapping[str, Value], encode: Callable[[str], list[int]], *, has_processor: bool
) -> dict[str, Value]:
    """`add_bos_token` and `add_eos_token`: what the tokenizer does, else what its config says.

    Where neither says anything the keys are left out and llama.cpp's default for the tokenizer applies.

    Args:
        keys: with the special ids.
        encode: with special tokens added.
        has_processor: the tokenizer has a post-processor, so its behaviour is its word.
    """
    own = optional_json(folder / "tokenizer_config.json")
    probe = encode(_PROBE)
    found: dict[str, Value] = {}
    for name, position, usual in (("bos", 0, True), ("eos", -1, False)):
        special = keys.get(f"tokenizer.ggml.{name}_token_id")
        does = special is not None and bool(probe) and probe[position] == special.value
        said = own.get(f"add_{name}_token")
        if has_processor:
            found[f"tokenizer.ggml.add_{name}_token"] = boolean(does)
        elif isinstance(said, bool):
            found[f"tokenizer.ggml.add_{name}_token"] = boolean(said)
        elif own:
            # transformers' Llama tokenizers add a BOS unless told otherwise; the generic class adds nothing.
            llama_like = str(own.get("tokenizer_class", "")).startswith(("Llama", "CodeLlama"))
            found[f"tokenizer.ggml.add_{name}_token"] = boolean(usual and llama_like)
    return found
