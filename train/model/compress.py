"""Makes a trained adapter smaller: each module's B·A cut to its strongest directions, PEFT folder in, PEFT folder out.

    compress("peft/math", "peft/math-r8", rank=8)
    compress("peft/math", "peft/math-small", energy=0.95)

The truncated singular value decomposition is the nearest matrix of its rank (Eckart and Young 1936). It is made from
the factors alone: with B = Q1 R1 and A^T = Q2 R2, the singular values of B·A are those of the small R1 R2^T.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...edge.errors import InputError, UnsupportedError
from ...edge.files.atomic import atomic_folder, write_json
from ...edge.files.read import read_table

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"
# Of LoraConfig: what a plain LoRA leaves unset. With these, B·A is not all of the adapter.
_NOT_PLAIN = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "alpha_pattern",
)

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Compressed:
    """What was kept.

    Attributes:
        ranks: module -> new rank.
        energy: module -> kept share of the sum of squared singular values, 0 to 1.
    """

    ranks: dict[str, int]
    energy: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For train.json and `--json`."""
        kept = list(self.energy.values())
        return {
            "rank": {"min": min(self.ranks.values()), "max": max(self.ranks.values())},
            "energy_kept": {"min": min(kept), "mean": sum(kept) / len(kept)},
        }


def truncate(
    a: Matrix, b: Matrix, rank: int | None, energy: float | None, multiple: int = 1
) -> tuple[Matrix, Matrix, float]:
    """The nearest B·A of lower rank.

    Args:
        a: (r, n_in).
        b: (n_out, r).
        rank: keep so many directions (at most r).
        energy: keep the fewest directions that hold this share of the squared singular values; at least one.
        multiple: what these fewest are rounded up to, as far as `rank` and r allow.

    Returns:
        A (k, n_in) and B (n_out, k), the singular values shared evenly between them, and the share of energy kept.
    """
    q_b, r_b = np.linalg.qr(b.astype(np.float64))
    q_a, r_a = np.linalg.qr(a.T.astype(np.float64))
    u, sizes, v_t = np.linalg.svd(r_b @ r_a.T)
    squares = sizes**2
    total = float(squares.sum())
    kept = len(sizes) if rank is None else min(rank, len(sizes))
    if energy is not None and total > 0:
        fewest = int(np.searchsorted(np.cumsum(squares) / total, energy - 1e-12)) + 1
        kept = min(kept, -(-fewest // multiple) * multiple)
    root = np.sqrt(sizes[:kept])
    new_b = (q_b @ u[:, :kept]) * root
    new_a = root[:, None] * (v_t[:kept] @ q_a.T)
    share = float(squares[:kept].sum() / total) if total > 0 else 1.0
    return new_a.astype(np.float32), new_b.astype(np.float32), share


def compress(
    source: str | Path, output: str | Path, *, rank: int | None = None, energy: float | None = None, multiple: int = 1
) -> Compressed:
    """Writes the smaller adapter into the new folder `output`, whole or not at all.

    Args:
        source: a PEFT folder with a plain LoRA on linear layers.
        rank: the highest rank of any module.
        energy: share of the squared singular values that each module keeps, above 0 and up to 1.
        multiple: what the ranks that `energy` asks for are rounded up to; with 16 they are computed fast.

    Raises:
        InputError: neither or a wrong `rank` or `energy`, or `source` is no such folder.
        UnsupportedError: the adapter has parts that are not B·A; all are named.
    """
    source, output = Path(source), Path(output)
    if rank is None and energy is None:
        raise InputError("nothing says how small: give a rank, an energy, or both")
    if rank is not None and rank < 1:
        raise InputError(f"rank is {rank}; it must be at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise InputError(f"energy is {energy}; it must be above 0 and at most 1")
    config = read_table(source / CONFIG)
    weights = read_weights(source)
    modules = _modules(source, config, weights)
    new: dict[str, Matrix] = {}
    ranks: dict[str, int] = {}
    kept: dict[str, float] = {}
    scales: dict[str, float] = {}
    for module in modules:
        a, b = weights[module + A_SUFFIX], weights[module + B_SUFFIX]
        scales[module] = config["lora_alpha"] / (len(a) ** 0.5 if config.get("use_rslora") else len(a))
        new_a, new_b, kept[module] = truncate(a, b, rank, energy, multiple)
        new[module + A_SUFFIX], new[module + B_SUFFIX] = new_a, new_b
        ranks[module] = len(new_a)
    result = Compressed(ranks, kept)
    with atomic_folder(output) as aside:
        from safetensors.numpy import save_file

        save_file(new, aside / WEIGHTS, metadata={"format": "pt"})
        write_json(aside / CONFIG, {**config, **_scaling(ranks, scales)})
        record = source / "train.json"
        if record.is_file():
            write_json(aside / "train.json", {**read_table(record), "compressed": result.as_dict()})
    return result


def read_weights(source: Path) -> dict[str, Matrix]:
    """The matrices of a PEFT folder by name, as F32; raises InputError if there are none."""
    path = source / WEIGHTS
    if not path.is_file():
        raise InputError("no such file; a PEFT folder has it", where=path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise InputError(f"is not a safetensors file ({error})", where=path) from None


def _modules(source: Path, config: dict[str, Any], weights: dict[str, Matrix]) -> list[str]:
    """Names of the adapted modules, as in the file; raises when the adapter is more than pairs on linear layers."""
    problems = [f"{key} is set" for key in _NOT_PLAIN if config.get(key)]
    if config.get("peft_type") != "LORA":
        problems.append(f"peft_type is {json.dumps(config.get('peft_type'))}, not LORA")
    if config.get("bias", "none") != "none":
        problems.append(f"bias is {config['bias']}")
    modules = sorted(name.removesuffix(A_SUFFIX) for name in weights if name.endswith(A_SUFFIX))
    expected = {module + suffix for module in modules for suffix in (A_SUFFIX, B_SUFFIX)}
    problems += [f"the tensor {name} is not of a linear layer's pair" for name in sorted(expected ^ set(weights))]
    if problems or not modules:
        raise UnsupportedError(
            "only a plain LoRA on linear layers can be made smaller", where=source, problems=problems or ["no pairs"]
        )
    return modules


def _scaling(ranks: dict[str, int], scales: dict[str, float]) -> dict[str, Any]:
    """The config entries that give every module its old strength at its new rank: PEFT applies alpha / r."""
    common = max(ranks.values())
    scale = next(iter(scales.values()))
    names = {module: module.removeprefix("base_model.model.") for module in ranks}
    rank_pattern = {names[module]: rank for module, rank in ranks.items() if rank != common}
    alphas = {names[module]: scales[module] * rank for module, rank in ranks.items()}
    alpha = scale * common
    return {
        "r": common,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "use_rslora": False,
        "rank_pattern": rank_pattern,
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
    }
