"""The sizes of a model that is to be exported, before anything is read of its weights: what `--type auto` forecasts by.

shape_of_source(Path("Qwen2.5-0.5B-Instruct"), output_weight=False).n_layers     # 24
"""

from pathlib import Path
from typing import Final

from ...devices.catalogue.shapes import ModelShape
from ...edge.errors import UnsupportedError
from ...edge.gguf.base import BaseInfo
from ..checkpoint.checkpoint import Checkpoint
from .gguf_source import HEAD, GgufSource

# Whose blocks are plain: seven matrices, and F32 vectors that the forecast knows.
_PLAIN: Final = ("llama", "qwen2", "qwen3")


def shape_of_source(source: Path, *, output_weight: bool) -> ModelShape:
    """Of a checkpoint's folder or a GGUF file.

    Args:
        output_weight: a tied head becomes a tensor of its own.

    Raises:
        UnsupportedError: how llama.cpp lays out such a model in each type is not known here.
        InputError, DamagedError: as the source is opened.
    """
    n_vocab = 0
    if source.is_dir():
        with Checkpoint.open(source) as checkpoint:
            config = checkpoint.config
            architecture, tied = config.family.architecture, config.tied
            keys = {name: value.value for name, value in config.keys().items()}
            n_vocab, is_plain = config.n_vocab, True
    else:
        file = GgufSource.open(source).file
        architecture, tied = str(file.get("general.architecture")), HEAD not in file.tensors
        is_plain = {"blk.0.attn_q.weight", "blk.0.ffn_gate.weight"} <= file.tensors.keys()
        if architecture in _PLAIN and is_plain:
            # Its sizes make sense from here on.
            n_vocab = BaseInfo.of(file).n_vocab
        keys = {name: file.get(name) for name in file.metadata if name.startswith(f"{architecture}.")}
    if architecture not in _PLAIN or not is_plain:
        raise UnsupportedError(
            f"--type auto knows {', '.join(_PLAIN)}; this is {architecture}",
            where=source,
            hint="name a type: --type q8_0, or --type q4_k_m where memory is short",
        )
    a = architecture
    n_heads = int(keys[f"{a}.attention.head_count"])
    return ModelShape(
        name=source.name.removesuffix(".gguf"),
        architecture=a,
        n_layers=int(keys[f"{a}.block_count"]),
        n_embd=int(keys[f"{a}.embedding_length"]),
        n_heads=n_heads,
        n_kv_heads=int(keys.get(f"{a}.attention.head_count_kv", n_heads)),
        n_ff=int(keys[f"{a}.feed_forward_length"]),
        n_vocab=int(n_vocab),
        head_dim=int(keys.get(f"{a}.attention.key_length", 0)),
        tied=tied and not output_weight,
        n_ctx_train_tokens=int(keys[f"{a}.context_length"]),
        qkv_bias=a == "qwen2",
        qk_norm=a == "qwen3",
    )
