"""Answers under different adapters in one batch: whether it earns a place.

    python -m slm_edge.benchmarks.mixed_batch base.gguf --adapters 2 --adapters 4 --tokens 32

llama.cpp's adapters belong to a context, so a batch has one set of them. Its one architecture that chooses an adapter
for each token is `graniteswitch` (src/models/granite-switch.cpp): every adapter lies in the base's file, stacked, and a
control token at a sequence's beginning chooses. A plain Llama base without scaled positions and a tied head can be
written as one. Here that is done with random adapters of rank 16 on all linear layers, and these take turns:

    one after the other   one context, one sequence at a time, its adapter set before it
    mixed                 the graniteswitch file, all sequences in one batch
    same adapter          all sequences in one batch under one adapter: the most that a batch could bring

Each decodes so many tokens in as many sequences as there are adapters, greedily and without an end, and before that
computes a prompt for each. The mixed batch must choose the tokens that one after the other chooses, but for near ties.
Prints one JSON document.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from ..edge.adapter import MATRICES
from ..edge.base_info import BaseInfo
from ..edge.engine import Adapter, Context, Model
from ..edge.errors import UnsupportedError
from ..edge.files import atomic_file
from ..edge.gguf_file import GgufFile
from .gguf_out import copy_keys, finish
from .random_adapter import write_random_adapter
from .stats import spread

ARCHITECTURE: Final = "graniteswitch"
RANK: Final = 16
QKV: Final = ("attn_q", "attn_k", "attn_v")
PROMPT: Final = (
    "The light house keeper looked out over the sea, as every evening, and wrote down what the day had brought."
)


def write_switch(
    base: BaseInfo, adapters: Sequence[Path], control_ids: Sequence[int], first_id: int, out: Path
) -> None:
    """Writes base and adapters as one graniteswitch file.

    Args:
        control_ids: a token for each adapter that no text has; it stands in place of `first_id` at the beginning.

    Raises:
        UnsupportedError: the base is none that the architecture can compute.
    """
    import gguf

    file = base.file
    if base.architecture != "llama" or "rope_freqs.weight" in file.tensors:
        raise UnsupportedError("only a Llama base with plain positions can be written like this", where=file.path)
    stacks = [GgufFile.open(path) for path in adapters]
    with atomic_file(out) as part:
        writer = gguf.GGUFWriter(part, ARCHITECTURE)
        copy_keys(writer, file, lambda key: key.replace("llama.", f"{ARCHITECTURE}.", 1))
        writer.add_float32(f"{ARCHITECTURE}.logit_scale", 1.0)
        writer.add_uint32(f"{ARCHITECTURE}.adapters.count", len(adapters))
        writer.add_uint32(f"{ARCHITECTURE}.adapters.lora_rank", RANK)
        for name, ids in (("activate", control_ids), ("substitute", [first_id] * len(adapters))):
            value_type, element_type = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32
            writer.add_key_value(f"{ARCHITECTURE}.adapters.token_ids_{name}", list(ids), value_type, element_type)
        for name, info in file.tensors.items():
            block, _, matrix = name.removesuffix(".weight").rpartition(".")
            if matrix in MATRICES:
                # Slot 0 is the base: nothing added.
                for suffix in ("lora_a", "lora_b"):
                    own = [stack.array(f"{name}.{suffix}") for stack in stacks]
                    stacked = np.stack([np.zeros_like(own[0]), *own]).astype(np.float16)
                    writer.add_tensor(f"{block}.{matrix}.{suffix}", stacked)
            if matrix == QKV[0]:
                parts = [f"{block}.{one}.weight" for one in QKV]
                if len({file.tensors[one].type for one in parts}) != 1:
                    raise UnsupportedError("q, k and v have different types", where=file.path)
                rows = [_rows(file, one) for one in parts]
                kind = gguf.GGMLQuantizationType(info.type)
                writer.add_tensor(f"{block}.attn_qkv.weight", np.concatenate(rows), raw_dtype=kind)
            elif len(info.shape) == 1:
                writer.add_tensor(name, file.array(name))
            elif matrix not in QKV:
                writer.add_tensor(name, _rows(file, name), raw_dtype=gguf.GGMLQuantizationType(info.type))
        finish(writer)


def _rows(file: GgufFile, name: str) -> Any:
    """A matrix's bytes by row: rows are whole blocks, so they can be put one under the other."""
    return file.raw(name).reshape(file.tensors[name].shape[1], -1)


