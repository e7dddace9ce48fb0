"""`slm-edge export verify`."""

from pathlib import Path

import click

from ...edge.console import emit, json_option

A_FILE = click.Path(dir_okay=False, path_type=Path)
A_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("peft_dir", type=A_PATH)
@click.option("--hf", type=A_PATH, help="Hugging Face folder of the base, for the reference.")
@click.option("--base-gguf", type=A_FILE, help="Or a GGUF: its dequantised weights are the reference's base.")
@click.option("--gguf", "base", required=True, type=A_FILE, help="The base that was exported.")
@click.option("--lora", required=True, type=A_FILE, help="The adapter that was exported.")
@click.option("--onnx", "onnx_folder", type=A_PATH, help="The base's ONNX form, to be proved too.")
@click.option("--onnx-adapter", type=A_FILE, help="The ONNX adapter to be proved.")
@click.option("--pack", type=A_PATH, help="Write the report into this pack, as parity/NAME.json.")
@click.option("--name", help="The pack's adapter that the report is about.")
@click.option("--prompts", type=A_FILE, help="One prompt a line, or .jsonl.  [default: eight built-in ones]")
@click.option("--max-tokens", type=click.IntRange(1), default=24, show_default=True, help="Length of each answer.")
@click.option(
    "--threads", type=click.IntRange(1), help="Threads for llama.cpp and torch.  [default: the physical cores]"
)
@click.option("--max-logit-error", type=float, help="Bound on the largest difference of a logit.")
@click.option("--max-kl", type=float, help="Bound on the mean KL(PEFT || llama.cpp), in nats.")
@click.option("--min-top1", type=float, help="Bound on the share of positions where both rank the same token first.")
@json_option
def verify(
    peft_dir: Path,
    hf: Path | None,
    base_gguf: Path | None,
    base: Path,
    lora: Path,
    onnx_folder: Path | None,
    onnx_adapter: Path | None,
    pack: Path | None,
    name: str | None,
    prompts: Path | None,
    max_tokens: int,
    threads: int | None,
    max_logit_error: float | None,
    max_kl: float | None,
    min_top1: float | None,
    as_json: bool,
) -> None:
    """Prove that exported files compute what PEFT computes, or exit with 1.

    The same prompts go through PEFT in torch (F32) and through llama.cpp (F32 KV cache): token ids of the rendered
    prompt, every logit of prompt and answer, and the greedy text are compared.

    \b
    Bounds, unless given:
      base and adapter F32        largest logit error <= 0.002
      else, with --base-gguf      mean KL <= 0.02 and top-1 agreement >= 0.9
      else, with --hf             the same, or twice what quantising the base costs by itself
      the ONNX column, all F32    largest logit error <= 0.001; else the bounds above
    Different token ids, or an adapter that moves no logit, never pass.

    \b
    Example:
      slm-edge export verify ./my-adapter --hf ./Llama-3.2-1B --gguf base.gguf --lora math.gguf
      slm-edge export verify ./my-adapter --base-gguf base.gguf --gguf base.gguf --lora math.gguf \\
        --onnx onnx-base --onnx-adapter math.onnx_adapter --pack my-pack --name math
    """
    if (onnx_folder is None) != (onnx_adapter is None):
        raise click.UsageError("--onnx DIR and --onnx-adapter FILE are given together.")
    if (pack is None) != (name is None):
        raise click.UsageError("--pack PACK and --name NAME are given together.")
    import torch

    from ...edge.console import progress
    from ..files.tensor_names import plainly_named
    from ..proof.prompts import BUILT_IN, read_prompts
    from ..proof.report import as_data, as_text, keep_report
    from ..proof.verify import verify as prove

    asked = read_prompts(prompts) if prompts is not None else BUILT_IN
    if threads is not None:
        torch.set_num_threads(threads)
    onnx = (onnx_folder, onnx_adapter) if onnx_folder is not None and onnx_adapter is not None else None
    with plainly_named(peft_dir) as folder, progress("proving", len(asked), "prompts") as advance:
        report = prove(
            folder,
            base=base,
            lora=lora,
            prompts=asked,
            hf=hf,
            base_gguf=base_gguf,
            max_tokens=max_tokens,
            threads=threads,
            max_logit_error=max_logit_error,
            max_kl=max_kl,
            min_top1=min_top1,
            onnx=onnx,
            on_prompt=lambda: advance(1),
        )
    if pack is not None and name is not None:
        keep_report(pack, name, base, lora, onnx, as_data(report))
    emit(as_data(report), as_json, as_text(report))
    if not report.passed:
        raise click.exceptions.Exit(1)
