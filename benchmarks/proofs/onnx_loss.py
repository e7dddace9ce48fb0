"""What the ONNX form of a base loses: its perplexity on a text, and its KL divergence from llama.cpp on the same GGUF.

    python -m slm_edge.benchmarks.proofs.onnx_loss wiki.test.raw --gguf base.gguf --onnx onnx-int8 --onnx onnx-int4

Chunks are cut and scored as in `bench perplexity`: the second half of each, computed by itself. llama.cpp rounds what
quantised matrices multiply to int8 blocks and keeps K and V in F16, so even the same numbers leave a small KL.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from ...edge.console import emit, json_option, progress
from ...edge.llama.model import Model
from ...edge.onnx.engine import OnnxEngine
from ...edge.onnx.folder import OnnxBase
from ..likelihood.log_probs import log_probs_after, onnx_log_probs_after, scoring_context
from ..likelihood.perplexity import ChunkScore, chunks_of, compared, wants_bos
from ..stats import mean


def measure(
    gguf: Path, folders: Sequence[Path], text: str, *, n_ctx_tokens: int, limit: int | None, threads: int
) -> list[dict[str, Any]]:
    """One row for llama.cpp and one for each folder: perplexity, and KL and agreement with llama.cpp.

    Raises:
        InputError: the text is shorter than a chunk.
        SlmEdgeError: as the engines do.
    """
    found: dict[str, list[ChunkScore]] = {name: [] for name in ("llama.cpp", *map(str, folders))}
    with (
        Model.load(gguf) as model,
        scoring_context(model, n_ctx_tokens, threads) as context,
    ):
        bases = [OnnxBase.open(folder) for folder in folders]
        engines = [OnnxEngine(base, n_ctx_tokens=n_ctx_tokens, threads=threads) for base in bases]
        chunks = chunks_of(model.vocab, text, n_ctx_tokens)[:limit]
        bos = model.vocab.bos_id if wants_bos(model.vocab) else None
        with progress("scoring", len(chunks) * len(found), "chunks") as advance:
            for chunk in chunks:
                ids = chunk if bos is None else [bos, *chunk[1:]]
                first = len(ids) // 2
                targets = ids[first + 1 :]
                theirs = log_probs_after(context, ids, first)
                found["llama.cpp"].append(compared(theirs, targets, theirs))
                advance(1)
                for folder, engine in zip(folders, engines, strict=True):
                    found[str(folder)].append(compared(onnx_log_probs_after(engine, ids, first), targets, theirs))
                    advance(1)
    return [_row(Path(name).name, scores) for name, scores in found.items()]


def _row(name: str, chunks: Sequence[ChunkScore]) -> dict[str, Any]:
    """Means over the chunks, with intervals from resampled chunks."""
    nll, kl, same = (mean([chunk.scores()[key] for chunk in chunks]) for key in ("nll", "kl", "same_top"))
    low, value, high = (float(np.exp(bound)) for bound in (nll.low, nll.value, nll.high))
    return {
        "name": name,
        "n_chunks": len(chunks),
        "n_tokens": sum(chunk.n_scored for chunk in chunks),
        "perplexity": {"value": value, "low": low, "high": high, "method": nll.method},
        "kl_nats": kl.as_dict(),
        "same_top": same.as_dict(),
    }


@click.command()
@click.argument("text_file", metavar="TEXT", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--gguf", required=True, type=click.Path(path_type=Path), help="The base, for llama.cpp.")
@click.option(
    "--onnx", multiple=True, required=True, type=click.Path(path_type=Path), help="ONNX form; may be repeated."
)
@click.option("--ctx", "n_ctx", type=click.IntRange(8), default=256, show_default=True, help="Tokens of a chunk.")
@click.option("--limit", type=click.IntRange(1), help="Chunks, from the beginning.  [default: all]")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@json_option
def main(
    text_file: Path, gguf: Path, onnx: tuple[Path, ...], n_ctx: int, limit: int | None, threads: int, as_json: bool
) -> None:
    """Perplexity of TEXT on onnxruntime, and KL from llama.cpp on the same GGUF."""
    text = text_file.read_text(encoding="utf-8")
    rows = measure(gguf, onnx, text, n_ctx_tokens=n_ctx, limit=limit, threads=threads)
    lines = [f"{'':<28} {'perplexity':>10} {'95 %':>17} {'KL':>9} {'same top':>8}"]
    for row in rows:
        found = row["perplexity"]
        lines.append(
            f"{row['name']:<28} {found['value']:>10.3f} {found['low']:>8.2f} - {found['high']:<6.2f} "
            f"{row['kl_nats']['value']:>9.5f} {row['same_top']['value']:>8.1%}"
        )
    lines.append(f"{rows[0]['n_chunks']} chunks of {n_ctx} tokens, {rows[0]['n_tokens']} tokens scored")
    emit({"text": text_file.name, "n_ctx_tokens": n_ctx, "rows": rows}, as_json, "\n".join(lines))


if __name__ == "__main__":
    main()
