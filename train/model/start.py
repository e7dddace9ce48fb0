"""Training that goes on from an adapter: its matrices are what the fresh one's are set to.

    slm-edge train math --start peft/math --data more.jsonl -o peft/math-further

The optimiser begins anew, with the recipe's own warm-up; only the matrices are taken over.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...edge.errors import InputError
from ...edge.files.read import read_table, sha256_file
from ..recipe import FUSED, Recipe
from .compress import CONFIG, WEIGHTS, read_weights
from .lora import ADAPTER, trainable

if TYPE_CHECKING:
    from peft import PeftModel


def start_identity(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """What the result depends on, for train.json.

    Raises:
        InputError: `folder` is no PEFT folder, or its adapter is not of the recipe's shape and scale; all differences.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"the adapter to start from has no {name}", where=folder)
    config = read_table(folder / CONFIG)
    given = config.get("target_modules") or []
    # A model with fused matrices has those in their place.
    fused = [FUSED.get(name, name) if FUSED.get(name) in given else name for name in recipe.targets]
    wanted = {
        "r": recipe.rank,
        "lora_alpha": recipe.alpha,
        "use_rslora": recipe.rslora,
        "target_modules": sorted(set(fused)),
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    found = {key: config.get(key) for key in wanted} | {"target_modules": sorted(given)}
    problems = [
        f"{key} is {found[key]!r}, the recipe's {value!r}"
        for key, value in wanted.items()
        if (found[key] or None) != (value or None)
    ]
    if problems:
        raise InputError("the adapter to start from is another kind than the recipe's", where=folder, problems=problems)
    return {"name": folder.name, "sha256": sha256_file(folder / WEIGHTS)}


def load_start(model: "PeftModel", folder: Path) -> None:
    """Sets the model's adapter to the one in `folder`.

    Raises:
        InputError: the tensors are not those of the model's adapter, by name or shape; all of them.
    """
    given = read_weights(folder)
    parameters = {name.replace(f".{ADAPTER}.", "."): parameter for name, parameter in trainable(model).items()}
    problems = [f"{name}: only on one side" for name in sorted(parameters.keys() ^ given.keys())]
    problems += [
        f"{name} has the shape {given[name].shape}, the model's {tuple(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in given and given[name].shape != tuple(parameter.shape)
    ]
    if problems:
        raise InputError("the adapter to start from is not of this base", where=folder, problems=problems)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(given[name]))
