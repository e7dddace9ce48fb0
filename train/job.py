"""One training from files to files: data and base in, a PEFT folder with its record out, whole or not at all.

train(recipe, base="base.gguf", data=[Path("train.jsonl")], output=Path("peft/math"))
"""

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..edge.console import note
from ..edge.errors import InputError
from ..edge.files import atomic_folder, make_folder, write_json
from . import attention, checkpoint
from .bases import Base, open_base
from .examples import Counts, Row, file_record, read_rows, shared_prefix_tokens, split_held_out, tokenize
from .loop import Data, held_out_loss, run
from .lora import add_lora, trainable
from .recipe import Recipe
from .task import Task, find_task
from .workers import Workers

if TYPE_CHECKING:
    from peft import PeftModel

RECORD = "train.json"

# test sets that are only ever scored on: sha256 of the files as published
NEVER_TRAINED_ON = {
    "GSM8K test": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
}


@dataclass(frozen=True)
class Prepared:
    """Examples of a run, and what the record says of them."""

    data: Data
    counts: Counts
    files: list[dict[str, Any]]


def prepare(task: Task, recipe: Recipe, base: Base, files: Sequence[Path]) -> Prepared:
    """Reads, tokenises, filters and splits the data.

    Raises:
        InputError: a file cannot be used, or no example is left.
    """
    counts = Counts()
    rows: list[Row] = []
    records = []
    for file in files:
        records.append(file_record(file))
        for name, sha256 in NEVER_TRAINED_ON.items():
            if records[-1]["sha256"] == sha256:
                raise InputError(f"is {name}, which is only ever scored on", where=file)
        rows.extend(read_rows(file))
    if recipe.made_rows:
        if task.made is None:
            raise InputError(f"the task {task.name} makes no rows of its own", hint="leave made_rows at 0")
        rows.extend(task.made(recipe.made_rows, recipe.seed))
    counts.rows = len(rows)
    pairs = task.pairs(rows, lambda reason: counts.dropped.update([reason]))
    examples = tokenize(base, pairs, min(recipe.max_tokens, base.n_context_tokens), counts)
    if len(examples) < 2:
        raise InputError(
            "no examples are left to train on",
            where=", ".join(map(str, files)),
            problems=[f"{n} x {reason}" for reason, n in counts.dropped.items()],
        )
    kept, held_out = split_held_out(examples, min(recipe.held_out, len(examples) // 2))
    return Prepared(Data(kept, held_out, shared_prefix_tokens(examples)), counts, records)


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    packages = ("torch", "transformers", "peft", "numpy", "llama-cpp-python")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def train(
    recipe: Recipe,
    *,
    base: str | Path,
    data: Sequence[Path],
    output: Path,
    threads: int | None = None,
    fresh: bool = False,
    save_every_s: float = 60.0,
    finish: bool = False,
) -> dict[str, Any]:
    """Trains and writes the PEFT folder `output`; takes up a checkpoint of the same run where there is one.

    Args:
        threads: passes that run at once, all cores by default; it doesn't change the result.
        save_every_s: seconds between checkpoints; 0 writes one after every step.
        fresh: begin anew, though there is a checkpoint.
        finish: train no further; write what the checkpoint holds.

    Returns:
        The record, as in train.json.

    Raises:
        InputError: data or base cannot be used, or `output` exists.
        DoesNotFitError: memory ran out.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError("exists already", where=output, hint="choose another place, or remove it first")
    make_folder(output.absolute().parent)
    opened = open_base(base)
    prepared = prepare(find_task(recipe.task), recipe, opened, data)
    settings: dict[str, Any] = {
        "recipe": recipe.as_dict(),
        "base": opened.identity(),
        "data": prepared.files,
        "versions": versions(),
    }
    n_steps = recipe.steps_for(len(prepared.data.train))
    counted = prepared.counts.as_dict()
    note(f"{counted['kept']} of {counted['rows']} rows, dropped: {counted['dropped'] or 'none'}; {n_steps} steps")
    torch.manual_seed(recipe.seed)
    folder, hashed = checkpoint.run_folder(output), checkpoint.settings_hash(settings)
    if fresh:
        (folder / checkpoint.FILE).unlink(missing_ok=True)
    stop_at = checkpoint.step_in(folder) if finish else None
    with Workers(threads) as workers:
        model = add_lora(opened.load_model(attention.register()), recipe, opened.name)
        before = held_out_loss(model, prepared.data, recipe, workers)
        state = run(model, prepared.data, recipe, folder, hashed, workers, save_every_s=save_every_s, stop_at=stop_at)
        after = held_out_loss(model, prepared.data, recipe, workers)
    record = {
        **settings,
        "counts": {**counted, "train": len(prepared.data.train), "held_out": len(prepared.data.held_out)},
        "lengths_tokens": lengths(prepared.data),
        "steps": state.step,
        "steps_planned": n_steps,
        "tokens": state.tokens,
        "completion_tokens": state.completion_tokens,
        "held_out_loss": {"base": before, "adapter": after},
        "trained_parameters": sum(p.numel() for p in trainable(model).values()),
        "curve": state.curve,
    }
    write_output(model, record, output)
    return record


def lengths(data: Data) -> dict[str, Any]:
    """Length statistics of the training examples, in tokens."""
    totals = sorted(len(example.ids) for example in data.train)
    completions = sorted(len(example.ids) - example.n_prompt for example in data.train)

    def spread(values: list[int]) -> dict[str, int]:
        return {"min": values[0], "median": values[len(values) // 2], "max": values[-1], "sum": sum(values)}

    return {"example": spread(totals), "completion": spread(completions), "shared_prefix": data.prefix_tokens}


def write_output(model: "PeftModel", record: dict[str, Any], output: Path) -> None:
    """Writes adapter_config.json, adapter_model.safetensors and train.json, whole or not at all."""
    with atomic_folder(output) as aside:
        model.save_pretrained(str(aside), safe_serialization=True, save_embedding_layers=False)
        (aside / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        (aside / "adapter_model.safetensors").chmod(0o644)  # safetensors makes it the owner's alone
        write_json(aside / RECORD, record)
