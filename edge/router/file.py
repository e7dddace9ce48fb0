"""The router's file: weights, thresholds and background prompts in one .npz, checked in full before it is used.

    model = read_router("my-pack/router.npz")
    write_router("router.npz", model)          # the same model gives the same bytes

Inside: `meta` (JSON), the weights of the classes that were trained together (class 0 is "none of these"), a sparse
row of weights for each adapter that was added by examples, and prompts as compressed text, which such an adding
needs as its background. Nothing in it can run code: arrays of numbers, no pickles.
"""

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import DamagedError, UnsupportedError
from ..files.npz import read_npz, write_npz
from ..files.read import is_text, loads_json
from .features import FEATURES_VERSION
from .hashing import N_SLOTS
from .words import NAMES

FORMAT: Final = 1
MAX_ROUTER_BYTES: Final = 64 << 20
MAX_TEXT_BYTES: Final = 16 << 20
# Of any weight: sums of these stay finite
LARGEST_WEIGHT: Final = 1e9
# Hashed weights kept of an adapter that was added by examples
ADDED_SLOTS: Final = 256


@dataclass(frozen=True)
class Background:
    """Prompts that an added adapter learns to leave alone: text and class name (None: none of these)."""

    prompts: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True)
class RouterModel:
    """What the router's file holds.

    Attributes:
        tasks: names of the classes trained together; class 0 is "none of these", class 1 + i is `tasks[i]`.
        bias: float32 [1 + n_tasks].
        named: float32 [1 + n_tasks, len(NAMES)].
        slots: float32 [N_SLOTS, 1 + n_tasks].
        temperature: logits are divided by it, so that confidences mean what they say.
        thresholds: task or added name -> the least confidence with which it is chosen.
        added: names of the adapters added by examples.
        added_bias: float32 [n_added].
        added_named: float32 [n_added, len(NAMES)].
        added_slots: int32 [n_added, ADDED_SLOTS], places of hashed weights.
        added_values: float32 [n_added, ADDED_SLOTS], those weights; 0 if there are fewer.
        background: prompts for the next adding, the examples of added adapters among them.
        about: how it was trained, as the trainer wrote it.
    """

    tasks: tuple[str, ...]
    bias: NDArray[np.float32]
    named: NDArray[np.float32]
    slots: NDArray[np.float32]
    temperature: float
    thresholds: Mapping[str, float]
    added: tuple[str, ...] = ()
    added_bias: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    added_named: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, len(NAMES)), dtype=np.float32))
    added_slots: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, ADDED_SLOTS), dtype=np.int32))
    added_values: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, ADDED_SLOTS), dtype=np.float32))
    background: bytes = b""
    about: Mapping[str, Any] = field(default_factory=dict)

    def prompts(self) -> Background:
        """The background prompts, unpacked.

        Raises:
            DamagedError: they are not as they were written.
        """
        if not self.background:
            return Background()
        try:
            unpack = zlib.decompressobj()
            text = unpack.decompress(self.background, MAX_TEXT_BYTES)
            rows: list[Any] = loads_json(text.decode("utf-8", "surrogatepass") if unpack.eof else "")
            return Background(tuple((str(row[0]), None if row[1] is None else str(row[1])) for row in rows))
        except (zlib.error, ValueError, TypeError, LookupError):
            raise DamagedError("its background prompts are damaged", where="router") from None

    def with_prompts(self, background: Background) -> "RouterModel":
        """The same model with other background prompts."""
        text = json.dumps(background.prompts, ensure_ascii=False).encode("utf-8", "surrogatepass")
        return dataclasses.replace(self, background=zlib.compress(text, 9))


def write_router(path: str | os.PathLike[str], model: RouterModel) -> None:
    """Writes the file, aside and then renamed. Class weights are kept as int8 with a scale for each class.

    Raises:
        InputError: the folder cannot be written to.
    """
    scale = np.maximum(np.abs(model.slots).max(axis=0), 1e-6) / 127
    meta = {
        "format": FORMAT,
        "features": FEATURES_VERSION,
        "tasks": list(model.tasks),
        "temperature": model.temperature,
        "thresholds": dict(model.thresholds),
        "added": list(model.added),
        "about": dict(model.about),
    }
    arrays = {
        "bias": model.bias.astype(np.float32),
        "named": model.named.astype(np.float32),
        "slots": np.rint(model.slots / scale).astype(np.int8),
        "slots_scale": scale.astype(np.float32),
        "added_bias": model.added_bias.astype(np.float32),
        "added_named": model.added_named.astype(np.float32),
        "added_slots": model.added_slots.astype(np.uint16),
        "added_values": model.added_values.astype(np.float32),
        "background": np.frombuffer(model.background, dtype=np.uint8),
    }
    write_npz(path, meta, arrays)


