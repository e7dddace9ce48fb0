"""A base of the shape and with the tokenizer of another one, with random weights of a given type.

    make_base(Path("1b-q4_0.gguf"), like=Path("Llama-3.2-1B.gguf"), type=GgmlType.Q4_0)
    make_shape(Path("3b-q4_k_m.gguf"), find_shape("llama-3.2-3b"), "q4_k_m")      # of a published configuration
    python -m slm_edge.benchmarks.made.random_base llama-3.2-1b q4_0 --vocabulary ggml-vocab-llama-bpe.gguf -o 1b.gguf

What memory and time a model takes depends on shapes and types alone; so these can be measured where a model itself may
not be fetched. Its answers are noise.
"""

from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt

from ...devices.catalogue.quant_mix import LABELS
from ...devices.catalogue.shapes import ModelShape, find_shape
from ...devices.catalogue.table_view import table_of
from ...edge.errors import InputError
from ...edge.files.atomic import atomic_file, check_new
from ...edge.gguf.file import GgufFile
from ...edge.gguf.types import GgmlType
from .gguf_out import copy_keys, finish

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
# Llama 3's, but for the date and the system text that it always writes.
LLAMA3_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# The one word that the benchmarks ask with, a token of its own.
MERGES: Final = ("Ġ h", "Ġh e", "Ġhe l", "Ġhel l", "Ġhell o")
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
        copy_keys(writer, source)
        if source.get("tokenizer.chat_template") is None:
            writer.add_key_value("tokenizer.chat_template", TEMPLATE, gguf.GGUFValueType.STRING)
        for name, info in source.tensors.items():
            if len(info.shape) == 1:
                writer.add_tensor(name, source.array(name))
                continue
            kind = head if head and name in ("token_embd.weight", "output.weight") else type
            _add_matrix(writer, name, info.shape, kind, blocks[kind])
        finish(writer)
    return path


def make_shape(path: Path, shape: ModelShape, label: str, vocabulary: Path | None = None) -> Path:
    """Writes a Llama of a published shape, quantised to a label of `devices.quant_mix.LABELS`.

    Args:
        vocabulary: a GGUF whose tokenizer is taken over, for texts whose lengths should be real; without it one is made
            up, as large as the published one with as many merges.

    Raises:
        InputError: the vocabulary is not of the shape's size.
    """
    import gguf

    table = table_of(shape, label)
    rng = np.random.default_rng(0)
    blocks = {info.type: random_blocks(info.type, rng) for info in table.tensors.values() if len(info.shape) == 2}
    with atomic_file(path) as part:
        writer = gguf.GGUFWriter(part, "llama")
        writer.add_context_length(shape.n_ctx_train_tokens)
        writer.add_embedding_length(shape.n_embd)
        writer.add_feed_forward_length(shape.n_ff)
        writer.add_block_count(shape.n_layers)
        writer.add_head_count(shape.n_heads)
        writer.add_head_count_kv(shape.n_kv_heads)
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
        writer.add_rope_dimension_count(shape.head_dim)
        writer.add_layer_norm_rms_eps(1e-5)
        if vocabulary is None:
            sizes = (table.metadata[f"tokenizer.ggml.{key}"].n_values for key in ("tokens", "merges"))
            _add_vocabulary(writer, *sizes)
            writer.add_chat_template(TEMPLATE)
        else:
            _copy_vocabulary(writer, GgufFile.open(vocabulary), shape.n_vocab)
        for name, info in table.tensors.items():
            if len(info.shape) == 1:
                writer.add_tensor(name, np.ones(info.shape, np.float32))
            else:
                _add_matrix(writer, name, info.shape, info.type, blocks[info.type])
        finish(writer)
    return path


def _add_vocabulary(writer: Any, n_tokens: int, n_merges: int) -> None:
    """Byte tokens, the word that is asked with, and made-up words."""
    import gguf

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    words = [*letters, *(merge.replace(" ", "") for merge in MERGES), "<|end|>"]
    n_known = len(words)
    words += [f"Ġword{i:x}" for i in range(n_tokens - n_known)]
    made = words[n_known:]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(words)
    normal, control = int(gguf.TokenType.NORMAL), int(gguf.TokenType.CONTROL)
    writer.add_token_types([control if word == "<|end|>" else normal for word in words])
    writer.add_token_merges([*MERGES, *(f"{made[i % len(made)]} {i:x}" for i in range(n_merges - len(MERGES)))])
    writer.add_bos_token_id(n_known - 1)
    writer.add_eos_token_id(n_known - 1)


def _copy_vocabulary(writer: Any, source: GgufFile, n_vocab: int) -> None:
    """The tokenizer of another file; its template, else Llama 3's where the words are Llama 3's."""
    words = source.get("tokenizer.ggml.tokens", ())
    if len(words) != n_vocab:
        raise InputError(f"has {len(words)} tokens, the shape {n_vocab}", where=source.path)
    copy_keys(writer, source, only="tokenizer.")
    if source.get("tokenizer.chat_template") is None:
        writer.add_chat_template(LLAMA3_TEMPLATE if "<|eot_id|>" in words else TEMPLATE)


def _add_matrix(writer: Any, name: str, dims: tuple[int, ...], kind: GgmlType, blocks: npt.NDArray[np.uint8]) -> None:
    import gguf

    values, n_bytes = kind.block
    row_bytes = dims[0] // values * n_bytes
    n = dims[1] * row_bytes // n_bytes
    raw = np.resize(blocks, (n, n_bytes)).reshape(dims[1], row_bytes)
    writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType(kind))


@click.command()
@click.argument("shape")
@click.argument("label", type=click.Choice(sorted(LABELS)))
@click.option(
    "--vocabulary", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="GGUF with the tokenizer."
)
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def main(shape: str, label: str, vocabulary: Path | None, output: Path, force: bool) -> None:
    """Write random weights in the SHAPE of a published model (as llama-3.2-1b), quantised to LABEL (as q4_0)."""
    check_new(output, force)
    make_shape(output, find_shape(shape), label, vocabulary)
    click.echo(f"{output}: {output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
