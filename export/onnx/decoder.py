"""Decoders as ONNX graphs: what is put into the data file, and the two graphs over it.

    parts = store(info, weights, packed=False, max_length_tokens=2048)
    build(info, parts, data, dtype, lora=True).save(folder / "model.onnx", "model")
    build(info, parts, data, dtype, lora=False).save(folder / "base.onnx", "base")

Inputs and outputs have the names that Hugging Face's optimum and onnxruntime-genai look for. Two are ours: the LoRA
pairs, and `first_logit` (default 0), the first token that gets logits: a runtime that wants the last one's alone
saves the head's work on all others. Positions follow from attention_mask, so batches are padded on the right only.
Between attentions rows of all sequences lie below each other, (tokens, width): Gemm takes two sides only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ...edge.gguf.base import BaseInfo
from .data import DataFile
from .graph import MS, Graph
from .rope import head_size_of, rope_tables
from .weights import Matrix, Weights

# Matrices that share their input, by their GGUF names -> module that holds them together.
GROUPS: Final = {
    ("attn_q", "attn_k", "attn_v"): "self_attn.qkv_proj",
    ("attn_output",): "self_attn.o_proj",
    ("ffn_gate", "ffn_up"): "mlp.gate_up_proj",
    ("ffn_down",): "mlp.down_proj",
}


@dataclass(frozen=True)
class Linear:
    """Matrices that take the same input and whose outputs lie side by side, with one LoRA pair.

    Attributes:
        name: of the module, with its layer.
        targets: the base's tensors, in order.
        widths: n_out of each.
        matrices: one for all of them where they are held alike, else one each.
        bias: of all of them together; None if there is none.
    """

    name: str
    targets: tuple[str, ...]
    widths: tuple[int, ...]
    n_in: int
    matrices: tuple[Matrix, ...]
    bias: str | None

    @property
    def n_out(self) -> int:
        return sum(self.widths)

    @property
    def pair(self) -> tuple[str, str]:
        """Names of the LoRA inputs A and B."""
        return f"{self.name}.lora_A.weight", f"{self.name}.lora_B.weight"


@dataclass(frozen=True)
class Parts:
    """Everything that both graphs are made of.

    Attributes:
        layers: for each layer its linears by module name.
        norms: names of vectors, by the name of the module.
        head: the embedding itself where the base's head is tied.
    """

    layers: tuple[dict[str, Linear], ...]
    norms: dict[str, str]
    embedding: Matrix
    head: Matrix
    head_size: int

    @property
    def linears(self) -> list[Linear]:
        return [linear for layer in self.layers for linear in layer.values()]


def store(info: BaseInfo, weights: Weights, data: DataFile, *, packed: bool, max_length_tokens: int) -> Parts:
    """Puts every tensor into the data file.

    Args:
        packed: q, k, v and gate, up are one matrix and one LoRA pair each.
    """
    cos, sin = rope_tables(info, max_length_tokens)
    data.add("rope_cos", cos.astype(weights.dtype))
    data.add("rope_sin", sin.astype(weights.dtype))
    if info.family.window_every:
        cos, sin = rope_tables(info, max_length_tokens, windowed=True)
        data.add("rope_window_cos", cos.astype(weights.dtype))
        data.add("rope_window_sin", sin.astype(weights.dtype))
    embedding = weights.matrix("model.embed_tokens", ["token_embd.weight"], transposed=False)
    norms = {"model.norm": weights.vector("model.norm.weight", ["output_norm.weight"])}
    layers = []
    family = info.family
    groups: list[tuple[str, tuple[str, ...]]] = [(name, group) for group, name in GROUPS.items()]
    if not packed or family.fused:
        groups = [(part.module, (part.name,)) for part in family.block if part.is_matrix]
    for layer in range(info.n_layers):
        where = f"model.layers.{layer}"
        for part in family.block:
            if not part.is_matrix:
                tensor = f"blk.{layer}.{part.name}.weight"
                norms[f"{where}.{part.module}"] = weights.vector(f"{where}.{part.module}.weight", [tensor])
        layers.append({name: _linear(info, weights, f"{where}.{name}", layer, group) for name, group in groups})
    head = weights.matrix("lm_head", ["output.weight"], transposed=False) if info.has_output else embedding
    return Parts(tuple(layers), norms, embedding, head, head_size_of(info))


def _linear(info: BaseInfo, weights: Weights, name: str, layer: int, group: Sequence[str]) -> Linear:
    stems = [f"blk.{layer}.{part}" for part in group]
    targets = tuple(f"{stem}.weight" for stem in stems)
    widths = tuple(info.tensor_shapes[target][1] for target in targets)
    alike = len({weights.held_as(target) for target in targets}) == 1
    if alike:
        matrices: tuple[Matrix, ...] = (weights.matrix(name, targets),)
    else:
        names = [str(info.family.module(stem)) for stem in stems]
        matrices = tuple(weights.matrix(n, [t]) for n, t in zip(names, targets, strict=True))
    biases = [f"{stem}.bias" for stem in stems if f"{stem}.bias" in info.tensor_shapes]
    bias = weights.vector(f"{name}.bias", biases) if len(biases) == len(stems) else None
    return Linear(name, targets, widths, info.tensor_shapes[targets[0]][0], matrices, bias)


def build(info: BaseInfo, parts: Parts, data: DataFile, dtype: Any, *, lora: bool, accuracy_level: int) -> Graph:
    """One of the two graphs.

    Args:
        lora: with the optional inputs of LoRA pairs.
        accuracy_level: as in `Graph`.
    """
    graph = Graph(data, dtype, accuracy_level)
    decoder = _Decoder(info, parts, graph, lora)
    decoder.build()
    return graph


class _Decoder:
    def __init__(self, info: BaseInfo, parts: Parts, graph: Graph, lora: bool) -> None:
        self.info, self.parts, self.graph, self.lora = info, parts, graph, lora
        self.eps = float(info.file.get(f"{info.architecture}.attention.layer_norm_rms_epsilon"))
        self.cache_dims: tuple[int | str, ...] = ("batch_size", info.n_kv_heads)
        self.shapes: set[str] = set()
        family = info.family
        modules = {part.name: part.module for part in family.block}
        # Norms of a block by where they stand. A norm "behind attention" of a family that has none behind its feed-
        # forward part stands before that one.
        behind = "post_ffw_norm" in modules
        self.before_attention = modules.get("attn_norm")
        self.before_mlp = modules.get("ffn_norm") or (None if behind else modules.get("post_attention_norm"))
        self.behind_attention = modules.get("post_attention_norm") if behind else None
        self.behind_mlp = modules.get("post_ffw_norm")
        self.q_norm, self.k_norm = modules.get("attn_q_norm"), modules.get("attn_k_norm")

    def _scalar(self, key: str) -> float:
        """A number of the computation; 1 where the family has none."""
        if key not in self.info.family.scalars:
            return 1.0
        return float(self.info.file.get(f"{self.info.architecture}.{key}", 1.0))

    def _times(self, x: str, key: str) -> str:
        factor = self._scalar(key)
        return (
            x if factor == 1 else self.graph.node("Mul", [x, self.graph.small(key, np.array(factor, self.graph.dtype))])
        )

    def build(self) -> None:
        g, info, parts = self.graph, self.info, self.parts
        ids = g.input("input_ids", np.int64, ["batch_size", "sequence_length"])
        mask = g.input("attention_mask", np.int64, ["batch_size", "total_sequence_length"])
        for layer in range(info.n_layers):
            for part in ("key", "value"):
                past_dims: list[int | str] = [*self.cache_dims, "past_sequence_length", parts.head_size]
                g.input(f"past_key_values.{layer}.{part}", g.dtype, past_dims)
        first = g.input("first_logit", np.int64, [1])
        g.small("first_logit", np.array([0], np.int64))
        self.lengths = self._lengths(mask)
        self.shape = g.node("Shape", [ids])
        residual = self._times(self._rows(g.embedding(parts.embedding, ids), info.n_embd), "embedding_scale")
        if info.family.scaled_embedding:
            root = g.small("embedding_root", np.array(info.n_embd**0.5, g.dtype))
            residual = g.node("Mul", [residual, root])
        x = (
            residual
            if self.before_attention is None
            else self._norm(residual, f"model.layers.0.{self.before_attention}")
        )
        for layer, linears in enumerate(parts.layers):
            attended = self._apply(linears["self_attn.o_proj"], self._attention(layer, linears, x))
            attended = self._branch(layer, attended, self.behind_attention)
            x, residual = self._sum(residual, attended, layer, self.before_mlp)
            fed = self._branch(layer, self._mlp(linears, x), self.behind_mlp)
            if layer < info.n_layers - 1:
                x, residual = self._sum(residual, fed, layer + 1, self.before_attention)
        residual, fed = (self._from(self._batched(y, info.n_embd), first) for y in (residual, fed))
        x, _ = self._skip_norm(residual, fed, "model.norm")
        scale = self._scalar("logit_scale")
        if scale != 1:
            x = g.node("Mul", [x, g.small("logit_scale", np.array(1 / scale, g.dtype))])
        g.head(parts.head, x, "logits")
        g.output("logits", ["batch_size", "logits_length", info.n_vocab])
        for layer in range(info.n_layers):
            for part in ("key", "value"):
                g.output(f"present.{layer}.{part}", [*self.cache_dims, "total_sequence_length", parts.head_size])

    def _branch(self, layer: int, y: str, norm: str | None) -> str:
        """What attention or the feed-forward part adds to the residual."""
        y = y if norm is None else self._norm(y, f"model.layers.{layer}.{norm}")
        return self._times(y, "residual_scale")

    def _sum(self, residual: str, y: str, layer: int, norm: str | None) -> tuple[str, str]:
        """residual + y, normed for what comes next, and as it is."""
        if norm is not None:
            return self._skip_norm(residual, y, f"model.layers.{layer}.{norm}")
        summed = self.graph.node("Add", [residual, y])
        return summed, summed

    def _lengths(self, mask: str) -> tuple[str, str]:
        """Position of each row's last token, and the length of the longest row, as GroupQueryAttention takes them."""
        g = self.graph
        one = g.small("one", np.array(1, np.int64))
        row = g.node("ReduceSum", [mask, g.small("axis_1", np.array([1], np.int64))], keepdims=0)
        int32 = 6  # TensorProto.INT32
        last = g.node("Cast", [g.node("Sub", [row, one])], to=int32)
        total = g.node("Gather", [g.node("Shape", [mask]), one], axis=0)
        return last, g.node("Cast", [total], to=int32)

    def _rows(self, x: str, width: int) -> str:
        """(batch, tokens, width) as (tokens of all, width)."""
        return self.graph.node("Reshape", [x, self.graph.small(f"rows_{width}", np.array([-1, width]))])

    def _batched(self, x: str, width: int) -> str:
        """(tokens of all, …) as (batch, tokens, width)."""
        g, name = self.graph, f"batched_{width}"
        if name not in self.shapes:
            self.shapes.add(name)
            g.node("Concat", [self.shape, g.small(f"width_{width}", np.array([width]))], out=name, axis=0)
        return g.node("Reshape", [x, name])

    def _from(self, x: str, first: str) -> str:
        g = self.graph
        end = g.small("int64_max", np.array([np.iinfo(np.int64).max]))
        return g.node("Slice", [x, first, end, g.small("axis_1", np.array([1], np.int64))])

    def _norm(self, x: str, module: str) -> str:
        weight = self.graph.stored(self.parts.norms[module])
        return self.graph.node("SimplifiedLayerNormalization", [x, weight], axis=-1, epsilon=self.eps, stash_type=1)

    def _skip_norm(self, residual: str, x: str, module: str) -> tuple[str, str]:
        """The norm of residual + x, and that sum."""
        g = self.graph
        summed = f"sum_{module}"
        weight = g.stored(self.parts.norms[module])
        inputs, outputs = [residual, x, weight], ["", "", "", summed]
        return g.node("SkipSimplifiedLayerNormalization", inputs, out=outputs, domain=MS, epsilon=self.eps), summed

    def _apply(self, linear: Linear, x: str) -> str:
        g = self.graph
        outs = [g.linear(matrix, x) for matrix in linear.matrices]
        y = outs[0] if len(outs) == 1 else g.node("Concat", outs, axis=-1)
        if linear.bias is not None:
            y = g.node("Add", [y, g.stored(linear.bias)])
        return g.lora(linear.pair, linear.n_in, linear.n_out, x, y) if self.lora else y

    def _heads(self, x: str, layer: int, norm: str | None, name: str, n_heads: int) -> str:
        """q or k, (tokens of all, width), as attention takes it: normed where the family does so, by head or whole."""
        g, size = self.graph, self.parts.head_size
        family = self.info.family
        if family.norm_after_rope:
            tables = [g.stored("rope_cos"), g.stored("rope_sin")]
            inputs = [self._batched(x, n_heads * size), self._positions(), *tables]
            x = self._rows(g.node("RotaryEmbedding", inputs, domain=MS), n_heads * size)
        if norm is not None:
            part = family.part(name)
            if part is not None and part.shape == ("head",):
                x = g.node("Reshape", [x, g.small(f"heads_{n_heads}", np.array([-1, n_heads, size]))])
            x = self._norm(x, f"model.layers.{layer}.{norm}")
        return self._batched(x, n_heads * size)

    def _positions(self) -> str:
        """Position of each token, (batch, tokens), counted as GroupQueryAttention does."""
        g, name = self.graph, "positions"
        if name in self.shapes:
            return name
        self.shapes.add(name)
        zero, one = g.small("zero", np.array(0, np.int64)), g.small("one", np.array(1, np.int64))
        int64 = 7  # TensorProto.INT64
        last, total = (g.node("Cast", [x], to=int64) for x in self.lengths)
        n_tokens = g.node("Gather", [self.shape, one], axis=0)
        # A first call begins at 0 in every row, however much of it is padding.
        first = g.node("Equal", [total, n_tokens])
        began = g.node("Sub", [g.node("Add", [last, one]), n_tokens])
        start = g.node("Where", [first, zero, began])
        start = g.node("Unsqueeze", [start, g.small("axis_1", np.array([1], np.int64))])
        counted = g.node("Range", [zero, n_tokens, one])
        return g.node("Add", [start, counted], out=name)

    def _attention(self, layer: int, linears: dict[str, Linear], x: str) -> str:
        g, info = self.graph, self.info
        packed = linears.get("self_attn.qkv_proj")
        if packed is None:
            q, k, v = (self._apply(linears[f"self_attn.{part}_proj"], x) for part in "qkv")
        else:
            q, k, v = self._apply(packed, x), "", ""
            if self.q_norm is not None:
                q, k, v = self._split(packed, q, packed.widths)
        size = self.parts.head_size
        if k:
            q = self._heads(q, layer, self.q_norm, "attn_q_norm", info.n_heads)
            k = self._heads(k, layer, self.k_norm, "attn_k_norm", info.n_kv_heads)
            v = self._batched(v, info.n_kv_heads * size)
        else:
            q = self._batched(q, (info.n_heads + 2 * info.n_kv_heads) * size)
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        outputs = ["", f"present.{layer}.key", f"present.{layer}.value"]
        turns = info.family.turns(layer) and not info.family.norm_after_rope
        windowed = info.family.windowed(layer)
        kind = "rope_window" if windowed else "rope"
        tables = [g.stored(f"{kind}_cos"), g.stored(f"{kind}_sin")] if turns else []
        window_tokens = int(info.file.get(f"{info.architecture}.attention.sliding_window")) if windowed else 0
        scale = self._scalar("attention.scale") if "attention.scale" in info.family.scalars else size**-0.5
        attended = g.node(
            "GroupQueryAttention",
            [q, k, v, *past, *self.lengths, *tables],
            out=outputs,
            domain=MS,
            num_heads=info.n_heads,
            kv_num_heads=info.n_kv_heads,
            scale=float(scale),
            do_rotary=int(turns),
            rotary_interleaved=0,
            local_window_size=window_tokens or -1,
        )
        return self._rows(attended, info.n_heads * size)

    def _mlp(self, linears: dict[str, Linear], x: str) -> str:
        g = self.graph
        packed = linears.get("mlp.gate_up_proj")
        if packed is None:
            gate, up = (self._apply(linears[f"mlp.{part}_proj"], x) for part in ("gate", "up"))
        else:
            gate, up = self._split(packed, self._apply(packed, x), (self.info.n_ff, self.info.n_ff))
        if self.info.family.activation == "silu":
            gate = g.node("Mul", [gate, g.node("Sigmoid", [gate])])
        else:
            # GELU by way of tanh, as the other families here have it
            gate = g.node("FastGelu", [gate], domain=MS)
        return self._apply(linears["mlp.down_proj"], g.node("Mul", [gate, up]))

    def _split(self, linear: Linear, y: str, widths: tuple[int, ...]) -> list[str]:
        g = self.graph
        names = [f"{linear.name}.part{i}" for i in range(len(widths))]
        g.node("Split", [y, g.small(f"widths_{'_'.join(map(str, widths))}", np.array(widths))], out=names, axis=-1)
        return names
