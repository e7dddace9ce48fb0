"""Checkpoints of a run: all that the next step depends on, written whole or not at all.

They lie in a folder beside the output, `OUT.run/`, with the settings they belong to; a run with other settings
or other data doesn't take them up.
"""

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...edge.errors import DamagedError, InputError
from ...edge.files.atomic import atomic_file, make_folder
from ...edge.files.read import sha256_json

FILE = "checkpoint.pt"


def settings_hash(settings: dict[str, Any]) -> str:
    """sha256 over everything that decides the result: recipe, base, data, versions."""
    return sha256_json(settings)


def run_folder(output: Path) -> Path:
    """Where the checkpoints of an output lie."""
    return output.absolute().with_name(output.name + ".run")


@dataclass
class State:
    """Where a run stands after `step` optimiser steps.

    Attributes:
        curve: one entry per logged step.
        completion_tokens, tokens: trained on so far.
        evaluations: step and held-out loss of each measurement.
        best_step, best: the step of the lowest one, and the adapter then; kept where the recipe has patience.
        stopped_early: nothing got better for as long as the recipe waits.
    """

    step: int
    tokens: int
    completion_tokens: int
    curve: list[dict[str, float]]
    evaluations: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    best: dict[str, Tensor] | None = None
    stopped_early: bool = False

    def measured(self, loss: float, parameters: dict[str, nn.Parameter], patience: int) -> None:
        """Takes a held-out loss down; with patience, the best adapter is kept and the end is decided."""
        lowest = min((entry["loss"] for entry in self.evaluations), default=float("inf"))
        self.evaluations.append({"step": self.step, "loss": loss})
        if not patience:
            return
        if loss < lowest:
            self.best_step = self.step
            self.best = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        waited = sum(entry["step"] > self.best_step for entry in self.evaluations)
        self.stopped_early = waited >= patience

    def take_best(self, parameters: dict[str, nn.Parameter]) -> None:
        """Puts the best adapter's numbers in place, where one was kept."""
        if self.best is not None:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(self.best[name])


def save(
    folder: Path, settings: str, state: State, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Writes the checkpoint in place of the one before."""
    make_folder(folder)
    content = {
        "settings": settings,
        "state": vars(state),
        "parameters": {name: parameter.detach() for name, parameter in parameters.items()},
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
    }
    with atomic_file(folder / FILE) as aside:
        torch.save(content, aside)


def load(
    folder: Path, settings: str, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> State | None:
    """Takes up a checkpoint: parameters, optimiser and random state are set in place. None if there is none.

    Raises:
        InputError: it is of a run with other settings.
        DamagedError: it cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        saved: dict[str, Tensor] = content["parameters"]
    except (RuntimeError, OSError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise DamagedError(f"the run's save cannot be read ({error})", where=path, hint="use --fresh") from None
    if content["settings"] != settings or saved.keys() != parameters.keys():
        raise InputError(
            "the save is of a run with another recipe, base, data or versions",
            where=path,
            hint="give the same as before, or --fresh to begin anew",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["rng"])
    return State(**content["state"])


def step_in(folder: Path) -> int:
    """The step that the checkpoint in `folder` stands at.

    Raises:
        InputError: there is none.
    """
    path = folder / FILE
    if not path.is_file():
        raise InputError("there is no save to finish from", where=path)
    return int(torch.load(path, weights_only=True)["state"]["step"])
