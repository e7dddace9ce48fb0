"""How far one adapter is from another on the same base: held-out loss of both, and the KL between their answers.

    compare("base.gguf", [Path("train.jsonl")], before=Path("peft/math"), after=Path("peft/math-r8"))

The rows are those that the first adapter's own training held out, found again from its train.json and the data.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...edge.console import note, progress
from ...edge.errors import InputError
from ...edge.files.atomic import write_json
from ...edge.files.read import read_table
from ..data.prepare import as_sources, prepare
from ..data.task import find_task
from ..data.task_file import task_of
from ..model import attention
from ..model.bases import open_base
from ..model.frozen import dense_of
from ..model.lora import fuse
from ..recipe import Recipe
from ..run.batches import Packed
from ..run.job import RECORD
from ..run.loop import Machine, completion_states
from ..run.ranks import Ranks
from ..run.workers import Workers

if TYPE_CHECKING:
    from peft import PeftModel

# Rows of logits that are held at once, for each of the two adapters.
PIECE_TOKENS = 64


def compare(base: Path, data: Sequence[Path], *, before: Path, after: Path) -> dict[str, Any]:
    """Measures both adapters on the held-out rows, and writes the result into the second one's train.json.

    Returns:
        held_out_loss of base, before and after (nats per completion token); kl (before || after, nats per completion
        token): mean and 99th percentile; same_top: share of tokens with the same first choice; completion_tokens.

    Raises:
        InputError: `before` has no train.json of ours, or nothing was held out.
    """
    record = read_table(before / RECORD)
    if "recipe" not in record:
        raise InputError("is not a record of slm-edge train: the rows held out are not known", where=before / RECORD)
    recipe = replace(Recipe.from_mapping(record["recipe"]), replay=0.0, contamination="off")
    opened = open_base(base)
    written = record.get("task")
    task = task_of(written["text"], before / RECORD) if written else find_task(recipe.task)
    prepared = prepare(task, recipe, opened, as_sources(list(data)))
    if not prepared.data.held_out:
        raise InputError("nothing was held out when it was trained", where=before / RECORD)
    if record.get("examples_sha256", prepared.digest()) != prepared.digest():
        note("these are not the very rows that it was trained on; the rows held out may be others")
    from peft import PeftModel

    model = PeftModel.from_pretrained(
        opened.load_model(attention.register(), recipe.weights), str(before), adapter_name="before"
    )
    model.load_adapter(str(after), adapter_name="after")
    model.eval()
    losses: dict[str, float] = {"base": 0.0, "before": 0.0, "after": 0.0}
    kl, same, n = [], 0, 0
    with Workers(1) as workers, Ranks() as ranks, torch.no_grad():
        passes = Machine(workers, ranks).passes(prepared.data.held_out, prepared.data, recipe)
        with progress("measuring", len(passes), "passes") as advance:
            for batch in passes:
                states = {name: _states(model, None if name == "base" else name, batch) for name in losses}
                for start in range(0, len(batch.targets), PIECE_TOKENS):
                    piece = slice(start, start + PIECE_TOKENS)
                    logs = {name: _log_probabilities(model, state[piece]) for name, state in states.items()}
                    rows = torch.arange(len(batch.targets[piece]))
                    for name, values in logs.items():
                        losses[name] -= float(values[rows, batch.targets[piece]].double().sum())
                    kl.append((logs["before"].exp() * (logs["before"] - logs["after"])).sum(-1))
                    same += int((logs["before"].argmax(-1) == logs["after"].argmax(-1)).sum())
                    n += len(rows)
                advance(1)
    every = torch.cat(kl)
    measured = {
        "held_out_loss": {name: total / n for name, total in losses.items()},
        "kl": {"mean": float(every.mean()), "p99": float(every.quantile(0.99))},
        "same_top": same / n,
        "completion_tokens": n,
    }
    written = read_table(after / RECORD)
    write_json(after / RECORD, {**written, "compressed": {**written.get("compressed", {}), "measured": measured}})
    return measured


def _states(model: "PeftModel", adapter: str | None, batch: Packed) -> Tensor:
    """`completion_states` under one adapter, or none."""
    fuse(model, adapter)
    return completion_states(model, batch)


def _log_probabilities(model: "PeftModel", hidden: Tensor) -> Tensor:
    head: Any = model.get_base_model()
    return torch.log_softmax((hidden @ dense_of(head.lm_head).t()).float(), -1)
