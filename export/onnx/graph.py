"""The decoder as an ONNX graph, node by node: GroupQueryAttention over a KV cache, LoRA pairs as optional inputs.

    graph = Graph(data, np.float32)
    y = graph.linear("model.layers.0.self_attn.q_proj", matrix, x)
    graph.save(path, "base")

What it computes is `onnx_decoder.build`'s; here are the pieces: nodes, constants, linear layers in their three forms
(floats, blocks, blocks with offsets), and LoRA. Operators outside ONNX are onnxruntime's own (com.microsoft).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...edge.gguf.types import GgmlType
from .blocks import CARRIERS
from .data import DataFile
from .weights import Matrix

# What onnxruntime 1.31 and newer read; other readers of the folder (genai, optimum) take the same.
OPSET: Final = 21
IR_VERSION: Final = 10
MS: Final = "com.microsoft"


class Graph:
    """A graph under construction over a data file.

    Args:
        dtype: of its floats.
        accuracy_level: MatMulNBits' own: 4 rounds activations to int8 blocks, as llama.cpp does; 1 leaves them F32.

    Attributes:
        nodes, inputs, outputs, constants: protobuf messages, in order.
    """

    def __init__(self, data: DataFile, dtype: Any, accuracy_level: int = 4) -> None:
        import onnx

        self._onnx = onnx
        self._data = data
        self._accuracy_level = accuracy_level
        self.dtype = np.dtype(dtype)
        self.float_type: int = onnx.helper.np_dtype_to_tensor_dtype(self.dtype)
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.constants: dict[str, Any] = {}
        self._sums: dict[tuple[str, int], str] = {}

    def input(self, name: str, dtype: Any, dims: Sequence[int | str]) -> str:
        """A graph input; returns its name."""
        self.inputs.append(self._info(name, dtype, dims))
        return name

    def output(self, name: str, dims: Sequence[int | str]) -> None:
        """Declares a value as a float output of the graph."""
        self.outputs.append(self._info(name, self.dtype, dims))

    def _info(self, name: str, dtype: Any, dims: Sequence[int | str]) -> Any:
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self._onnx.helper.make_tensor_value_info(name, kind, list(dims))

    def small(self, name: str, values: npt.NDArray[Any]) -> str:
        """A constant that stands in the graph itself: shapes, axes, and the empty defaults of LoRA inputs."""
        if name not in self.constants:
            self.constants[name] = self._onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def stored(self, name: str) -> str:
        """A constant in the data file."""
        if name not in self.constants:
            region = self._data.regions[name]
            tensor = self._onnx.TensorProto()
            tensor.name = name
            tensor.data_type = self._onnx.helper.np_dtype_to_tensor_dtype(region.dtype)
            tensor.dims.extend(region.dims)
            tensor.data_location = self._onnx.TensorProto.EXTERNAL
            places = {"location": self._data.location, "offset": region.start_bytes, "length": region.size_bytes}
            for key, value in places.items():
                tensor.external_data.add(key=key, value=str(value))
            self.constants[name] = tensor
        return name

    def node(
        self, op: str, inputs: Sequence[str], *, out: str | Sequence[str] = "", domain: str = "", **attributes: Any
    ) -> str:
        """Adds a node; returns the name of its first output, which is made up unless given."""
        outputs = [out] if isinstance(out, str) else list(out)
        if not outputs[0]:
            outputs[0] = f"v{len(self.nodes)}"
        node = self._onnx.helper.make_node(
            op, list(inputs), outputs, name=f"n{len(self.nodes)}", domain=domain, **attributes
        )
        self.nodes.append(node)
        return outputs[0]

    def linear(self, matrix: Matrix, x: str) -> str:
        """x W^T for x of (tokens, n_in)."""
        if matrix.held is None:
            return self.node("MatMul", [x, self.stored(matrix.weight)])
        y = self._blocks(matrix, matrix.held, x)
        if matrix.offsets is None:
            return y
        return self.node("Gemm", [self._block_sums(matrix, x, [-1]), self.stored(matrix.offsets), y])

    def head(self, matrix: Matrix, x: str, out: str) -> None:
        """The output matrix for x of (batch, tokens, n_in): giving the logits their shape afterwards would copy them.

        Its floats are not transposed because the embedding may be the same tensor.
        """
        if matrix.held is None:
            self.node("FusedMatMul", [x, self.stored(matrix.weight)], out=out, domain=MS, transA=0, transB=1, alpha=1.0)
        elif matrix.offsets is None:
            self._blocks(matrix, matrix.held, x, out)
        else:
            sums = self._block_sums(matrix, x, [0, 0])
            added = self.node("MatMul", [sums, self.stored(matrix.offsets)])
            self.node("Add", [self._blocks(matrix, matrix.held, x), added], out=out)

    def _blocks(self, matrix: Matrix, held: GgmlType, x: str, out: str = "") -> str:
        carrier = CARRIERS[held]
        assert matrix.scales is not None
        return self.node(
            "MatMulNBits",
            [x, self.stored(matrix.weight), self.stored(matrix.scales)],
            out=out,
            domain=MS,
            K=matrix.n_in,
            N=matrix.n_out,
            bits=carrier.bits,
            block_size=carrier.block_values,
            accuracy_level=self._accuracy_level,
        )

    def _block_sums(self, matrix: Matrix, x: str, outer: list[int]) -> str:
        """Sums of x over each block, (…, n_blocks): what a block's offset is multiplied by; `outer` as in Reshape."""
        assert matrix.held is not None
        block_values = CARRIERS[matrix.held].block_values
        key = (x, block_values)
        if key not in self._sums:
            n_blocks = matrix.n_in // block_values
            shape = self.small(
                f"blocks_{len(outer)}_{n_blocks}_{block_values}", np.array([*outer, n_blocks, block_values])
            )
            last = self.small("axis_last", np.array([-1], np.int64))
            blocks = self.node("Reshape", [x, shape])
            self._sums[key] = self.node("ReduceSum", [blocks, last], keepdims=0)
        return self._sums[key]

    def lora(self, pair: tuple[str, str], n_in: int, n_out: int, x: str, y: str) -> str:
        """y + (x A) B for x of (tokens, n_in): A (n_in, rank) and B (rank, n_out) are inputs, empty by default.

        Gemm adds y itself, which saves a node and a pass over it; a matrix of no columns gives zeros there too.
        """
        a, b = pair
        # One symbol for each pair: with a shared one onnxruntime reuses buffers across ranks that differ.
        rank = f"rank_{a.removesuffix('.lora_A.weight')}"
        self.input(a, self.dtype, [n_in, rank])
        self.input(b, self.dtype, [rank, n_out])
        self.small(a, np.zeros((n_in, 0), self.dtype))
        self.small(b, np.zeros((0, n_out), self.dtype))
        return self.node("Gemm", [self.node("Gemm", [x, a]), b, y])

    def embedding(self, matrix: Matrix, ids: str) -> str:
        """Rows of the embedding, (batch, tokens, n_embd)."""
        if matrix.held is None:
            return self.node("Gather", [self.stored(matrix.weight), ids], axis=0)
        carrier = CARRIERS[matrix.held]
        assert matrix.scales is not None
        flat = self.small("vocab_rows", np.array([matrix.n_out, -1], np.int64))
        quants = self.node("Reshape", [self.stored(matrix.weight), flat])
        rows = self.node(
            "GatherBlockQuantized",
            [quants, ids, self.stored(matrix.scales)],
            domain=MS,
            gather_axis=0,
            quantize_axis=1,
            bits=carrier.bits,
            block_size=carrier.block_values,
        )
        if matrix.offsets is None:
            return rows
        n_blocks = matrix.n_in // carrier.block_values
        blocks = self.node(
            "Reshape", [rows, self.small("emb_blocks", np.array([0, 0, n_blocks, carrier.block_values]))]
        )
        added = self.node(
            "Transpose", [self.node("Gather", [self.stored(matrix.offsets), ids], axis=1)], perm=[1, 2, 0]
        )
        added = self.node("Unsqueeze", [added, self.small("axis_last", np.array([-1], np.int64))])
        return self.node(
            "Reshape", [self.node("Add", [blocks, added]), self.small("flat", np.array([0, 0, matrix.n_in]))]
        )

    def save(self, path: Path, name: str) -> None:
        """Writes the graph; its tensors stay in the data file beside it."""
        helper = self._onnx.helper
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self.constants.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MS, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="slm-edge")
        path.write_bytes(model.SerializeToString())
