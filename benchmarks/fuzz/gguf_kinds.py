"""Bases and adapters: tiny valid ones of each family, damaged, through `check_base` and `check_adapter`."""

import random
from pathlib import Path
from typing import Any, Final

import numpy as np

from ...edge.answer.engine import CANARY
from ...edge.gguf.adapter import ALORA_TOKENS_KEY, PROMPT_PREFIX_KEY, TASK_NAME_KEY, check_adapter
from ...edge.gguf.base import BaseInfo
from ...edge.gguf.chat_template import ChatTemplate
from ...edge.gguf.families import FAMILIES
from ...edge.llama.context import Context
from ...edge.llama.model import Model
from ...edge.session.shelf import Canary
from ..made.gguf_out import finish
from ..made.random_adapter import write_random_adapter
from .damage import damaged_bytes
from .gguf_parts import Parts, damage

TEMPLATE: Final = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
_SIZES: Final = {"n_embd": 64, "n_q": 64, "n_k": 32, "n_v": 32, "n_o": 64, "n_ff": 96, "head": 16}
_N_LAYERS: Final = 2
# Keys that llama.cpp reads of any architecture, or of some
_ARCH_KEYS: Final = (
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "expert_count"),
    *("expert_used_count", "expert_group_count", "nextn_predict_layers", "leading_dense_block_count", "logit_scale"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "attention.sliding_window"),
    *("attention.causal", "attention.clamp_kqv", "attention.scale", "attention.temperature_scale", "pooling_type"),
    *("rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"),
    *("rope.scaling.original_context_length", "rope.scaling.attn_factor", "rope.dimension_sections", "decoder_start"),
    *("residual_scale", "embedding_scale", "use_parallel_residual", "tensor_data_layout", "classifier.output_labels"),
)
_OTHER_KEYS: Final = (
    *("general.type", "general.architecture", "general.name", "general.alignment", "general.file_type"),
    *("general.quantization_version", "split.count", "split.no", "split.tensors.count", "quantize.imatrix.file"),
    *("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.scores"),
    *("tokenizer.ggml.token_type", "tokenizer.ggml.merges", "tokenizer.ggml.bos_token_id", "tokenizer.chat_template"),
    *("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.unknown_token_id"),
    *("tokenizer.ggml.seperator_token_id", "tokenizer.ggml.padding_token_id", "tokenizer.ggml.mask_token_id"),
    *("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_space_prefix"),
    *("tokenizer.ggml.precompiled_charsmap", "tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.token_type_count"),
)
BASE_KEYS: Final = (*(f"{name}.{key}" for name in FAMILIES for key in _ARCH_KEYS), *_OTHER_KEYS)
ADAPTER_KEYS: Final = (
    *("general.type", "general.architecture", "general.name", "general.alignment", "adapter.type"),
    *("adapter.lora.alpha", TASK_NAME_KEY, PROMPT_PREFIX_KEY, ALORA_TOKENS_KEY, "adapter.control_vector.layer_count"),
    *("slm_edge.base.fingerprint", "slm_edge.base.name", "slm_edge.lora.rank", "slm_edge.source.sha256"),
)


def write_tiny_base(path: Path, architecture: str, *, sentencepiece: bool = False) -> Path:
    """Writes a random base of two layers with a vocabulary of bytes and a few words, the same one each time."""
    import gguf

    random_values = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("model")
    writer.add_name(f"tiny {architecture}")
    windows = FAMILIES[architecture].window_every
    n_layers = max(_N_LAYERS, windows)
    writer.add_block_count(n_layers)
    if windows:
        writer.add_sliding_window(16)
    writer.add_context_length(512)
    writer.add_embedding_length(_SIZES["n_embd"])
    writer.add_feed_forward_length(_SIZES["n_ff"])
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(_SIZES["head"])
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    n_vocab = _add_sentencepiece(writer) if sentencepiece else _add_bytes(writer, architecture)
    writer.add_chat_template(TEMPLATE)

    def tensor(name: str, *dims: int) -> None:
        values = random_values.standard_normal(dims[::-1]).astype(np.float32) / 8
        quantised = name.endswith("ffn_up.weight")
        kind = gguf.GGMLQuantizationType.Q8_0 if quantised else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)

    tensor("token_embd.weight", _SIZES["n_embd"], n_vocab)
    tensor("output_norm.weight", _SIZES["n_embd"])
    for layer in range(n_layers):
        for name, dims in FAMILIES[architecture].tensors():
            tensor(f"blk.{layer}.{name}", *(_SIZES[dim] for dim in dims))
    finish(writer)
    return path


