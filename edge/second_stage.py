"""The router's second stage: a linear head on the base's hidden state, asked only where the first stage is unsure.

    stage = read_second_stage(pack)
    stage.opinion(state)                       # {"math": 0.9, None: 0.05, ...}, by the router's tasks

Its opinion is multiplied with the first stage's probabilities. It costs the computing of the prompt by the base: the
base's own answer begins there, an activated adapter's after the whole chunks (`prefix.py`) of it before its invocation,
an ordinary adapter's has no use of it. So it is off unless it is asked for. Measured: benchmarks/README.md.
One file of some kilobytes in the pack, made for one base. Nothing in it can run code.
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .errors import DamagedError, InputError
from .hidden_state import State
from .npz_file import read_npz, write_npz
from .pack import Pack, check_packed
from .pack_write import add_files

SECOND_FILE: Final = "router_second.npz"
FORMAT: Final = 1
# The first stage's confidence below which the second is asked
BELOW: Final = 0.9
MAX_BYTES: Final = 4 << 20
_WHAT: Final = "a router's second stage"
_HINT: Final = "slm-edge router train-second PACK makes one"


@dataclass(frozen=True)
class SecondStage:
    """What the file holds.

    Attributes:
        tasks: classes 1 and on; class 0 is "none of these".
        fingerprint: of the base whose states it reads.
        weights: float32 [1 + n_tasks, n_embd].
        bias: float32 [1 + n_tasks].
        below: the first stage's confidence below which it is asked.
        about: how it was trained.
    """

    tasks: tuple[str, ...]
    fingerprint: str
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    below: float = BELOW
    about: Mapping[str, Any] = field(default_factory=dict)

    def opinion(self, state: State) -> dict[str | None, float]:
        """The probability of each task, and of none of them under None; together 1."""
        logits = self.weights @ state + self.bias
        parts = np.exp(logits - logits.max())
        return dict(zip((None, *self.tasks), (parts / parts.sum()).tolist(), strict=True))


def write_second_stage(path: str | os.PathLike[str], stage: SecondStage) -> None:
    """Writes the file, aside and then renamed; the same stage gives the same bytes."""
    meta = {
        "format": FORMAT,
        "tasks": list(stage.tasks),
        "fingerprint": stage.fingerprint,
        "below": stage.below,
        "about": dict(stage.about),
    }
    write_npz(path, meta, {"weights": stage.weights.astype(np.float32), "bias": stage.bias.astype(np.float32)})


def load_second_stage(path: Path) -> SecondStage:
    """Reads and checks a file.

    Raises:
        InputError: there is none.
        DamagedError: it is no such file.
    """
    meta, arrays = read_npz(path, _WHAT, MAX_BYTES)
    try:
        weights, bias = arrays["weights"], arrays["bias"]
        tasks, below = meta["tasks"], meta["below"]
        named = isinstance(tasks, list) and tasks and all(isinstance(name, str) and name for name in tasks)
        if meta["format"] != FORMAT or not named or len(set(tasks)) != len(tasks):
            raise ValueError("its meta is not a second stage's")
        if not isinstance(below, float) or not 0 <= below <= 1 or not isinstance(meta["about"], dict):
            raise ValueError("its meta is not a second stage's")
        if weights.ndim != 2 or len(weights) != 1 + len(tasks) or bias.shape != (len(weights),):
            raise ValueError("its weights don't fit its tasks")
        if weights.dtype != np.float32 or bias.dtype != np.float32 or not np.isfinite(weights).all():
            raise ValueError("its weights are no numbers")
        if not np.isfinite(bias).all():
            raise ValueError("its weights are no numbers")
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"is not {_WHAT} ({error})", where=path, hint="copy the pack again") from None
    return SecondStage(tuple(tasks), str(meta["fingerprint"]), weights, bias, below, meta["about"])


def read_second_stage(pack: Pack | None) -> SecondStage:
    """The pack's second stage, its bytes checked.

    Raises:
        InputError: there is no pack, it has none, or it was made for another base.
        DamagedError: its bytes changed.
    """
    if pack is None:
        raise InputError("a session over loose files has no router", hint="open a pack")
    if SECOND_FILE not in pack.manifest.files:
        raise InputError("the pack's router has no second stage", where=pack.folder, hint=_HINT)
    path = pack.folder / SECOND_FILE
    check_packed(path, pack.manifest.files[SECOND_FILE])
    stage = load_second_stage(path)
    if stage.fingerprint != pack.base.fingerprint:
        raise InputError("was made for another base than the pack's", where=path, hint=_HINT)
    return stage


def put_second_stage(folder: Path, stage: SecondStage) -> Pack:
    """Puts a second stage into a pack, in place of the one that is there; raises as `pack_write.add_files`."""
    with tempfile.TemporaryDirectory() as aside:
        path = Path(aside) / SECOND_FILE
        write_second_stage(path, stage)
        return add_files(folder, {SECOND_FILE: path})
