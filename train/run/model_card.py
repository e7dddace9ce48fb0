"""The model card of a trained adapter: README.md of the PEFT folder, made from its record alone."""

from collections.abc import Mapping
from typing import Any

CURVE = "loss.svg"


def model_card(record: Mapping[str, Any]) -> str:
    """What the adapter is, what it was trained on and how, what was measured, and how it is used."""
    recipe, base, counts = record["recipe"], record["base"], record["counts"]
    losses = record["held_out_loss"]
    head = ["---", "library_name: peft", "pipeline_tag: text-generation", "tags:", "- lora", "- slm-edge"]
    if base.get("hub"):
        head.append(f"base_model: {base['hub']}")
    lines = [
        *head,
        "---",
        "",
        f"# {recipe['task']}: a LoRA adapter for {base['name']}",
        "",
        f"Trained by slm-edge on the base {_base(base)}, its frozen weights kept as {recipe['weights']}.",
        f"It answers prompts of the task `{recipe['task']}`; other prompts are outside of what it was trained for.",
        "",
        "## Measured",
        "",
        *_measured(record, losses),
        "",
        "No task score is measured while training: run `slm-edge bench` on the exported adapter.",
        "",
        "## Trained on",
        "",
        "| data | rows or bytes | sha256 |",
        "|---|---|---|",
        *(f"| {file['name']} | {file['size_bytes']} bytes | `{file['sha256'][:16]}…` |" for file in record["data"]),
        "",
        f"{counts['rows']} rows read, {counts['kept']} kept ({counts['train']} to train on, {counts['held_out']} held "
        f"out). Left out: {_dropped(counts['dropped'])}.",
        *_contamination(record.get("contamination")),
        "",
        "## How",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {key} | {_value(value)} |" for key, value in recipe.items() if value not in ("", None)),
        "",
        f"{record['steps']} optimiser steps, {record['tokens']} tokens through the model, "
        f"{record['trained_parameters']} trained parameters.",
        "",
        "## Use",
        "",
        "```",
        "slm-edge export lora THIS_FOLDER --base BASE.gguf -o adapter.gguf",
        "```",
        "",
        "Or `PeftModel.from_pretrained(base, THIS_FOLDER)` with PEFT. The whole record is in `train.json`.",
    ]
    return "\n".join(lines) + "\n"


def _base(base: Mapping[str, Any]) -> str:
    sha256 = base["sha256"]
    return f"`{base['name']}`" + (f" (sha256 `{sha256}`)" if isinstance(sha256, str) else "")


def _measured(record: Mapping[str, Any], losses: Mapping[str, Any]) -> list[str]:
    if losses["base"] is None:
        return ["Nothing was held out."]
    lines = [
        f"Held-out loss on {record['counts']['held_out']} rows, nats per completion token: "
        f"base {losses['base']:.4f}, with the adapter {losses['adapter']:.4f}."
    ]
    if record.get("stopped_early"):
        lines.append(f"Stopped early; the adapter is that of step {record['best_step']}.")
    return [*lines, "", f"![loss over the steps]({CURVE})"]


def _dropped(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in dropped.items()) or "none"


def _contamination(found: Mapping[str, Any] | None) -> list[str]:
    if not found or not found["benchmarks"]:
        return ["", "No benchmark's test items were at hand to look for in the data."]
    parts = [f"{name}: {entry['rows']} rows" for name, entry in found["benchmarks"].items()]
    return ["", f"Rows sharing {found['words_in_a_row']} words in a row with test items: {', '.join(parts)}."]


def _value(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("\n", "\\n").replace("|", "\\|")
