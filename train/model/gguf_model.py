"""A transformers model made from a GGUF: its config from the file's keys, its weights dequantised to f32 or kept.

    model = load_gguf_model("SmolLM2-135M-Instruct.Q4_1.gguf")      # LlamaForCausalLM, the weights that will ship
    model = load_gguf_model("base.gguf", weights="gguf")            # the same, its matrices kept as the file's blocks

A family is one row of `edge.gguf.families`. No tokenizer is made here: llama.cpp's own is used (`edge.llama.vocab`).
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...edge.errors import UnsupportedError
from ...edge.gguf.file import GgufFile
from ...edge.gguf.hf_form import Place, classes_of, hf_config, places, tensor_of, trained_family
from ...edge.gguf.rope import check_rope, gguf_rope, give_rope, with_buffers
from ..recipe import Weights
from .blocks import DECODERS, dequantize
from .frozen import BlockEmbedding, BlockLinear

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def config_of(gguf: GgufFile) -> "PretrainedConfig":
    """The transformers config that a GGUF's keys describe.

    Raises:
        UnsupportedError: unknown architecture, or a rope scaling that is not built here.
    """
    import transformers

    config: PretrainedConfig = classes_of(transformers, trained_family(gguf))[0](**hf_config(gguf))
    give_rope(config, dataclasses.replace(gguf_rope(gguf), divisors=None))
    return config


def numbers_of(gguf: GgufFile, name: str, place: Place, device: str = "cpu") -> Tensor:
    """One tensor on `device`, f32, as transformers wants it; a matrix for a GPU is decoded there."""
    if device != "cpu" and _is_matrix(gguf, name) and gguf.tensors[name].type in DECODERS:
        return dequantize(blocks_of(gguf, name, place).to(device), gguf.tensors[name].type)
    return torch.from_numpy(np.array(place.numbers(tensor_of(gguf, name)), copy=True)).to(device)


def blocks_of(gguf: GgufFile, name: str, place: Place) -> Tensor:
    """One matrix as its blocks, uint8 (out, row_bytes), rows as transformers wants them."""
    rows = np.asarray(gguf.raw(name)).reshape(gguf.tensors[name].shape[1], -1)
    return torch.from_numpy(np.array(place.in_order(rows), copy=True))


def load_gguf_model(
    path: str | Path, *, attention: str = "sdpa", weights: Weights = "f32", device: str = "cpu"
) -> "PreTrainedModel":
    """The model of a GGUF as transformers builds it, in evaluation mode.

    Args:
        path: the GGUF file.
        attention: `attn_implementation` of transformers.
        weights: what the frozen matrices are kept as; norms and biases are f32 but for "bf16".

    Raises:
        UnsupportedError: architecture, rope scaling, tensors or tensor types that are not covered.
    """
    import transformers

    gguf = GgufFile.open(path)
    config = config_of(gguf)
    config._attn_implementation = attention
    _, model_class = classes_of(transformers, trained_family(gguf))
    with torch.device("meta"):
        model = model_class(config)
    _fill(model, gguf, weights, device)
    rope = gguf_rope(gguf)
    with_buffers(model, config, rope)
    check_rope(model, rope, gguf.path)
    model.eval()
    return model.to(device)  # type: ignore[no-any-return]


def _fill(model: Any, gguf: GgufFile, weights: Weights, device: str) -> None:
    """Puts the file's tensors into a model on the meta device, one at a time; pages read are given back."""
    found = places(gguf)
    _check_types(gguf, found, weights)
    state: dict[str, Tensor] = {}
    dtype = torch.bfloat16 if weights == "bf16" else torch.float32
    for name, place in found.items():
        if place.kind == "weight" and _is_matrix(gguf, name) and weights in ("gguf", "nf4"):
            _replace(model, gguf, name, place, weights, device)
        else:
            state[f"{place.module}.{place.kind}"] = numbers_of(gguf, name, place, device).to(dtype)
        gguf.release()
    tied = model.config.tie_word_embeddings
    if tied and weights in ("f32", "bf16"):
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    if weights in ("f32", "bf16"):
        model.load_state_dict(state, strict=True, assign=True)
        model.tie_weights()
        return
    if tied:
        embedding = model.model.embed_tokens
        model.lm_head = BlockLinear(embedding.weight, embedding.kind)
        model.lm_head.weight = embedding.weight
    model.load_state_dict(state, strict=False, assign=True)
    for entry in model.parameters():
        assert not entry.is_meta
        entry.requires_grad_(False)


def _check_types(gguf: GgufFile, found: dict[str, Place], weights: Weights) -> None:
    """Raises UnsupportedError if a matrix is to stay as blocks that are not decoded here."""
    kept = [name for name in found if _is_matrix(gguf, name) and weights in ("gguf", "nf4")]
    if weights == "nf4":
        kept = [name for name in kept if not name.startswith("blk.")]
    others = [f"{name} is {gguf.tensors[name].type.name}" for name in kept if gguf.tensors[name].type not in DECODERS]
    if others:
        raise UnsupportedError(
            f'tensor types that are not decoded here: weights = "{weights}" cannot be used',
            where=gguf.path,
            problems=others,
            hint='weights = "f32" or "bf16" take every type',
        )


def _is_matrix(gguf: GgufFile, name: str) -> bool:
    return len(gguf.tensors[name].shape) == 2


def _replace(model: nn.Module, gguf: GgufFile, name: str, place: Place, weights: Weights, device: str) -> None:
    """Puts a coded layer where the model has an ordinary one; a bias is loaded into it later."""
    before = model.get_submodule(place.module)
    new: nn.Module
    if isinstance(before, nn.Embedding):
        scale = before.embedding_dim**0.5 if trained_family(gguf).scaled_embedding else 1.0
        new = BlockEmbedding(blocks_of(gguf, name, place), gguf.tensors[name].type, scale)
    else:
        assert isinstance(before, nn.Linear)
        bias = None if before.bias is None else before.bias.detach()
        if weights == "gguf" or place.module == "lm_head":
            new = BlockLinear(blocks_of(gguf, name, place), gguf.tensors[name].type, bias)
        else:
            from .nf4 import Nf4Linear

            new = Nf4Linear(numbers_of(gguf, name, place, device), bias)
    model.set_submodule(place.module, new)