def read_router(path: str | os.PathLike[str]) -> RouterModel:
    """Reads and checks a router's file.

    Raises:
        InputError: there is none.
        UnsupportedError: it was made by another version's features or format.
        DamagedError: it is no such file, or its values are not a router's.
    """
    path = Path(path)
    meta, values = read_npz(path, "a router's file", MAX_ROUTER_BYTES)
    if meta["format"] != FORMAT or meta.get("features") != FEATURES_VERSION:
        raise UnsupportedError(
            f"is a router of format {meta['format']}, features {meta.get('features')}; "
            f"this slm-edge reads {FORMAT}, {FEATURES_VERSION}",
            where=path,
            hint="slm-edge router train makes a new one",
        )
    faults = _faults(meta, values)
    if faults:
        raise DamagedError("is not a valid router", where=path, problems=faults)
    return RouterModel(
        tasks=tuple(meta["tasks"]),
        bias=values["bias"],
        named=values["named"],
        slots=values["slots"].astype(np.float32) * values["slots_scale"],
        temperature=float(meta["temperature"]),
        thresholds={str(name): float(value) for name, value in meta["thresholds"].items()},
        added=tuple(meta["added"]),
        added_bias=values["added_bias"],
        added_named=values["added_named"],
        added_slots=values["added_slots"].astype(np.int32),
        added_values=values["added_values"],
        background=values["background"].tobytes(),
        about=meta["about"],
    )


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(is_text(name) and name for name in value)


def _is_table(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict)


def _faults(meta: dict[str, Any], values: dict[str, NDArray[Any]]) -> list[str]:
    faults = [f"its {key} are not a list of names" for key in ("tasks", "added") if not _is_names(meta.get(key))]
    if faults:
        return faults
    tasks, added = meta["tasks"], meta["added"]
    if not tasks or len({*tasks, *added}) != len(tasks) + len(added):
        faults.append("two classes have the same name")
    temperature = meta.get("temperature")
    if not isinstance(temperature, int | float) or not 0.01 <= temperature <= 100:
        faults.append(f"its temperature is {temperature!r}; it must be between 0.01 and 100")
    thresholds = meta.get("thresholds")
    if not isinstance(thresholds, dict) or not all(
        isinstance(value, int | float) and 0 <= value <= 1 for value in thresholds.values()
    ):
        faults.append("its thresholds are not numbers from 0 to 1")
    if not _is_table(meta.get("about")):
        faults.append("its description is not a table of JSON values")
    n, a = 1 + len(tasks), len(added)
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "bias": ((n,), "f4"),
        "named": ((n, len(NAMES)), "f4"),
        "slots": ((N_SLOTS, n), "i1"),
        "slots_scale": ((n,), "f4"),
        "added_bias": ((a,), "f4"),
        "added_named": ((a, len(NAMES)), "f4"),
        "added_slots": ((a, ADDED_SLOTS), "u2"),
        "added_values": ((a, ADDED_SLOTS), "f4"),
    }
    for name, (shape, kind) in shapes.items():
        array = values.get(name)
        if array is None or array.shape != shape or array.dtype.str[1:] != kind:
            faults.append(f"{name} is not there, or not of type {kind} and shape {list(shape)}")
        elif kind == "f4" and array.size and not float(np.abs(array).max()) <= LARGEST_WEIGHT:
            # Written so that NaN fails.
            faults.append(f"{name} holds NaN, infinity, or a value beyond {LARGEST_WEIGHT:.0e}")
    if not faults and a and values["added_slots"].max() >= N_SLOTS:
        faults.append("added_slots points outside")
    if "background" not in values or values["background"].dtype != np.uint8:
        faults.append("background is not there")
    return faults
