"""Time and peak memory of exporting a large adapter: rank 128 on all seven linear layers of a 1B base.

    python -m slm_edge.benchmarks.proofs.export_lora --runs 3

The base is the header of a Llama-3.2-1B-shaped GGUF over a sparse file (its weights are not read), the adapter is
random BF16. Each run is a process of its own, `slm-edge export lora`; memory is its peak resident size, the Python
interpreter included. The bound is twice the size of the PEFT adapter. Prints a line per run, then one JSON document.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

WIDTH, N_FF, N_LAYERS, N_HEADS, N_KV_HEADS, N_VOCAB = 2048, 8192, 16, 32, 8, 128_256
N_KV = WIDTH // N_HEADS * N_KV_HEADS
# module in PEFT's file -> (tensor in the base, n_in, n_out)
LINEAR = {
    "self_attn.q_proj": ("attn_q", WIDTH, WIDTH),
    "self_attn.k_proj": ("attn_k", WIDTH, N_KV),
    "self_attn.v_proj": ("attn_v", WIDTH, N_KV),
    "self_attn.o_proj": ("attn_output", WIDTH, WIDTH),
    "mlp.gate_proj": ("ffn_gate", WIDTH, N_FF),
    "mlp.up_proj": ("ffn_up", WIDTH, N_FF),
    "mlp.down_proj": ("ffn_down", N_FF, WIDTH),
}
BOUND = 2.0


def write_base(path: Path) -> None:
    """Writes a base whose matrices are a hole in the file: keys, tokenizer and tensor table are whole."""
    import gguf

    kind = gguf.GGUFValueType
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("model")
    writer.add_name("Llama 3.2 1B (random)")
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(131072)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([f"t{i}" for i in range(N_VOCAB)])
    writer.add_key_value("tokenizer.ggml.token_type", [1] * N_VOCAB, kind.ARRAY, kind.INT32)
    writer.add_token_merges([f"t{i} t{i + 1}" for i in range(N_VOCAB)])
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (N_VOCAB, WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(N_LAYERS):
        tensors |= {f"blk.{layer}.{name}.weight": (n_out, n_in) for name, n_in, n_out in LINEAR.values()}
        tensors |= {f"blk.{layer}.{name}.weight": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
    size = 0
    for name, shape in tensors.items():
        dtype: Any = np.float32 if len(shape) == 1 else np.float16
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        writer.add_tensor_info(name, shape, np.dtype(dtype), n_bytes)
        size += -(-n_bytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-path.stat().st_size // 32) * 32 + size)


def write_adapter(folder: Path, rank: int) -> int:
    """Writes a random BF16 adapter as PEFT lays it out; returns the size of its weights in bytes."""
    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(N_LAYERS):
        for module, (_, n_in, n_out) in LINEAR.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            shapes |= {f"{name}.lora_A.weight": (rank, n_in), f"{name}.lora_B.weight": (n_out, rank)}
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    random = np.random.default_rng(0)
    with (folder / "adapter_model.safetensors").open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for shape in shapes.values():
            values = random.standard_normal(shape, np.float32) * np.float32(0.02)
            stream.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    return (folder / "adapter_model.safetensors").stat().st_size


def measure(command: list[str]) -> tuple[float, float, int]:
    """Runs a command; its wall and its CPU time in seconds and its peak resident size in bytes.

    Raises:
        click.ClickException: it fails.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(command, stdout=out, stderr=out)
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.monotonic() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            out.seek(0)
            raise click.ClickException(out.read().decode(errors="replace"))
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit_bytes


@click.command()
@click.option("--rank", default=128, show_default=True)
@click.option("--runs", default=3, show_default=True)
@click.option("--type", "types", multiple=True, default=("auto", "f16", "f32"), show_default=True)
def main(rank: int, runs: int, types: tuple[str, ...]) -> None:
    """Measure `slm-edge export lora` on an adapter of a 1B."""
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_base(work / "base.gguf")
        adapter_bytes = write_adapter(work / "peft", rank)
        for kind in types:
            for _ in range(runs):
                output = work / "adapter.gguf"
                command = [sys.executable, "-m", "slm_edge.edge", "export", "lora", str(work / "peft")]
                command += ["--base", str(work / "base.gguf"), "-o", str(output), "--type", kind]
                wall_s, cpu_s, peak_bytes = measure(command)
                result = {
                    "type": kind,
                    "wall_s": round(wall_s, 2),
                    "cpu_s": round(cpu_s, 2),
                    "peak_bytes": peak_bytes,
                    "peak_of_adapter": round(peak_bytes / adapter_bytes, 3),
                    "output_bytes": output.stat().st_size,
                }
                output.unlink()
                results.append(result)
                click.echo(f"{kind}: {wall_s:.1f} s, peak {peak_bytes / adapter_bytes:.2f} of the adapter", err=True)
    within = all(result["peak_of_adapter"] <= BOUND for result in results)
    click.echo(
        json.dumps(
            {"adapter_bytes": adapter_bytes, "rank": rank, "runs": results, "bound": BOUND, "within_bound": within},
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
