"""What other runtimes look for beside the graphs: genai_config.json, config.json, a tokenizer if there is one."""

import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np

from ...edge.files.atomic import write_json
from ...edge.files.read import read_json
from ...edge.gguf.base import BaseInfo
from ...edge.onnx.folder import MODEL_FILE
from .rope import head_size_of

# Files of a checkpoint that say how it wants to be used.
COPIED: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def write_configs(folder: Path, info: BaseInfo, length: int, checkpoint: Path | None, dtype: Any) -> list[str]:
    """Writes the configs and copies the checkpoint's tokenizer; returns notes for the user.

    Args:
        checkpoint: the Hugging Face folder; None for a GGUF, whose tokenizer other runtimes cannot read.
    """
    write_json(folder / "genai_config.json", _genai(info, length))
    config = _config(info, dtype) if checkpoint is None else read_json(checkpoint / "config.json")
    write_json(folder / "config.json", config)
    if checkpoint is None:
        return ["a GGUF's tokenizer is llama.cpp's: genai and optimum get token ids, or their own tokenizer files here"]
    for name in COPIED:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
    return []


def _ids(info: BaseInfo) -> dict[str, Any]:
    def token(kind: str) -> int | None:
        value = info.file.get(f"tokenizer.ggml.{kind}_token_id")
        return None if value is None else int(value)

    eos = token("eos")
    pad = token("padding")
    ends = [found for found in (eos, token("eot")) if found is not None]
    return {
        "bos_token_id": token("bos"),
        "eos_token_id": list(dict.fromkeys(ends)) or [info.n_vocab - 1],
        "pad_token_id": pad if pad is not None else eos if eos is not None else 0,
    }


def _genai(info: BaseInfo, length: int) -> dict[str, Any]:
    ids = _ids(info)
    if ids["bos_token_id"] is None:
        ids["bos_token_id"] = ids["pad_token_id"]
    return {
        "model": {
            # genai's name for any decoder with these inputs, whatever the family.
            "type": "llama",
            "context_length": length,
            "vocab_size": info.n_vocab,
            **ids,
            "decoder": {
                "filename": MODEL_FILE,
                "head_size": head_size_of(info),
                "hidden_size": info.n_embd,
                "num_attention_heads": info.n_heads,
                "num_key_value_heads": info.n_kv_heads,
                "num_hidden_layers": info.n_layers,
                "session_options": {"provider_options": []},
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"do_sample": False, "max_length": length, "past_present_share_buffer": True},
    }


def _config(info: BaseInfo, dtype: Any) -> dict[str, Any]:
    """A Hugging Face config.json for a GGUF."""
    file, arch = info.file, info.architecture
    config: dict[str, Any] = {
        "architectures": [info.family.classes[0].name],
        "model_type": arch,
        "vocab_size": info.n_vocab,
        "hidden_size": info.n_embd,
        "intermediate_size": info.n_ff,
        "num_hidden_layers": info.n_layers,
        "num_attention_heads": info.n_heads,
        "num_key_value_heads": info.n_kv_heads,
        "head_dim": head_size_of(info),
        "max_position_embeddings": info.n_ctx_train_tokens,
        "rms_norm_eps": float(file.get(f"{arch}.attention.layer_norm_rms_epsilon")),
        "rope_theta": float(file.get(f"{arch}.rope.freq_base", 10000.0)),
        "hidden_act": info.family.activation,
        "tie_word_embeddings": not info.has_output,
        "torch_dtype": np.dtype(dtype).name,
        "use_cache": True,
    }
    config |= {field: float(file.get(f"{arch}.{key}", 1.0)) for key, field in info.family.scalars.items()}
    return config | {key: value for key, value in _ids(info).items() if value is not None}
