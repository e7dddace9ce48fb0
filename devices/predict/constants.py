"""The constants of the prediction, as fitted to published measurements; `constants.toml` is written by the fit.

`python -m slm_edge.devices.predict.evaluate MEASUREMENTS.csv --write` writes it again. classes.toml holds the rest.
"""

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

FITTED_FILE: Final = Path(__file__).parent.parent / "constants.toml"
# K and V are read at a part of the rate of weights: 0.16 to 0.71 in six published series (FastFlowLM, llama-roofline,
# LocalScore; median 0.44). A part of 0.4 is taken where nothing was measured.
KV_PART_OF_RATE: Final = 0.4
# Each matrix pair of an adapter costs a fixed time beside its bytes: (1.91 - 0.81) ms / 112 pairs and
# (3.29 - 1.96) ms / 196 pairs on a OnePlus 12 (ExecuTorch README, Llama 3.2 1B and 3B with and without rank 16).
ADAPTER_PAIR_S: Final = 8e-6
# What each further thread takes from the others on a prompt: 8B Q4_0 with 1 to 4 threads of an RK3588 (29.7 to 115
# GMAC/s), LFM2-350M with 4 and 8 of a Ryzen 7840HS (824 to 1,553 tokens/s). Boards with little memory rate lose more.
THREAD_LOSS: Final = 0.015


@dataclass(frozen=True)
class BoardFit:
    """What rows of one board say.

    Attributes:
        decode_scale: measured over predicted rate, median of the board's sets of rows.
        prefill_scale: the same for prompts, by kernel ("repack", "plain", "baseline").
        n_rows: that it was fitted on.
    """

    decode_scale: float = 1.0
    prefill_scale: Mapping[str, float] = field(default_factory=dict)
    n_rows: int = 0


@dataclass(frozen=True)
class Constants:
    """Fitted constants.

    Attributes:
        read_part: decode rate over the sustained read rate that was measured on a device.
        theory_part: decode rate over the theoretical memory rate, where nothing was measured.
        layer_s: fixed time per layer and token.
        classes: measured over predicted prefill rate of each class of cores, median of its boards.
        boards: by device id; their prefill scales are besides their class's.
        half_width: log half-widths of 90 % intervals: decode and prefill, each "prior" (nothing measured on the
            board), "board" (rows of other units of it) and "calibrated" (one run on the very unit).
    """

    read_part: float = 0.85
    theory_part: float = 0.62
    layer_s: float = 40e-6
    classes: Mapping[str, float] = field(default_factory=dict)
    boards: Mapping[str, BoardFit] = field(default_factory=dict)
    half_width: Mapping[str, float] = field(default_factory=dict)

    def half(self, what: str, known: str) -> float:
        """The log half-width for "decode" or "prefill" and "prior", "board" or "calibrated"."""
        return self.half_width.get(f"{what}_{known}", {"prior": 0.6, "board": 0.35, "calibrated": 0.2}[known])


@functools.cache
def fitted() -> Constants:
    """The constants of `constants.toml`."""
    data = tomllib.loads(FITTED_FILE.read_text(encoding="utf-8"))
    boards = {
        name: BoardFit(row["decode_scale"], row.get("prefill_scale", {}), row["n_rows"])
        for name, row in data["boards"].items()
    }
    plain = {name: data[name] for name in ("read_part", "theory_part", "layer_s")}
    return Constants(**plain, classes=data["classes"], boards=boards, half_width=data["half_width"])


def render(constants: Constants, source: str) -> str:
    """`constants.toml` as text.

    Args:
        source: the measurements that it was fitted to, for the comment on top.
    """
    lines = [
        f"# Fitted by evaluate.py to {source}; docs/measurements/forecasts.md has the errors.",
        f"read_part = {constants.read_part:.3f}",
        f"theory_part = {constants.theory_part:.3f}",
        f"layer_s = {constants.layer_s:.2e}",
        "",
        "[classes]",
        *(f"{name} = {scale:.3f}" for name, scale in sorted(constants.classes.items())),
        "",
        "[half_width]",
        *(f"{name} = {value:.3f}" for name, value in sorted(constants.half_width.items())),
    ]
    for name, board in sorted(constants.boards.items()):
        scales = ", ".join(f"{kernel} = {scale:.3f}" for kernel, scale in sorted(board.prefill_scale.items()))
        lines += ["", f"[boards.{name}]", f"decode_scale = {board.decode_scale:.3f}", f"n_rows = {board.n_rows}"]
        lines += [f"prefill_scale = {{ {scales} }}"] if scales else []
    return "\n".join(lines) + "\n"