def decode_batch(context: Context, prompts: Sequence[Sequence[int]], n_tokens: int) -> tuple[float, float, list[Any]]:
    """Seconds of the prompts and of the tokens, and the tokens of each sequence."""
    n = len(prompts)
    context.clear()
    began_s = time.perf_counter()
    ids: list[Any] = []
    for sequence, prompt in enumerate(prompts):
        context.decode(prompt, 0, sequence=sequence)
        ids.append([int(context.logits_view().argmax())])
    prompted_s = time.perf_counter()
    for step in range(n_tokens - 1):
        context.decode_step([one[-1] for one in ids], [len(prompt) + step for prompt in prompts], list(range(n)))
        for sequence in range(n):
            ids[sequence].append(int(context.logits_view(sequence).argmax()))
    return prompted_s - began_s, time.perf_counter() - prompted_s, ids


def one_after_the_other(
    context: Context, prompt: Sequence[int], adapters: Sequence[Adapter], n_tokens: int
) -> tuple[float, float, list[Any]]:
    """The same, each sequence under its adapter when the one before is done."""
    prompt_s = decode_s = 0.0
    ids: list[Any] = []
    for adapter in adapters:
        began_s = time.perf_counter()
        context.set_adapters([(adapter, 1.0)])
        prompt_s += time.perf_counter() - began_s
        one = decode_batch(context, [prompt], n_tokens)
        prompt_s, decode_s, ids = prompt_s + one[0], decode_s + one[1], ids + one[2]
    return prompt_s, decode_s, ids


def measure(base: Path, n: int, n_tokens: int, runs: int, threads: int | None) -> dict[str, Any]:
    """Ratios of the three ways with `n` adapters."""
    info = BaseInfo.open(base)
    with tempfile.TemporaryDirectory(prefix="slm-edge-") as temporary:
        files = [Path(temporary) / f"{i}.gguf" for i in range(n)]
        for seed, file in enumerate(files):
            write_random_adapter(info, file, rank=RANK, seed=seed, size=1.0)
        with Model.load(base) as model:
            prompt = model.vocab.encode(PROMPT)
            # Tokens that a text never has, from the end of the vocabulary, where the rarest are.
            control_ids = [model.vocab.n_tokens - 1 - i for i in range(n)]
            switch = Path(temporary) / "switch.gguf"
            write_switch(info, files, control_ids, prompt[0], switch)
            adapters = [model.load_adapter(file) for file in files]
            with Model.load(switch) as mixed_model:
                size: dict[str, Any] = {"n_ctx_tokens": 256, "n_batch_tokens": 128, "threads": threads}
                many = size | {"n_ctx_tokens": 256 * n, "n_seq_max": n}
                with (
                    Context(model, **size) as single,
                    Context(model, **many) as same,
                    Context(mixed_model, **many) as mixed,
                ):
                    same.set_adapters([(adapters[0], 1.0)])
                    prompts = [[control, *prompt[1:]] for control in control_ids]
                    rows = []
                    for _ in range(runs + 1):
                        a = one_after_the_other(single, prompt, adapters, n_tokens)
                        b = decode_batch(mixed, prompts, n_tokens)
                        c = decode_batch(same, [prompt] * n, n_tokens)
                        rows.append((a, b, c))
    # The first turn warms up.
    rows = rows[1:]
    alone, together = np.array([a[2] for a, _, _ in rows]), np.array([b[2] for _, b, _ in rows])
    return {
        "n_adapters": n,
        "n_prompt_tokens": len(prompt),
        "n_tokens": n_tokens,
        "one_after_the_other_tokens_per_s": spread([n * (n_tokens - 1) / a[1] for a, _, _ in rows]),
        "mixed_decode_times_as_fast": spread([a[1] / b[1] for a, b, _ in rows]),
        "same_adapter_decode_times_as_fast": spread([a[1] / c[1] for a, _, c in rows]),
        "mixed_prompt_times_as_fast": spread([a[0] / b[0] for a, b, _ in rows]),
        "same_adapter_prompt_times_as_fast": spread([a[0] / c[0] for a, _, c in rows]),
        "mixed_all_times_as_fast": spread([(a[0] + a[1]) / (b[0] + b[1]) for a, b, _ in rows]),
        "adapters_tell_apart": len({tuple(ids) for ids in rows[0][0][2]}),
        "equal_tokens": round(float((alone == together).mean()), 4),
    }


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--adapters", "counts", multiple=True, type=click.IntRange(2, 16), default=(2, 4), show_default=True)
@click.option("--tokens", default=32, show_default=True)
@click.option("--runs", default=5, show_default=True)
@click.option("--threads", type=int)
def main(base: Path, counts: tuple[int, ...], tokens: int, runs: int, threads: int | None) -> None:
    """Measure mixed-adapter batches."""
    results = []
    for n in counts:
        results.append(measure(base, n, tokens, runs, threads))
        click.echo(json.dumps(results[-1]), err=True)
    click.echo(json.dumps({"base": base.name, "rank": RANK, "runs": runs, "results": results}, indent=2))


if __name__ == "__main__":
    main()
