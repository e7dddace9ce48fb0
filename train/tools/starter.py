"""The recipes of the adapters that ship, and the training of all of them by one command.

slm-edge train starter --base base.gguf --data-dir DATA -o peft/       # peft/math, peft/code, peft/summarize
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...edge.console import note
from ...edge.errors import InputError
from ...edge.files.atomic import make_folder
from ..drawn.own_answers import own_answers
from ..model.compress import compress
from ..recipe import Recipe
from ..run.job import Extras, train


@dataclass(frozen=True)
class StarterAdapter:
    """One adapter that ships.

    Attributes:
        recipe: of its training.
        files: its data, below the data folder.
        own: files of prompts that the base answers itself, for the rows that the recipe's `replay` asks for.
        further: a second training that goes on from the first one, cut to the rank that this recipe has.
    """

    recipe: Recipe
    files: tuple[str, ...]
    own: tuple[str, ...] = ()
    further: Recipe | None = None


SOURCES = (
    "github.com/openai/grade-school-math (MIT), github.com/google-research/google-research, mbpp (CC BY 4.0) "
    "and huggingface.co/datasets/databricks/databricks-dolly-15k (CC BY-SA 3.0), dolly split into a file per category"
)

# Of 400 answers 282 ended by themselves, and the recipe draws from these.
OWN_PROMPTS: Final = 400

# Chosen for two cores: about 130-220 tokens/s in f32, all three in about 150 minutes.
STARTER: dict[str, StarterAdapter] = {
    "summarize": StarterAdapter(
        Recipe(task="summarize", lr=1e-3, batch=8, steps=160, max_tokens=600),
        ("dolly/closed_qa.jsonl", "dolly/summarization.jsonl"),
    ),
    "math": StarterAdapter(
        Recipe(task="math", lr=1.5e-3, batch=8, epochs=1, max_tokens=160, made_rows=2700),
        ("gsm8k/train.jsonl",),
        further=Recipe(
            task="math", rank=14, alpha=28, lr=8e-4, batch=8, steps=480, seed=2, max_tokens=200, made_rows=3000
        ),
    ),
    "code": StarterAdapter(
        Recipe(task="code", lr=5e-4, batch=8, epochs=2, max_tokens=448, held_out=24, replay=0.25),
        ("mbpp/mbpp.jsonl",),
        # Without them, learning to write short programs made answers to other questions shorter too.
        own=("dolly/closed_qa.jsonl", "dolly/summarization.jsonl"),
    ),
}


def train_starter(
    base: Path,
    data_dir: Path,
    output: Path,
    *,
    names: Sequence[str] = tuple(STARTER),
    threads: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Trains the adapters `names` into `output/NAME`; those that are there already are left as they are.

    Returns:
        The record (train.json) of each adapter trained now.

    Raises:
        InputError: a data file is missing; all that are missing are named.
    """
    wanted = {name: STARTER[name] for name in names}
    needed = dict.fromkeys(file for a in wanted.values() for file in (*a.files, *a.own))
    missing = [file for file in needed if not (data_dir / file).is_file()]
    if missing:
        hint = f"they are from {SOURCES}"
        raise InputError("data files are missing", where=data_dir, problems=missing, hint=hint)
    records = {}
    for name, adapter in wanted.items():
        if (output / name / "adapter_model.safetensors").is_file():
            note(f"{name}: there already")
            continue
        files = [data_dir / file for file in adapter.files]
        if adapter.further is None:
            extras = Extras()
            if adapter.own:
                own = output / f"{name}-own.jsonl"
                if not own.is_file():
                    note(f"{name}: the base answers general prompts")
                    make_folder(output)
                    own_answers(
                        base, [data_dir / file for file in adapter.own], own, n_prompts=OWN_PROMPTS, threads=threads
                    )
                extras = Extras(replay=(own,))
            records[name] = train(
                adapter.recipe, base=base, data=files, output=output / name, extras=extras, threads=threads
            )
        else:
            first, cut = output / f"{name}-first", output / f"{name}-first-cut"
            if not first.is_dir():
                train(adapter.recipe, base=base, data=files, output=first, threads=threads)
            if not cut.is_dir():
                compress(first, cut, rank=adapter.further.rank)
            extras = Extras(start=cut)
            records[name] = train(
                adapter.further, base=base, data=files, output=output / name, extras=extras, threads=threads
            )
    return records
