"""The model families that can be exported: one table entry each.

    FAMILIES["LlamaForCausalLM"].gguf_name("model.layers.3.self_attn.q_proj")     # "blk.3.attn_q"

To add a family whose layers have the usual names: one row in `FAMILIES`, one in
tests/export/base/test_export_base.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

WHOLE_MODEL: Final = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
IN_A_LAYER: Final = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER: Final = re.compile(r"model\.layers\.(\d+)\.(.+)")
ALWAYS: Final = "always"


@dataclass(frozen=True)
class Family:
    """What one Hugging Face architecture needs on its way to llama.cpp.

    Attributes:
        architecture: llama.cpp's name.
        interleaves_qk: llama.cpp rotates neighbouring pairs, Hugging Face two halves: rows of q and k are reordered.
        qk_norm: q and k have a norm of their own.
        square_attention: llama.cpp takes n_heads * head size = width only.
        biases: layer module -> the config field that switches its bias on (or `ALWAYS`).
        refused: config field -> value that llama.cpp has nothing for.
    """

    architecture: str
    interleaves_qk: bool = False
    qk_norm: bool = False
    square_attention: bool = False
    biases: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, Any] = field(default_factory=dict)

    def gguf_name(self, module: str) -> str | None:
        """The GGUF name, without its suffix, of a module such as "model.layers.3.mlp.up_proj"; None if unknown."""
        if module in WHOLE_MODEL:
            return WHOLE_MODEL[module]
        match = _LAYER.fullmatch(module)
        if match is None:
            return None
        name = IN_A_LAYER.get(match[2])
        if name is None or (name in ("attn_q_norm", "attn_k_norm") and not self.qk_norm):
            return None
        return f"blk.{match[1]}.{name}"

    def n_interleaved_heads(self, gguf_name: str, n_heads: int, n_kv_heads: int) -> int | None:
        """In how many heads the rows of a tensor are reordered (`interleave_rows`); None if they are not.

        Args:
            gguf_name: with or without its suffix, for example "blk.0.attn_q.weight".
        """
        if not self.interleaves_qk:
            return None
        parts = gguf_name.split(".")
        kind = parts[2] if len(parts) > 2 else ""
        return {"attn_q": n_heads, "attn_k": n_kv_heads}.get(kind)


_QKV: Final = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_MLP: Final = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

FAMILIES: Final[Mapping[str, Family]] = {
    "LlamaForCausalLM": Family(
        "llama",
        interleaves_qk=True,
        biases=dict.fromkeys((*_QKV, "self_attn.o_proj"), "attention_bias") | dict.fromkeys(_MLP, "mlp_bias"),
    ),
    "MistralForCausalLM": Family("llama", interleaves_qk=True),
    "Qwen2ForCausalLM": Family(
        "qwen2", square_attention=True, biases=dict.fromkeys(_QKV, ALWAYS), refused={"use_sliding_window": True}
    ),
    "Qwen3ForCausalLM": Family("qwen3", qk_norm=True, refused={"use_sliding_window": True, "attention_bias": True}),
}


def interleave_rows(rows: npt.NDArray[Any], n_heads: int) -> npt.NDArray[Any]:
    """Rows of a q or k projection from Hugging Face's order to llama.cpp's.

    Per head, [first half | second half] becomes neighbouring pairs: out[2 j + s] = in[s d/2 + j].

    Args:
        rows: (n_heads * d, ...) for whole heads; a lora_B or a bias likewise.
    """
    shape = rows.shape
    halves = rows.reshape(n_heads, 2, shape[0] // n_heads // 2, *shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(shape)
