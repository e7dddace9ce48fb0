"""What one token costs, counted from a tensor table: bytes that are streamed, weights that are multiplied, KV bytes.

    work = Workload.of_shape(find_shape("llama-3.2-1b"), "q4_0")
    work.streamed_bytes              # 770 MB: a tied embedding is read once, as the head
    work.block_weights               # what each token of a prompt is multiplied with: no embedding, no head

An untied input embedding is not streamed (one row of it is read per token), so the file's size is not the answer.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ...edge.gguf.file import GgufFile
from ...edge.gguf.types import GgmlType
from ...edge.llama.states import kept_of
from .quant_mix import LABELS, types_of
from .shapes import ModelShape

KV_BYTES_PER_VALUE: Final = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
# Tensors that a token reads one row of, not the whole.
_ROW_READ: Final = ("token_embd.weight", "token_types.weight", "position_embd.weight", "per_layer_token_embd.weight")


def size_bytes(n_weights: int, kind: GgmlType) -> int:
    """Bytes of `n_weights` weights of a type."""
    values, block_bytes = kind.block
    return n_weights // values * block_bytes


@dataclass(frozen=True)
class Workload:
    """A model as a device sees it.

    Attributes:
        name: for messages.
        weights_by_type: weights that one token of an answer is multiplied with, by their type.
        block_weights: of these, those outside of the head; a prompt's tokens are multiplied with no others.
        head_bytes: of the head, streamed once for a prompt and once for each token of an answer.
        file_bytes: all tensors, the embedding included.
        kv_values_per_token: K and V values that each token of context leaves in the cache.
        kv_values_in_window: those of them that a token leaves once `window_tokens` more have come.
        n_embd, n_layers, n_vocab, n_ctx_train_tokens: as in the configuration; 0 if it is not known.
        lora_shapes: (n_in, n_out) of the seven linear matrices of all layers, for adapters.
        sure: False if bytes come from a file's size or a count of parameters, not from a tensor table.
    """

    name: str
    weights_by_type: Mapping[GgmlType, int]
    block_weights: int
    head_bytes: int
    file_bytes: int
    kv_values_per_token: int = 0
    kv_values_in_window: int = 0
    window_tokens: int = 0
    n_embd: int = 0
    n_layers: int = 0
    n_vocab: int = 0
    n_ctx_train_tokens: int = 0
    lora_shapes: tuple[tuple[int, int], ...] = field(default=(), repr=False)
    sure: bool = True

    @property
    def streamed_bytes(self) -> int:
        """Bytes of weights that one token of an answer reads."""
        return sum(size_bytes(n, kind) for kind, n in self.weights_by_type.items())

    @property
    def n_weights(self) -> int:
        return sum(self.weights_by_type.values())

    def kv_bytes_per_token(self, kv_type: str = "f16") -> float:
        return self.kv_values_per_token * KV_BYTES_PER_VALUE[kv_type]

    def context_bytes(self, n_tokens: float, kv_type: str = "f16") -> float:
        """What one token of an answer reads of the cache behind so many."""
        lost_tokens = max(n_tokens - self.window_tokens, 0.0)
        n_values = n_tokens * self.kv_values_per_token - lost_tokens * self.kv_values_in_window
        return n_values * KV_BYTES_PER_VALUE[kv_type]

    def lora_weights(self, rank: int) -> int:
        """Values of an adapter of this rank on all linear matrices of the blocks: r x (n_in + n_out) each."""
        return sum(rank * (n_in + n_out) for n_in, n_out in self.lora_shapes)

    @classmethod
    def of_shape(cls, shape: ModelShape, label: str) -> "Workload":
        """Of a published configuration quantised to a label of `quant_mix.LABELS`."""
        weights: Counter[GgmlType] = Counter()
        head_bytes = file_bytes = 0
        for matrix, kind in zip(shape.matrices(), types_of(shape, label), strict=True):
            n_bytes = size_bytes(matrix.n_weights, kind)
            file_bytes += n_bytes
            if f"{matrix.name}.weight" in _ROW_READ and not (shape.tied and matrix.name == "token_embd"):
                continue
            if matrix.layer is None:
                head_bytes += n_bytes
            weights[kind] += matrix.n_weights
        return cls(
            name=f"{shape.name} {label}",
            weights_by_type=weights,
            block_weights=shape.n_block_weights,
            head_bytes=head_bytes,
            file_bytes=file_bytes + 4 * shape.n_vectors,
            kv_values_per_token=shape.n_kv_values_per_token,
            kv_values_in_window=shape.n_windowed_kv_values,
            window_tokens=shape.window_tokens,
            n_embd=shape.n_embd,
            n_layers=shape.n_layers,
            n_vocab=shape.n_vocab,
            n_ctx_train_tokens=shape.n_ctx_train_tokens,
            lora_shapes=tuple((m.n_in, m.n_out) for m in shape.matrices() if m.layer is not None),
        )

    @classmethod
    def of_file(cls, file: GgufFile, name: str | None = None) -> "Workload":
        """Of an open GGUF file or of its header alone: only the tables are read.

        Of a mixture of experts a token reads those that it is given to: their share of each such tensor.
        """
        arch = str(file.get("general.architecture", ""))
        n_experts = int(file.get(f"{arch}.expert_count", 0))
        share = int(file.get(f"{arch}.expert_used_count", 0)) / n_experts if n_experts else 1.0
        tied = "output.weight" not in file.tensors
        weights: Counter[GgmlType] = Counter()
        block_weights = head_bytes = 0
        lora = []
        for tensor in file.tensors.values():
            if len(tensor.shape) < 2:
                continue
            in_block = tensor.name.startswith("blk.")
            if tensor.name in _ROW_READ and not (tied and tensor.name == "token_embd.weight"):
                continue
            n_values = round(tensor.n_values * share) if "_exps." in tensor.name else tensor.n_values
            weights[tensor.type] += n_values
            if in_block:
                block_weights += n_values
                lora.append((tensor.shape[0], math.prod(tensor.shape[1:])))
            else:
                head_bytes += tensor.size_bytes
        n_layers, n_embd = int(file.get(f"{arch}.block_count", 0)), int(file.get(f"{arch}.embedding_length", 0))
        kept = kept_of(file)
        return cls(
            name=name or str(file.get("general.name", file.path.stem)),
            weights_by_type=weights,
            block_weights=block_weights,
            head_bytes=head_bytes,
            file_bytes=sum(tensor.size_bytes for tensor in file.tensors.values()),
            kv_values_per_token=kept.kv_values + kept.windowed_kv_values,
            kv_values_in_window=kept.windowed_kv_values,
            window_tokens=kept.window_tokens,
            n_embd=n_embd,
            n_layers=n_layers,
            n_vocab=int(file.tensors["token_embd.weight"].shape[1]) if "token_embd.weight" in file.tensors else 0,
            n_ctx_train_tokens=int(file.get(f"{arch}.context_length", 0)),
            lora_shapes=tuple(lora),
        )

    @classmethod
    def of_size(cls, name: str, n_params: float, label: str, file_bytes: float | None = None) -> "Workload":
        """Where neither shapes nor tables are known: every parameter streamed once, in the file's mean type.

        Args:
            n_params: published number of parameters.
            label: a label of `quant_mix.LABELS`; decides bytes where the file's size is not known.
            file_bytes: of the file.
        """
        kind = LABELS.get(label, GgmlType.Q4_K)
        n = int(n_params)
        guess = size_bytes(n, kind)
        # Mixtures give part of the matrices and the head more bits: 1.0 to 1.25 times the plain type, here 1.08.
        total = file_bytes if file_bytes is not None else guess * (1.08 if kind.block[0] == 256 else 1.0)
        # Expressed in the plain type's blocks, so that the sum of bytes comes out as the file's.
        values, block_bytes = kind.block
        return cls(
            name=name,
            weights_by_type={kind: int(total / block_bytes) * values},
            block_weights=int(0.88 * n),
            head_bytes=int(0.12 * total),
            file_bytes=int(total),
            sure=False,
        )
