"""A transformers model made from a GGUF: its config from the file's keys, its weights dequantised to f32 or kept.

    model = load_gguf_model("SmolLM2-135M-Instruct.Q4_1.gguf")      # LlamaForCausalLM, the weights that will ship
    model = load_gguf_model("base.gguf", weights="gguf")            # the same, its matrices kept as the file's blocks

A family is one row of `edge.gguf.families`. No tokenizer is made here: llama.cpp's own is used (`edge.llama.vocab`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...edge.errors import UnsupportedError
from ...edge.gguf.families import ALWAYS, FAMILIES, Family, halves_order
from ...edge.gguf.file import GgufFile
from ..recipe import Weights
from .blocks import DECODERS, dequantize
from .frozen import BlockEmbedding, BlockLinear

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Divisors of the rotation speeds, (head size / 2,): llama.cpp's form of Llama 3's rope scaling.
ROPE_FACTORS = "rope_freqs.weight"


def family_of(gguf: GgufFile) -> Family:
    """The table's row for a file.

    Raises:
        UnsupportedError: no row for its architecture, or none that is trained from a GGUF.
    """
    arch = str(gguf.get("general.architecture", ""))
    family = FAMILIES.get(arch)
    if family is None or "train" not in family.uses:
        known = ", ".join(sorted(name for name, row in FAMILIES.items() if "train" in row.uses))
        raise UnsupportedError(
            f"training from a GGUF of architecture {arch!r} is not supported (known: {known})",
            where=gguf.path,
            hint="train from the Hugging Face folder of the same model instead",
        )
    return family


def config_of(gguf: GgufFile) -> "PretrainedConfig":
    """The transformers config that a GGUF's keys describe.

    Raises:
        UnsupportedError: unknown architecture, or a rope scaling that is not built here.
    """
    import transformers

    family = family_of(gguf)
    arch = str(gguf.get("general.architecture"))

    def key(name: str, default: Any = None) -> Any:
        return gguf.get(f"{arch}.{name}", default)

    scaling = key("rope.scaling.type", "none")
    if scaling not in ("none", ""):
        raise UnsupportedError(f"rope scaling {scaling!r} in a GGUF is not supported for training", where=gguf.path)
    width, heads = int(key("embedding_length")), int(key("attention.head_count"))
    vocab_size = gguf.tensors["token_embd.weight"].shape[1]
    config = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": int(key("feed_forward_length")),
        "num_hidden_layers": int(key("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(key("attention.head_count_kv", heads)),
        "head_dim": int(key("attention.key_length", width // heads)),
        "max_position_embeddings": int(key("context_length")),
        "rms_norm_eps": float(key("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(key("rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "bos_token_id": gguf.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": gguf.get("tokenizer.ggml.eos_token_id"),
        **_biases(gguf, family),
        **family.classes[0].fixed,
    }
    config_class: type[PretrainedConfig] = getattr(transformers, family.classes[0].config)
    return config_class(**config)


def _biases(gguf: GgufFile, family: Family) -> dict[str, bool]:
    """The config fields that switch biases on, as the file has biases."""
    switches: dict[str, bool] = {}
    for part in family.block:
        if part.bias not in ("", ALWAYS):
            switches[part.bias] = switches.get(part.bias, False) or f"blk.0.{part.name}.bias" in gguf.tensors
    return switches


def tensor_of(gguf: GgufFile, name: str) -> "np.ndarray[Any, Any]":
    """One tensor, dequantised to float32, in numpy order (out, in)."""
    import gguf as gguf_package

    info = gguf.tensors[name]
    kind = gguf_package.GGMLQuantizationType(int(info.type))
    values = gguf_package.quants.dequantize(np.asarray(gguf.raw(name)).reshape(*info.shape[:0:-1], -1), kind)
    return np.asarray(values, dtype=np.float32).reshape(info.shape[::-1])


@dataclass(frozen=True)
class Place:
    """Where a tensor of the file goes.

    Attributes:
        module: the module's name in transformers.
        kind: "weight" or "bias".
        n_heads: of q and k whose rows lie pair by pair and must be put back to halves; 0 elsewhere.
    """

    module: str
    kind: str
    n_heads: int = 0

    def in_order(self, rows: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """Rows (numbers or blocks) in the order that transformers wants."""
        return rows[halves_order(len(rows), self.n_heads)] if self.n_heads else rows


def places(gguf: GgufFile) -> dict[str, Place]:
    """The place of every tensor but the rope's factors.

    Raises:
        UnsupportedError: a tensor that no name here covers.
    """
    family = family_of(gguf)
    arch = str(gguf.get("general.architecture"))
    heads = int(gguf.get(f"{arch}.attention.head_count"))
    kv_heads = int(gguf.get(f"{arch}.attention.head_count_kv", heads))
    found: dict[str, Place] = {}
    unknown = []
    for name in gguf.tensors:
        if name == ROPE_FACTORS:
            continue
        stem, _, kind = name.rpartition(".")
        module = family.module(stem)
        if module is None or kind not in ("weight", "bias"):
            unknown.append(name)
            continue
        found[name] = Place(module, kind, family.n_interleaved_heads(stem, heads, kv_heads) or 0)
    if unknown:
        raise UnsupportedError(
            "tensors that the training model has no place for", where=gguf.path, problems=[f"{n}" for n in unknown]
        )
    return found


def numbers_of(gguf: GgufFile, name: str, place: Place, device: str = "cpu") -> Tensor:
    """One tensor on `device`, f32, as transformers wants it; a matrix for a GPU is decoded there."""
    if device != "cpu" and _is_matrix(gguf, name) and gguf.tensors[name].type in DECODERS:
        return dequantize(blocks_of(gguf, name, place).to(device), gguf.tensors[name].type)
    return torch.from_numpy(np.array(place.in_order(tensor_of(gguf, name)), copy=True)).to(device)


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
    model_class = getattr(transformers, family_of(gguf).classes[0].name)
    with torch.device("meta"):
        model = model_class(config)
    _fill(model, gguf, weights, device)
    # the inverse frequencies are a buffer outside the state: made on meta above, so made again for real
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    if ROPE_FACTORS in gguf.tensors:
        factors = torch.from_numpy(np.array(gguf.array(ROPE_FACTORS), copy=True))
        model.model.rotary_emb.inv_freq /= factors
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
        new = BlockEmbedding(blocks_of(gguf, name, place), gguf.tensors[name].type)
    else:
        assert isinstance(before, nn.Linear)
        bias = None if before.bias is None else before.bias.detach()
        if weights == "gguf" or place.module == "lm_head":
            new = BlockLinear(blocks_of(gguf, name, place), gguf.tensors[name].type, bias)
        else:
            from .nf4 import Nf4Linear

            new = Nf4Linear(numbers_of(gguf, name, place, device), bias)
    model.set_submodule(place.module, new)
