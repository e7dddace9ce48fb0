"""Makes tiny GGUF bases and adapters with random weights, written by the `gguf` package, not by our own code.

base = tiny_base(tmp_path / "base.gguf")
math = tiny_adapter(tmp_path / "math.gguf", base, seed=7, task="math")
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from slm_edge.edge.gguf.families import FAMILIES

if TYPE_CHECKING:
    from slm_edge.edge.pack.card import TaskCard
    from slm_edge.edge.pack.pack import Pack

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALL = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (
    *("Ġ t", "h e", "Ġ a", "i n", "r e", "o n", "Ġt he", "e r", "a n", "Ġ s", "a t", "o r", "Ġ w", "e n", "i s"),
    *("Ġ o", "o u", "in g", "Ġa n", "Ġan d", "i t", "Ġ f", "e s", "Ġ is", "l l", "u s", "e r s", "t h"),
    *("a s sistant",),
)
DEFAULT: Any = object()
# Of a family that attends within windows
WINDOW_TOKENS = 40


def byte_letters() -> list[str]:
    """The printable letter of each of the 256 bytes, as in GPT-2's byte-level BPE."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]


def vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Tokens, their types and merges: specials, 256 bytes, then one token per merge that can be reached."""
    tokens = [*SPECIALS, *byte_letters()]
    merges = []
    for merge in MERGES:
        parts = merge.split(" ")
        if len(parts) == 2 and all(part in tokens for part in parts):
            merges.append(merge)
            tokens.append("".join(parts))
    return tokens, [3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS)), merges


def keys_with_marks(*marks: str) -> dict[str, tuple[Any, ...]]:
    """Keys for `tiny_base`: its own vocabulary, and these control tokens behind it where it lacks them."""
    tokens, types, _ = vocabulary()
    more = [mark for mark in marks if mark not in tokens]
    array, kind = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType
    return {
        "tokenizer.ggml.tokens": ([*tokens, *more], array, kind.STRING),
        "tokenizer.ggml.token_type": ([*types, *[3] * len(more)], array, kind.INT32),
    }


def spm_keys(space_prefix: bool = True) -> dict[str, tuple[Any, ...]]:
    """Keys of a SentencePiece vocabulary for `tiny_base`: specials, the 256 bytes, letters, and a few words."""
    kind = gguf.GGUFValueType
    specials = {"<unk>": 2, "<s>": 3, "</s>": 3, "<|im_start|>": 3, "<|im_end|>": 3, "<tool_call>": 4}
    words = ["▁", "▁h", "he", "▁he", "ll", "</", "s>", "<|", "|>", "im", "im_", *"abcdefghijklmnopqrstuvwxyz<>/|_.!"]
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    # As in real files, special tokens have the score 0, which merging prefers to all others.
    scores = [0.0] * len(specials) + [-1000.0] * 256 + [-1.0 - i for i in range(len(words))]
    return {
        "tokenizer.ggml.model": ("llama", kind.STRING),
        "tokenizer.ggml.tokens": (tokens, kind.ARRAY, kind.STRING),
        "tokenizer.ggml.token_type": ([*specials.values(), *[6] * 256, *[1] * len(words)], kind.ARRAY, kind.INT32),
        "tokenizer.ggml.scores": (scores, kind.ARRAY, kind.FLOAT32),
        "tokenizer.ggml.add_space_prefix": (space_prefix, kind.BOOL),
        "tokenizer.ggml.bos_token_id": (1, kind.UINT32),
    }


def tiny_base(
    path: Path,
    *,
    architecture: str = "llama",
    seed: int = 0,
    n_layers: int = 2,
    n_embd: int = 64,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    n_ff: int = 128,
    tied: bool = True,
    chat_template: str | None = CHATML,
    n_ctx_train_tokens: int = 2048,
    add_bos: bool = False,
    leave_out: Iterable[str] = (),
    keys: dict[str, Any] | None = None,
) -> Path:
    """Writes a random F32 base of a family that llama.cpp loads; greedy text varies with the prompt.

    Args:
        add_bos: the tokenizer asks for a BOS (`<|endoftext|>`) in front.
        leave_out: names of keys and tensors that are not written (to make faulty files).
        keys: further keys or other values, `(value, GGUFValueType)` or `(value, ARRAY, element type)` each.
    """
    rng = np.random.default_rng(seed)
    windows = FAMILIES[architecture].window_every if architecture in FAMILIES else 0
    n_layers = max(n_layers, windows)
    skip = set(leave_out)
    head = n_embd // n_heads
    tokens, types, merges = vocabulary()
    kind = gguf.GGUFValueType
    arch = architecture
    u32, f32, text, array = kind.UINT32, kind.FLOAT32, kind.STRING, kind.ARRAY
    meta: dict[str, tuple[Any, ...]] = {
        "general.type": ("model", text),
        "general.name": (f"tiny {arch}", text),
        f"{arch}.block_count": (n_layers, u32),
        f"{arch}.context_length": (n_ctx_train_tokens, u32),
        f"{arch}.embedding_length": (n_embd, u32),
        f"{arch}.feed_forward_length": (n_ff, u32),
        f"{arch}.attention.head_count": (n_heads, u32),
        f"{arch}.attention.head_count_kv": (n_kv_heads, u32),
        f"{arch}.rope.freq_base": (10000.0, f32),
        f"{arch}.attention.layer_norm_rms_epsilon": (1e-5, f32),
        "general.file_type": (0, u32),
        "general.quantization_version": (2, u32),
        "tokenizer.ggml.model": ("gpt2", text),
        "tokenizer.ggml.pre": ("qwen2" if arch.startswith("qwen") else "smollm", text),
        "tokenizer.ggml.tokens": (tokens, array, text),
        "tokenizer.ggml.token_type": (types, array, kind.INT32),
        "tokenizer.ggml.merges": (merges, array, text),
        "tokenizer.ggml.bos_token_id": (0, u32),
        "tokenizer.ggml.eos_token_id": (2, u32),
        "tokenizer.ggml.padding_token_id": (0, u32),
        "tokenizer.ggml.add_bos_token": (add_bos, kind.BOOL),
    }
    if arch == "llama":
        meta["llama.rope.dimension_count"] = (head, u32)
        meta["llama.vocab_size"] = (len(tokens), u32)
    if arch in FAMILIES:
        meta |= {f"{arch}.{key}": (0.5, f32) for key in FAMILIES[arch].scalars}
        tied = tied and not FAMILIES[arch].needs_output
    if windows:
        meta[f"{arch}.attention.sliding_window"] = (WINDOW_TOKENS, u32)
    if chat_template is not None:
        meta["tokenizer.chat_template"] = (chat_template, text)
    meta |= keys or {}
    n_vocab = len(meta["tokenizer.ggml.tokens"][0])
    if "llama.vocab_size" in meta and "llama.vocab_size" not in (keys or {}):
        meta["llama.vocab_size"] = (n_vocab, u32)

    def matrix(n_out: int, n_in: int, gain: float = 1.5) -> np.ndarray:
        return (rng.standard_normal((n_out, n_in)) * gain / np.sqrt(n_in)).astype(np.float32)

    def norm(n: int) -> np.ndarray:
        return (1 + 0.1 * rng.standard_normal(n)).astype(np.float32)

    tensors: list[tuple[str, np.ndarray]] = [("token_embd.weight", matrix(n_vocab, n_embd, gain=2.0))]
    for layer in range(n_layers):
        rows = {"attn_q": n_heads * head, "attn_k": n_kv_heads * head, "attn_v": n_kv_heads * head}
        block = [("attn_norm.weight", norm(n_embd))]
        block += [(f"{name}.weight", matrix(n, n_embd)) for name, n in rows.items()]
        if arch == "qwen2":
            block += [(f"{name}.bias", matrix(1, n, gain=3.0)[0]) for name, n in rows.items()]
        if arch == "qwen3":
            block += [("attn_q_norm.weight", norm(head)), ("attn_k_norm.weight", norm(head))]
        block += [("attn_output.weight", matrix(n_embd, n_heads * head)), ("ffn_norm.weight", norm(n_embd))]
        block += [("ffn_gate.weight", matrix(n_ff, n_embd)), ("ffn_up.weight", matrix(n_ff, n_embd))]
        block += [("ffn_down.weight", matrix(n_embd, n_ff))]
        if arch in FAMILIES and arch not in ("llama", "qwen2", "qwen3"):
            sizes = {"n_embd": n_embd, "n_q": n_heads * head, "n_k": n_kv_heads * head, "n_v": n_kv_heads * head}
            sizes |= {"n_o": n_heads * head, "n_ff": n_ff, "head": head}
            shapes = {name: [sizes[part] for part in shape] for name, shape in FAMILIES[arch].tensors()}
            block = [(name, matrix(n[1], n[0]) if len(n) == 2 else norm(n[0])) for name, n in shapes.items()]
        tensors += [(f"blk.{layer}.{name}", values) for name, values in block]
    tensors.append(("output_norm.weight", norm(n_embd)))
    if not tied:
        tensors.append(("output.weight", matrix(n_vocab, n_embd, gain=4.0)))
    return write_gguf(
        path,
        architecture if "general.architecture" not in skip else None,
        {key: value for key, value in meta.items() if key not in skip},
        [tensor for tensor in tensors if tensor[0] not in skip],
    )


def adapter_parts(
    base: Path,
    *,
    rank: int = 8,
    alpha: float = 16,
    seed: int = 1,
    targets: Sequence[str] = ALL,
    size: float = 1.0,
    task: str = "x",
    fingerprint: str | None = DEFAULT,
) -> tuple[str, dict[str, tuple[Any, ...]], list[tuple[Any, ...]]]:
    """What `tiny_adapter` writes: architecture, keys, `(name, values)` tensors; to be changed before `write_gguf`."""
    rng = np.random.default_rng(seed)
    reader = gguf.GGUFReader(base)
    arch = reader.fields["general.architecture"].contents()
    if fingerprint is DEFAULT:
        from slm_edge.edge.gguf.base import BaseInfo

        fingerprint = BaseInfo.open(base).fingerprint
    kind = gguf.GGUFValueType
    keys: dict[str, tuple[Any, ...]] = {
        "general.type": ("adapter", kind.STRING),
        "adapter.type": ("lora", kind.STRING),
        "general.name": (f"tiny {task}", kind.STRING),
        "adapter.lora.alpha": (float(alpha), kind.FLOAT32),
        "adapter.lora.task_name": (task, kind.STRING),
        "slm_edge.lora.rank": (rank, kind.UINT32),
    }
    if fingerprint is not None:
        keys["slm_edge.base.fingerprint"] = (fingerprint, kind.STRING)
    tensors: list[tuple[Any, ...]] = []
    for tensor in reader.tensors:
        # targets name the last part: "attn_q", "token_embd", "output"
        if not tensor.name.endswith(".weight") or tensor.name.split(".")[-2] not in targets:
            continue
        n_in, n_out = (int(n) for n in tensor.shape)
        down = (rng.standard_normal((rank, n_in)) / np.sqrt(n_in)).astype(np.float32)
        up = (rng.standard_normal((n_out, rank)) * size / np.sqrt(rank)).astype(np.float32)
        if tensor.name == "token_embd.weight":
            down = rng.standard_normal((n_out, rank)).astype(np.float32)
            up = (rng.standard_normal((n_in, rank)) * size * 0.1 / np.sqrt(rank)).astype(np.float32)
        tensors += [(f"{tensor.name}.lora_a", down), (f"{tensor.name}.lora_b", up)]
    return arch, keys, tensors


def tiny_adapter(
    path: Path,
    base: Path,
    *,
    rank: int = 8,
    alpha: float = 16,
    seed: int = 1,
    targets: Sequence[str] = ALL,
    size: float = 1.0,
    task: str = "x",
    fingerprint: str | None = DEFAULT,
) -> Path:
    """Writes a random F32 adapter for `base`; `size` scales its effect (1.0 changes every answer).

    Args:
        targets: last parts of tensor names, also "token_embd" and "output".
        fingerprint: the base's own by default; None leaves it out.
    """
    parts = adapter_parts(
        base, rank=rank, alpha=alpha, seed=seed, targets=targets, size=size, task=task, fingerprint=fingerprint
    )
    return write_gguf(path, *parts)


def tiny_adapters(
    base: Path, seeds: dict[str, int], card: "TaskCard | None" = None
) -> dict[str, tuple[Path, "TaskCard | None"]]:
    """Writes an adapter beside `base` for each name, made from its seed, and gives what `Session.of_files` takes."""
    return {name: (tiny_adapter(base.with_name(f"{name}.gguf"), base, seed=seed), card) for name, seed in seeds.items()}


def write_gguf(
    path: Path,
    architecture: str | None,
    keys: dict[str, tuple[Any, ...]],
    tensors: Sequence[tuple[Any, ...]],
    alignment_bytes: int | None = None,
) -> Path:
    """Writes a GGUF v3 file as told, sensible or not.

    Args:
        architecture: `general.architecture`; None writes none.
        keys: `(value, GGUFValueType)` or `(value, ARRAY, element type)` each.
        tensors: `(name, numpy array)`, or `(name, uint8 array, GGMLQuantizationType)` for raw blocks.
    """
    path = Path(path)
    writer = gguf.GGUFWriter(path, architecture or "none")
    if architecture is None:
        for part in writer.kv_data:
            part.pop("general.architecture", None)
    if alignment_bytes is not None:
        writer.add_custom_alignment(alignment_bytes)
    for key, (value, *kinds) in keys.items():
        writer.kv_data[0].pop(key, None)
        writer.add_key_value(key, value, *kinds)
    for name, values, *kind in tensors:
        writer.add_tensor(name, np.ascontiguousarray(values), raw_dtype=kind[0] if kind else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def task_pack(folder: Path, **seeds: int) -> "Pack":
    """A pack of a tiny base with an adapter for each task named, made from its seed."""
    from slm_edge.edge.pack.write import NewAdapter, build_pack

    base = tiny_base(folder / "tiny.gguf")
    new = [
        NewAdapter(task, tiny_adapter(folder / f"{task}.gguf", base, seed=seed, task=task))
        for task, seed in seeds.items()
    ]
    return build_pack(folder / "pack", base=base, adapters=new)


def tiny_pack(folder: Path) -> Path:
    """A pack of a tiny base with a long context and the adapters math (the default) and code."""
    from slm_edge.edge.pack.write import NewAdapter, build_pack

    base = tiny_base(folder / "base.gguf", n_ctx_train_tokens=32768)
    adapters = [
        NewAdapter(name, tiny_adapter(folder / f"{name}.gguf", base, seed=seed))
        for seed, name in enumerate(("math", "code"), 1)
    ]
    build_pack(folder / "pack", base=base, adapters=adapters, default_adapter="math")
    return folder / "pack"
