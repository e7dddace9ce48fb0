"""One training from files to files: data and base in, a PEFT folder with its record out, whole or not at all.

train(recipe, base="base.gguf", data=[Path("train.jsonl")], output=Path("peft/math"))
"""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...edge.console import note
from ...edge.errors import InputError
from ...edge.files.atomic import atomic_folder, make_folder, write_json
from ..data.prepare import as_sources, lengths, prepare
from ..data.sources import Source, find_base
from ..data.task import Task, find_task
from ..model import attention
from ..model.bases import completion_end, open_base
from ..model.device import device_record, has_bf16_units, prepare_device
from ..model.end_token import check_end_learned
from ..model.lora import add_lora, trainable
from ..model.start import load_start, start_identity
from ..recipe import Recipe
from . import checkpoint
from .curve_svg import curve_svg
from .loop import Machine, end_states, held_out_loss, held_out_share, memory_advice, run
from .model_card import CURVE, model_card
from .ranks import Ranks
from .workers import Workers, available_cores

if TYPE_CHECKING:
    from peft import PeftModel

RECORD = "train.json"


@dataclass(frozen=True)
class Extras:
    """Files beside the data.

    Attributes:
        replay: general rows; the recipe's `replay` says how many are drawn.
        benchmarks: files or folders of test items that no training row may hold.
        start: a PEFT folder whose adapter the training goes on from.
    """

    replay: Sequence[Path | Source] = ()
    benchmarks: Sequence[Path] = ()
    start: Path | None = None


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    packages = ("torch", "transformers", "peft", "numpy", "llama-cpp-python")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def train(
    recipe: Recipe,
    *,
    base: str | Path,
    data: Sequence[str | Path | Source],
    output: str | Path,
    extras: Extras | None = None,
    threads: int | None = None,
    device: str = "cpu",
    fresh: bool = False,
    save_every_s: float = 60.0,
    finish: bool = False,
    task: Task | None = None,
) -> dict[str, Any]:
    """Trains and writes the PEFT folder `output`; takes up a checkpoint of the same run if there is one.

    Args:
        base: a GGUF file, a Hugging Face folder, or a name on the hub.
        threads: passes that run at once, all cores by default; it doesn't change the result.
        device: cpu or cuda; on cuda one pass runs at a time.
        save_every_s: seconds between checkpoints; 0 writes one after every step.
        fresh: begin anew, though there is a checkpoint.
        finish: train no further; write what the checkpoint holds.
        task: what makes the examples; None: as the recipe names it.

    Returns:
        The record, as in train.json.

    Raises:
        InputError: data, base, device or the adapter to start from cannot be used, or `output` exists.
        UnsupportedError: the base never learned the token that ends answers.
        DoesNotFitError: memory ran out.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError("exists already", where=output, hint="choose another place, or remove it first")
    prepare_device(device)
    extras = extras or Extras()
    start = {"start": start_identity(extras.start, recipe)} if extras.start else {}
    with Ranks(device) as ranks:
        make_folder(output.absolute().parent)
        source = find_base(str(base))
        opened = open_base(source.path, source.name)
        if task is None:
            task = find_task(recipe.task)
            recipe = dataclasses.replace(recipe, task=task.name)
        prepared = prepare(task, recipe, opened, as_sources(data), as_sources(extras.replay), extras.benchmarks)
        settings: dict[str, Any] = {
            "recipe": recipe.as_dict(),
            "base": opened.identity(),
            "data": prepared.files,
            "examples_sha256": prepared.digest(),
            "versions": versions(),
            **start,
            **({"task": {"name": task.name, "text": task.text}} if task.text else {}),
        }
        n_steps = recipe.steps_for(len(prepared.data.train))
        counted = prepared.counts.as_dict()
        if ranks.index == 0:
            note(
                f"{counted['kept']} of {counted['rows']} rows, dropped: {counted['dropped'] or 'none'}; {n_steps} steps"
            )
            for line in prepared.found.lines() if prepared.found else ():
                note(f"contamination: {line}")
            if device == "cpu" and recipe.weights != "bf16" and has_bf16_units():
                note("this CPU has matrix units for bf16 (AMX): --weights bf16 trains several times as fast here")
        torch.manual_seed(recipe.seed)
        folder, hashed = checkpoint.run_folder(output), checkpoint.settings_hash(settings)
        if fresh and ranks.index == 0:
            (folder / checkpoint.FILE).unlink(missing_ok=True)
        ranks.wait()
        stop_at = checkpoint.step_in(folder) if finish else None
        n_threads = threads or max(1, available_cores() // ranks.on_this_host)
        with Workers(n_threads if device == "cpu" else 1) as workers, memory_advice(recipe, device):
            machine = Machine(workers, ranks, ranks.device(device))
            loaded: Any = opened.load_model(attention.register(), recipe.weights, machine.device)
            model = add_lora(loaded, recipe, opened.name, prepared.invocation)
            ends = end_states(model, prepared.data.train, machine.device)
            check_end_learned(loaded.get_output_embeddings(), ends, completion_end(opened)[-1], opened)
            losses = {"base": held_out_loss(model, prepared.data, recipe, machine)}  # B is zero: still the base
            shares = {"base": held_out_share(model, prepared.data, recipe, machine, task.metric)}
            if extras.start:
                load_start(model, extras.start)
                losses["start"] = held_out_loss(model, prepared.data, recipe, machine)
            state = run(
                model, prepared.data, recipe, folder, hashed, machine, save_every_s=save_every_s, stop_at=stop_at
            )
            losses["adapter"] = held_out_loss(model, prepared.data, recipe, machine)
            shares["adapter"] = held_out_share(model, prepared.data, recipe, machine, task.metric)
        record = {
            **settings,
            "counts": {**counted, "train": len(prepared.data.train), "held_out": len(prepared.data.held_out)},
            "contamination": prepared.found.as_dict() if prepared.found else None,
            "lengths_tokens": lengths(prepared.data),
            "steps": state.step,
            "steps_planned": n_steps,
            "stopped_early": state.stopped_early,
            "best_step": state.best_step or state.step,
            "tokens": state.tokens,
            "completion_tokens": state.completion_tokens,
            "held_out_loss": losses,
            **({f"held_out_{task.metric}": shares} if task.metric != "loss" else {}),
            "trained_parameters": sum(p.numel() for p in trainable(model).values()),
            "processes": ranks.n,
            **device_record(device),
            "curve": state.curve,
            "evaluations": state.evaluations,
        }
        if ranks.index == 0:
            write_output(model, record, output)
    return record


def write_output(model: "PeftModel", record: dict[str, Any], output: Path) -> None:
    """Writes the PEFT files, the record, the model card and the loss curve, whole or not at all."""
    with atomic_folder(output) as aside:
        model.save_pretrained(str(aside), safe_serialization=True, save_embedding_layers=False)
        (aside / "adapter_model.safetensors").chmod(0o644)  # safetensors makes it the owner's alone
        (aside / "README.md").write_text(model_card(record), encoding="utf-8")  # in place of PEFT's empty one
        (aside / CURVE).write_text(curve_svg(record), encoding="utf-8")
        write_json(aside / RECORD, record)
