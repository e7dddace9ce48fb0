"""The shape of a decoder: which matrices it has, how large, from published configurations or from a GGUF's header.

shape = find_shape("llama-3.2-1b")          # devices/models.toml
shape.matrices()[0]                         # Matrix(name="token_embd", layer=None, n_in=2048, n_out=128256)
shape.n_params                              # 1235814400, norms included
"""

import functools
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...edge.errors import InputError
from ...edge.gguf.families import FAMILIES
from .catalogue import nearest

MODELS_FILE = Path(__file__).parent.parent / "models.toml"
# What file names and tags add to a model's name without changing its shape.
_SUFFIXES = ("instruct", "chat", "it", "gguf", "base", "preview", "hf", "latest", "2507")


@dataclass(frozen=True)
class Matrix:
    """One weight matrix; `layer` is None outside of the blocks."""

    name: str
    layer: int | None
    n_in: int
    n_out: int

    @property
    def n_weights(self) -> int:
        return self.n_in * self.n_out


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a dense decoder.

    Attributes:
        architecture: its name in llama.cpp.
        head_dim: values of one head's key; n_embd / n_heads in most families.
        tied: the head shares the token embedding.
        fused: Q, K, V are one matrix, and gate and up are one (Phi-3).
        gated: the feed-forward part has a gate.
        n_conv_layers: layers with a short convolution in place of attention (LFM2).
        n_linear_layers: layers with a linear attention in its place (Qwen3.5): of `n_linear_keys` and `n_linear_values`
            heads of `linear_head_dim` values each, behind a convolution of `linear_conv` tokens.
        n_mamba_layers: layers of Mamba 2 in its place (Granite 4's hybrids): of `mamba_heads` heads of `mamba_head_dim`
            values, each with `mamba_state` states, behind a convolution of `linear_conv` tokens.
        q_gate: attention has a gate for each query, in one matrix with them.
        n_ctx_train_tokens: the context it was trained for.
        window_tokens: of the layers that attend within a window; which these are says the table of families.
        post_norms: attention and the feed-forward part are normed behind too.
        full_every: each so-many-th layer attends to all tokens where the table of families does not say (Gemma 4), with
            heads of `full_head_dim` values.
        n_shared_layers: layers, the last ones, that read keys and values of earlier ones; their feed-forward part is
            twice as wide, or as all others with `n_altup`, where they keep the matrices that nothing reads.
        n_layer_input: values of a token's own input to each layer.
        n_altup: states that go through the layers side by side (Gemma 3n); beside each block a pair of matrices leads
            around it, `laurel_rank` values wide.
        n_vectors: values in norms and biases, which are F32.
    """

    name: str
    architecture: str
    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    n_ff: int
    n_vocab: int
    head_dim: int = 0
    tied: bool = True
    fused: bool = False
    gated: bool = True
    n_conv_layers: int = 0
    n_linear_layers: int = 0
    n_linear_keys: int = 16
    n_linear_values: int = 16
    linear_head_dim: int = 128
    linear_conv: int = 4
    n_mamba_layers: int = 0
    mamba_heads: int = 0
    mamba_head_dim: int = 0
    mamba_state: int = 128
    q_gate: bool = False
    n_ctx_train_tokens: int = 32768
    qkv_bias: bool = False
    qk_norm: bool = False
    window_tokens: int = 0
    post_norms: bool = False
    full_every: int = 0
    full_head_dim: int = 0
    n_shared_layers: int = 0
    n_layer_input: int = 0
    n_altup: int = 0
    laurel_rank: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.n_embd // self.n_heads)

    @property
    def n_state_layers(self) -> int:
        """Layers with a state in place of keys and values."""
        return self.n_conv_layers + self.n_linear_layers + self.n_mamba_layers

    @property
    def n_attention_layers(self) -> int:
        return self.n_layers - self.n_state_layers

    @property
    def n_own_layers(self) -> int:
        """Layers before those that read keys and values of others."""
        return self.n_layers - self.n_shared_layers

    @property
    def n_kv_values_per_token(self) -> int:
        """K and V values that one token leaves in the cache, all layers."""
        return sum(map(self._kv_values, range(self.n_state_layers, self.n_own_layers)))

    @property
    def n_windowed_kv_values(self) -> int:
        """Those of them in layers that keep their last `window_tokens` alone."""
        own = range(self.n_state_layers, self.n_own_layers)
        return sum(self._kv_values(layer) for layer in own if self.window_tokens and self.windowed(layer))

    def windowed(self, layer: int) -> bool:
        """Whether a layer attends within a window."""
        if self.full_every:
            return (layer + 1) % self.full_every != 0
        family = FAMILIES.get(self.architecture)
        return family is not None and family.windowed(layer)

    def _head(self, layer: int) -> int:
        return self.head_dim if not self.full_head_dim or self.windowed(layer) else self.full_head_dim

    def _kv_values(self, layer: int) -> int:
        return 2 * self.n_kv_heads * self._head(layer)

    @property
    def n_vectors(self) -> int:
        """Values in norms and biases."""
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        per_layer = (4 if self.post_norms else 2) * self.n_embd
        per_layer += (q + 2 * kv) * self.qkv_bias
        attention = 2 * self.head_dim * self.qk_norm
        # Of each value head its decay, its step and a norm for all; of each channel a convolution.
        linear = 2 * self.n_linear_values + self.linear_head_dim + self.linear_conv * self._linear_channels
        # LFM2's convolutions reach over 3 tokens.
        beside = attention * self.n_attention_layers + linear * self.n_linear_layers
        beside += 3 * self.n_embd * self.n_conv_layers
        # Of each head its decay, its step and a way around; a norm; of each channel a convolution and its bias.
        mamba = 3 * self.mamba_heads + self.mamba_inner + (self.linear_conv + 1) * self._mamba_channels
        beside += mamba * self.n_mamba_layers
        if self.n_layer_input:
            beside += self.n_layers * (self.n_embd + (not self.n_altup)) + self.n_layer_input
        if self.n_altup:
            # A scale and the norms of the router and of the way around
            beside += self.n_layers * 3 * self.n_embd
        return self.n_layers * per_layer + beside + self.n_embd

    @property
    def mamba_inner(self) -> int:
        """Values within a layer of Mamba 2."""
        return self.mamba_heads * self.mamba_head_dim

    @property
    def _mamba_channels(self) -> int:
        return self.mamba_inner + 2 * self.mamba_state

    @property
    def _linear_channels(self) -> int:
        return (2 * self.n_linear_keys + self.n_linear_values) * self.linear_head_dim

    @property
    def n_block_weights(self) -> int:
        """Weights that every token of a prompt is multiplied with: all but embedding and head."""
        return sum(matrix.n_weights for matrix in self.matrices() if matrix.layer is not None)

    @property
    def n_params(self) -> int:
        return self.n_vectors + sum(matrix.n_weights for matrix in self.matrices())

    def matrices(self) -> list[Matrix]:
        """All matrices in the order in which llama.cpp's quantiser meets them: by layer."""
        return list(self._matrices())

    def _matrices(self) -> Iterator[Matrix]:
        wide = self.n_embd
        yield Matrix("token_embd", None, wide, self.n_vocab)
        if not self.tied:
            yield Matrix("output", None, wide, self.n_vocab)
        if self.n_layer_input:
            yield Matrix("per_layer_token_embd", None, self.n_layer_input * self.n_layers, self.n_vocab)
            yield Matrix("per_layer_model_proj", None, wide, self.n_layer_input * self.n_layers)
        if self.n_altup:
            # Three dimensions in the file: one matrix for each state but the first.
            yield Matrix("altup_proj", None, wide, wide * (self.n_altup - 1))
            yield Matrix("altup_unembd_proj", None, wide, wide * (self.n_altup - 1))
        # LFM2 spreads its attention layers; where they stand changes no sum here.
        for layer in range(self.n_layers):
            q, kv = self.n_heads * self._head(layer), self.n_kv_heads * self._head(layer)
            own = layer < self.n_own_layers
            n_ff = self.n_ff if own or self.n_altup else 2 * self.n_ff
            if layer < self.n_conv_layers:
                yield Matrix("shortconv.in_proj", layer, wide, 3 * wide)
                yield Matrix("shortconv.out_proj", layer, wide, wide)
            elif layer < self.n_conv_layers + self.n_mamba_layers:
                yield Matrix("ssm_in", layer, wide, self.mamba_inner + self._mamba_channels + self.mamba_heads)
                yield Matrix("ssm_out", layer, self.mamba_inner, wide)
            elif layer < self.n_state_layers:
                values = self.n_linear_values * self.linear_head_dim
                yield Matrix("attn_qkv", layer, wide, self._linear_channels)
                yield Matrix("attn_gate", layer, wide, values)
                yield Matrix("ssm_beta", layer, wide, self.n_linear_values)
                yield Matrix("ssm_alpha", layer, wide, self.n_linear_values)
                yield Matrix("ssm_out", layer, values, wide)
            elif self.fused:
                yield Matrix("attn_qkv", layer, wide, q + 2 * kv)
                yield Matrix("attn_output", layer, q, wide)
            else:
                yield Matrix("attn_q", layer, wide, 2 * q if self.q_gate else q)
                if own or self.n_altup:
                    yield Matrix("attn_k", layer, wide, kv)
                    yield Matrix("attn_v", layer, wide, kv)
                yield Matrix("attn_output", layer, q, wide)
            if self.fused:
                yield Matrix("ffn_up", layer, wide, 2 * n_ff)
            else:
                if self.gated:
                    yield Matrix("ffn_gate", layer, wide, n_ff)
                yield Matrix("ffn_up", layer, wide, n_ff)
            yield Matrix("ffn_down", layer, n_ff, wide)
            if self.n_layer_input:
                yield Matrix("inp_gate", layer, wide, self.n_layer_input)
                yield Matrix("proj", layer, self.n_layer_input, wide)
            if self.n_altup:
                yield Matrix("laurel_l", layer, wide, self.laurel_rank)
                yield Matrix("laurel_r", layer, self.laurel_rank, wide)
                yield Matrix("altup_router", layer, wide, self.n_altup)
                yield Matrix("altup_predict_coef", layer, self.n_altup, self.n_altup**2)
                yield Matrix("altup_correct_coef", layer, self.n_altup, self.n_altup)


def plain_name(name: str) -> str:
    """ "meta-llama/Llama-3.2-1B-Instruct", "llama3.2:1b" -> "llama3.21b": what a model's spellings have in common."""
    words = [word for word in re.split(r"[\s_:()\-]+", name.lower().strip().rstrip("/").rpartition("/")[2]) if word]
    while len(words) > 1 and words[-1] in _SUFFIXES:
        words.pop()
    return "".join(words)


@functools.cache
def known_shapes() -> dict[str, ModelShape]:
    """The table of published configurations, by name."""
    data = tomllib.loads(MODELS_FILE.read_text(encoding="utf-8"))
    return {name: _shape(name, row) for name, row in data.items()}


def _shape(name: str, row: dict[str, Any]) -> ModelShape:
    names = {field.name for field in fields(ModelShape)}
    return ModelShape(name=name, **{key: value for key, value in row.items() if key in names})


@functools.cache
def _by_plain_name() -> dict[str, str]:
    data = tomllib.loads(MODELS_FILE.read_text(encoding="utf-8"))
    found: dict[str, str] = {}
    for name, row in data.items():
        for alias in (name, *row.get("also", ())):
            found[plain_name(alias)] = name
    return found


def match_shape(name: str) -> ModelShape | None:
    """The shape of the model that a name or tag means, or None."""
    found = _by_plain_name().get(plain_name(name))
    return known_shapes()[found] if found else None


def find_shape(name: str) -> ModelShape:
    """As `match_shape`.

    Raises:
        InputError: it is not in the table; up to three near names are given.
    """
    shape = match_shape(name)
    if shape is None:
        near = nearest(name.rpartition("/")[2], dict.fromkeys(known_shapes(), ()))
        hint = f"near: {', '.join(near)}. " if near else ""
        raise InputError(
            f"no published configuration of {name!r} is in the table",
            where=MODELS_FILE.name,
            hint=f"{hint}A GGUF's header does as well: --model FILE_OR_URL.gguf",
        )
    return shape