def _add_bytes(writer: Any, architecture: str) -> int:
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in shown] + [chr(256 + i) for i in range(256 - len(shown))]
    tokens = [*letters, "he", "Ġt", "Ġthe", "<|im_start|>", "<|im_end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2" if architecture.startswith("qwen") else "smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 2) + [3, 3])
    writer.add_token_merges(["h e", "Ġ t", "Ġt he"])
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)
    return len(tokens)


def _add_sentencepiece(writer: Any) -> int:
    words = ["▁", "▁h", "he", "▁he", *"abcdefghijklmnopqrstuvwxyz<>/|_.!"]
    specials = {"<unk>": 2, "<s>": 3, "</s>": 3}
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 3 + [-1000.0] * 256 + [-1.0 - i for i in range(len(words))])
    writer.add_token_types([*specials.values(), *[6] * 256, *[1] * len(words)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    return len(tokens)


class BaseKind:
    """Bases."""

    kind = "base"

    def prepare(self, folder: Path) -> None:
        """One of each family, and one with a SentencePiece vocabulary."""
        paths = [write_tiny_base(folder / f"{name}.gguf", name) for name in FAMILIES]
        paths.append(write_tiny_base(folder / "sentencepiece.gguf", "llama", sentencepiece=True))
        self._valid = paths

    def make(self, draw: random.Random, folder: Path) -> None:
        """One of them with one to three parts damaged."""
        parts = Parts.read(draw.choice(self._valid))
        (folder / "base.gguf").write_bytes(damage(draw, parts, BASE_KEYS, draw.choice((1, 1, 2, 3))))

    def use(self, folder: Path) -> object:
        """All checks, the fingerprint, and the chat template."""
        base = BaseInfo.open(folder / "base.gguf")
        return base.describe(), base.unproved, base.file.get("tokenizer.chat_template")

    def run(self, folder: Path) -> object:
        """Loads it and decodes. What has unproved parts is left to `first_load`, which tries it in a child."""
        base = BaseInfo.open(folder / "base.gguf")
        if base.unproved:
            return None
        with Model.load(base.file.path) as model:
            ids = model.vocab.encode(CANARY)[:32] or [0]
            with Context(model, n_ctx_tokens=64, n_batch_tokens=32, threads=1) as context:
                context.decode(ids, 0)
                return context.logits(), ChatTemplate.of(base.file)


class AdapterKind:
    """Adapters, each for the first base."""

    kind = "adapter"

    def prepare(self, folder: Path) -> None:
        """A base, and adapters for it of two types."""
        self._base = BaseInfo.open(write_tiny_base(folder / "base.gguf", "llama"))
        self._valid = [folder / f"{dtype}.gguf" for dtype in ("f16", "q8_0")]
        for path in self._valid:
            write_random_adapter(self._base, path, rank=4, dtype=path.stem)
        self._model: Model | None = None

    def make(self, draw: random.Random, folder: Path) -> None:
        """One of them with one to three parts damaged."""
        parts = Parts.read(draw.choice(self._valid))
        data = damage(draw, parts, ADAPTER_KEYS, draw.choice((1, 1, 2, 3)))
        (folder / "adapter.gguf").write_bytes(data if draw.random() < 0.95 else damaged_bytes(draw, data))

    def use(self, folder: Path) -> object:
        """All checks."""
        return check_adapter(folder / "adapter.gguf", self._base)

    def run(self, folder: Path) -> object:
        """Loads it into a model of its base, and decodes with it."""
        self._model = self._model or Model.load(self._base.file.path)
        adapter = self._model.load_adapter(folder / "adapter.gguf")
        try:
            Canary(self._model, 1).check(adapter, 1.0, must_act=False)
            return adapter.path
        finally:
            adapter.close()
