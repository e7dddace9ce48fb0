"""`slm-edge export`: the group, as a table; each command's module is imported when it is used."""

import click

from ...edge.cli.lazy import Entry, LazyGroup

COMMANDS: dict[str, Entry] = {
    "base": Entry("export.cli.base:base", "A checkpoint (or a GGUF) to a quantised GGUF base.", "export"),
    "lora": Entry("export.cli.lora:lora", "A PEFT adapter to a GGUF adapter for one base.", "export"),
    "merge": Entry("export.cli.merge:merge", "An adapter merged into its base, as one GGUF.", "export"),
    "onnx": Entry("export.cli.onnx:onnx", "A checkpoint or GGUF base to ONNX graphs.", "export,onnx"),
    "onnx-adapter": Entry("export.cli.onnx:onnx_adapter", "An adapter for a base's ONNX form.", "export,onnx"),
    "verify": Entry("export.cli.verify:verify", "Prove that exported files compute what PEFT computes.", "export"),
}


@click.group(cls=LazyGroup, entries=COMMANDS)
def export() -> None:
    """Turn checkpoints and PEFT adapters into GGUF files and ONNX graphs.

    \b
    Example:
      slm-edge export base ./Llama-3.2-1B-Instruct -o base.gguf --type q4_k_m
      slm-edge export lora ./my-adapter --base base.gguf -o math.gguf
      slm-edge export onnx base.gguf -o onnx-base
      slm-edge export onnx-adapter math.gguf --base onnx-base -o math.onnx_adapter
    """
