"""Time and peak memory of exporting a base at real size: a random BF16 checkpoint with a given config.json.

    python -m slm_edge.benchmarks.proofs.export_base config.json tokenizer.json --type q8_0 --type q4_k_m

The checkpoint is made once in the work folder (2.5 GB for a 1B) and used again. Prints one JSON document.
"""

import json
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

SHARD_BYTES = 1 << 30
BLOCK_VALUES = 1 << 22


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama-family checkpoint, numpy shapes."""
    width, ff = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or width // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (width,),
            f"{at}.self_attn.q_proj.weight": (q, width),
            f"{at}.self_attn.k_proj.weight": (kv, width),
            f"{at}.self_attn.v_proj.weight": (kv, width),
            f"{at}.self_attn.o_proj.weight": (width, q),
            f"{at}.post_attention_layernorm.weight": (width,),
            f"{at}.mlp.gate_proj.weight": (ff, width),
            f"{at}.mlp.up_proj.weight": (ff, width),
            f"{at}.mlp.down_proj.weight": (width, ff),
        }
    shapes["model.norm.weight"] = (width,)
    return shapes


def make_checkpoint(folder: Path, config_file: Path, tokenizer_file: Path) -> None:
    """Writes random BF16 weights (normal, 0.02) as safetensors shards with an index."""
    config = json.loads(config_file.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(tokenizer_file, folder / "tokenizer.json")
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in _shapes(config).items():
        size = 2 * int(np.prod(shape))
        if filled and filled + size > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    random = np.random.default_rng(0)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        path = folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, at = {}, 0
        for name, shape in shard.items():
            size = 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            weight_map[name] = path.name
            at += size
        head = json.dumps(header).encode()
        with path.open("wb") as stream:
            stream.write(len(head).to_bytes(8, "little") + head)
            for shape in shard.values():
                left = int(np.prod(shape))
                while left:
                    values = random.standard_normal(min(left, BLOCK_VALUES), np.float32) * np.float32(0.02)
                    stream.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
                    left -= len(values)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))


@click.command()
@click.argument("config", type=click.Path(exists=True, path_type=Path))
@click.argument("tokenizer", type=click.Path(exists=True, path_type=Path))
@click.option("--work", default="export-base-work", type=click.Path(path_type=Path), show_default=True)
@click.option("--type", "types", multiple=True, default=("q8_0",), show_default=True)
@click.option("--repeat", default=1, show_default=True)
def main(config: Path, tokenizer: Path, work: Path, types: tuple[str, ...], repeat: int) -> None:
    """Measure `slm-edge export base` on a random checkpoint of CONFIG's shape with TOKENIZER."""
    checkpoint = work / "checkpoint"
    if not (checkpoint / "config.json").exists():
        make_checkpoint(checkpoint, config, tokenizer)
    source_bytes = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    runs = []
    # Peak memory only rises over the children of one process: the leanest types go first.
    for type_name in types:
        for _ in range(repeat):
            dest = work / f"{type_name}.gguf"
            command = [sys.executable, "-m", "slm_edge.edge", "export", "base", str(checkpoint), "-o", str(dest)]
            began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(
                [*command, "--type", type_name, "--force", "--json"], capture_output=True, text=True, check=True
            )
            now = resource.getrusage(resource.RUSAGE_CHILDREN)
            runs.append(
                {
                    "type": type_name,
                    "wall_s": round(time.monotonic() - began, 2),
                    "cpu_s": round(now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime, 2),
                    "peak_rss_bytes_so_far": now.ru_maxrss * 1024,
                    "size_bytes": dest.stat().st_size,
                    "result": json.loads(done.stdout),
                }
            )
            dest.unlink()
    click.echo(
        json.dumps({"machine": platform.processor() or platform.machine(), "source_bytes": source_bytes, "runs": runs})
    )


if __name__ == "__main__":
    main()
