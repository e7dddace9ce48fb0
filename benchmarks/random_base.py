"""A base of the shape and with the tokenizer of another one, with random weights of a given type.

    make_base(Path("1b-q4_0.gguf"), like=Path("Llama-3.2-1B.gguf"), type=GgmlType.Q4_0)

What memory and time a model takes depends on shapes and types alone; so these can be measured where a model itself may
not be fetched. Its answers are noise.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..edge.files import atomic_file
from ..edge.ggml_type import GgmlType
from ..edge.gguf_file import GgufFile, ValueType

# Where a block's F16 scales stand; all its other bytes may have any value.
SCALES_AT: Final[dict[GgmlType, tuple[int, ...]]] = {
    GgmlType.F16: (),
    GgmlType.Q4_0: (0,),
    GgmlType.Q4_1: (0, 2),
    GgmlType.Q8_0: (0,),
    GgmlType.Q4_K: (0, 2),
    GgmlType.Q6_K: (208,),
}
SCALE: Final = 0.002
# For a source that has none; a session needs one.
TEMPLATE: Final = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
# Distinct random blocks; longer tensors repeat them.
N_BLOCKS: Final = 1 << 15


def random_blocks(type: GgmlType, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """`N_BLOCKS` blocks of finite random weights, shape (N_BLOCKS, bytes of a block)."""
    n_bytes = type.block[1]
    if type is GgmlType.F16:
        halves = (rng.standard_normal(N_BLOCKS) * 0.02).astype(np.float16)
        return halves.view(np.uint8).reshape(N_BLOCKS, n_bytes)
    blocks = rng.integers(0, 256, (N_BLOCKS, n_bytes), dtype=np.uint8)
    for at in SCALES_AT[type]:
        blocks[:, at : at + 2] = np.frombuffer(np.float16(SCALE).tobytes(), np.uint8)
    return blocks


def make_base(path: Path, *, like: Path, type: GgmlType, head: GgmlType | None = None) -> Path:
    """Writes the base.

    Args:
        like: a base whose header and norms are taken over.
        type: of all matrices.
        head: of the embedding and the head, where other.
    """
    import gguf

    source = GgufFile.open(like)
    rng = np.random.default_rng(0)
    blocks = {kind: random_blocks(kind, rng) for kind in {type, head or type}}
    with atomic_file(path) as part:
        writer = gguf.GGUFWriter(part, source.get("general.architecture"))
        for key, entry in source.metadata.items():
            if key == "general.architecture":
                continue
            kinds: list[Any] = [gguf.GGUFValueType(entry.type)]
            if entry.type is ValueType.ARRAY:
                assert entry.element_type is not None
                kinds.append(gguf.GGUFValueType(entry.element_type))
            writer.add_key_value(key, entry.value, *kinds)
        if source.get("tokenizer.chat_template") is None:
            writer.add_key_value("tokenizer.chat_template", TEMPLATE, gguf.GGUFValueType.STRING)
        for name, info in source.tensors.items():
            if len(info.shape) == 1:
                writer.add_tensor(name, source.array(name))
                continue
            kind = head if head and name in ("token_embd.weight", "output.weight") else type
            values, n_bytes = kind.block
            row_bytes = info.shape[0] // values * n_bytes
            n = info.shape[1] * row_bytes // n_bytes
            raw = np.resize(blocks[kind], (n, n_bytes)).reshape(info.shape[1], row_bytes)
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType(kind))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path
