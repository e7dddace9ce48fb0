"""Which type each matrix gets when llama.cpp quantises a model: a label such as Q4_K_M is a mixture, not a type.

    types_of(find_shape("qwen2.5-0.5b"), "q4_k_m")[1]     # GgmlType.Q5_0: rows of 896 are no multiple of 256

The rules are those of `llama_tensor_get_type` in llama.cpp's src/llama-quant.cpp (0.3.36 of the binding), without an
importance matrix; tests quantise with llama.cpp itself and compare every tensor.
"""

import re
from typing import Final

from ...edge.errors import InputError
from ...edge.gguf.types import GgmlType
from .catalogue import nearest
from .shapes import Matrix, ModelShape

T = GgmlType
LABELS: Final[dict[str, GgmlType]] = {
    "f32": T.F32,
    "f16": T.F16,
    "bf16": T.BF16,
    "q8_0": T.Q8_0,
    "q6_k": T.Q6_K,
    "q5_k_m": T.Q5_K,
    "q5_k_s": T.Q5_K,
    "q5_1": T.Q5_1,
    "q5_0": T.Q5_0,
    "q4_k_m": T.Q4_K,
    "q4_k_s": T.Q4_K,
    "iq4_nl": T.IQ4_NL,
    "iq4_xs": T.IQ4_XS,
    "q4_1": T.Q4_1,
    "q4_0": T.Q4_0,
    "q3_k_l": T.Q3_K,
    "q3_k_m": T.Q3_K,
    "q3_k_s": T.Q3_K,
    "q2_k": T.Q2_K,
    "q2_k_s": T.Q2_K,
}
# Q4_0 laid out beforehand for Arm (late 2024); the same bytes. "q4_k" is how some tools write Q4_K_M.
_SAME: Final = {"q4_0_4_4": "q4_0", "q4_0_4_8": "q4_0", "q4_0_8_8": "q4_0", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
# Rows that are no multiple of 256 fall back to a type with blocks of 32.
_FALLBACK: Final = {
    T.Q2_K: T.Q4_0,
    T.Q3_K: T.Q4_0,
    T.Q4_K: T.Q5_0,
    T.Q5_K: T.Q5_1,
    T.Q6_K: T.Q8_0,
    T.IQ4_XS: T.IQ4_NL,
}
FLOATS: Final = ("f32", "f16", "bf16")


def quant_label(text: str) -> str | None:
    """The label as it stands in `LABELS`, whatever its spelling; None for one that is not known."""
    label = text.strip().lower().replace("-", "_")
    label = _SAME.get(label, label)
    return label if label in LABELS else None


def check_label(text: str) -> str:
    """As `quant_label`.

    Raises:
        InputError: it is not known.
    """
    label = quant_label(text)
    if label is None:
        near = nearest(text, dict.fromkeys(LABELS, ())) or ["q8_0", "q4_k_m", "q4_0"]
        raise InputError(f"no quantisation {text!r} is known", hint=f"near: {', '.join(near)}")
    return label


def split_label(name: str) -> tuple[str, str | None]:
    """A model's name and the quantisation at its end: "llama 3.2 3b q4_k_m", "…-GGUF:Q4_K_M", "…-instruct-q8_0".

    Returns:
        The name without it, and it as written; None if there is none.
    """
    found = re.fullmatch(r"(.+?)[\s:._-]+((?:ud[-_])?i?q\d\w*|bf16|f16|f32)", name.strip(), re.I)
    return (found[1], found[2]) if found else (name, None)


def types_of(shape: ModelShape, label: str) -> list[GgmlType]:
    """The type of each of `shape.matrices()` in a file quantised to `label` (a key of `LABELS`)."""
    mix = _Mix(shape, label)
    return [mix.type_of(matrix) for matrix in shape.matrices()]


class _Mix:
    """Counts attention values on the way: layers without attention do not count there."""

    def __init__(self, shape: ModelShape, label: str) -> None:
        self.shape = shape
        self.label = label
        self.plain = LABELS[label]
        self.n_values = shape.n_attention_layers - (0 if shape.n_altup else shape.n_shared_layers)
        self.i_value = 0
        self.many_share = shape.n_heads // shape.n_kv_heads >= 4

    def type_of(self, matrix: Matrix) -> GgmlType:
        if self.label in FLOATS:
            return self.plain
        kind = self._wanted(matrix)
        if matrix.n_in % kind.block[0]:
            kind = _FALLBACK.get(kind, T.F16)
            if matrix.n_in % kind.block[0]:
                kind = T.F16
        return kind

    def _wanted(self, matrix: Matrix) -> GgmlType:
        name, layer, plain = matrix.name, matrix.layer or 0, self.plain
        if name == "per_layer_model_proj" or name.startswith(("altup_", "laurel_")):
            # Kept as they were published
            return T.BF16
        if name in ("output", "per_layer_token_embd") or (name == "token_embd" and self.shape.tied):
            if matrix.n_in % plain.block[0] or plain is T.Q8_0:
                return T.Q8_0
            return T.Q6_K
        if name == "attn_v":
            self.i_value += 1
            return self._value(self.i_value - 1)
        if name == "ffn_down":
            return self._down(layer)
        wanted = {
            ("attn_output", "q2_k"): T.Q3_K,
            ("attn_output", "q3_k_m"): T.Q4_K,
            ("attn_output", "q3_k_l"): T.Q5_K,
            ("attn_qkv", "q3_k_m"): T.Q4_K,
            ("attn_qkv", "q3_k_l"): T.Q4_K,
            ("attn_qkv", "q4_k_m"): T.Q5_K,
            ("attn_qkv", "q5_k_m"): T.Q6_K,
        }
        return wanted.get((name, self.label), plain)

    def _value(self, i: int) -> GgmlType:
        label = self.label
        if label == "q2_k":
            return T.Q4_K if self.many_share else T.Q3_K
        if label == "q2_k_s" and self.many_share:
            return T.Q4_K
        if label == "q3_k_m":
            return T.Q5_K if i < 2 else T.Q4_K
        if label == "q3_k_l":
            return T.Q5_K
        if label in ("iq4_nl", "iq4_xs") and self.many_share:
            return T.Q5_K
        if label in ("q4_k_m", "q5_k_m") and more_bits(i, self.n_values):
            return T.Q6_K
        if label == "q4_k_s" and i < 4:
            return T.Q5_K
        return self.plain

    def _down(self, layer: int) -> GgmlType:
        label, n = self.label, self.shape.n_layers
        first_eighth = layer < n // 8
        if label == "q2_k":
            return T.Q3_K
        if label == "q2_k_s":
            return T.Q4_K if first_eighth else T.Q2_K
        if label == "q3_k_m":
            return T.Q5_K if layer < n // 16 else T.Q4_K
        if label == "q3_k_l":
            return T.Q5_K
        if label in ("q4_k_m", "q5_k_m") and more_bits(layer, n):
            return T.Q6_K
        if label in ("iq4_nl", "iq4_xs", "q4_k_s") and first_eighth:
            return T.Q5_K
        return self.plain


def more_bits(layer: int, n_layers: int) -> bool:
    """The layers to which the `_M` mixtures give more bits: the first and last eighth, and every third between."""
    return layer < n_layers // 8 or layer >= 7 * n_layers // 8 or (layer - n_layers // 8) % 3 == 2
