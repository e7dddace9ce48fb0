"""The evaluation as tables of predicted against published, for docs/measurements/forecasts.md."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ...edge.errors import InputError
from ...edge.files.atomic import atomic_file
from .published import Row

if TYPE_CHECKING:
    from .evaluate import Evaluation, Residual

BEGIN: Final = "<!-- begin of what evaluate writes -->"
END: Final = "<!-- end of what evaluate writes -->"
# kind -> (title, bound of the median error)
KINDS: Final[dict[str, tuple[str, float | None]]] = {
    "decode_prior": ("decode, nothing measured on the board", 0.20),
    "decode_board": ("decode, other units of the board known", None),
    "decode_calibrated": ("decode, one row of the unit given", 0.10),
    "prefill_prior": ("prefill, nothing measured on the board", 0.15),
    "prefill_class": ("prefill, nor on any other board of its class", None),
    "prefill_board": ("prefill, other units of the board known", 0.15),
    "prefill_calibrated": ("prefill, one row of the same kernel given", 0.15),
}


def summary(evaluation: "Evaluation", rows: Sequence[Row]) -> dict[str, Any]:
    """The figures for JSON: by kind, median and 90 % error, coverage, by board; and the flagged rows."""
    return {
        "n_rows": len(rows),
        "kinds": {kind: _figures(evaluation.residuals[kind]) for kind in KINDS if evaluation.residuals[kind]},
        "rows": [
            {
                "kind": kind,
                "device": residual.row.label,
                "model": residual.row.model,
                "quant": residual.row.quant,
                "threads": residual.row.threads,
                "prompt_tokens": residual.row.n_prompt_tokens,
                "predicted": residual.predicted,
                "published": residual.predicted * math.exp(residual.error),
            }
            for kind in ("decode_prior", "prefill_prior", "prefill_class")
            for residual in evaluation.residuals[kind]
        ],
        "flagged": [
            {"line": row.line, "device": row.label, "model": row.model, "quant": row.quant, "why": row.flag}
            for row in rows
            if row.flag
        ],
    }


def _figures(residuals: "Sequence[Residual]") -> dict[str, Any]:
    errors = sorted(residual.relative for residual in residuals)
    boards = sorted({residual.row.board for residual in residuals})
    own = {board: [r.relative for r in residuals if r.row.board == board] for board in boards}
    return {
        "n_rows": len({(residual.row.label, residual.row.line) for residual in residuals}),
        "n_predictions": len(residuals),
        "median_error": statistics.median(errors),
        "p90_error": errors[min(int(0.9 * len(errors)), len(errors) - 1)],
        "inside_90_interval": statistics.fmean(residual.inside for residual in residuals),
        "median_error_by_board": {board: statistics.median(values) for board, values in own.items()},
        "median_of_boards": statistics.median(statistics.median(values) for values in own.values()),
    }


def markdown(evaluation: "Evaluation", rows: Sequence[Row], merged: Sequence[Row]) -> str:
    """The tables."""
    figures = summary(evaluation, rows)
    n_flagged = sum(row.flag is not None for row in rows)
    lines = [
        f"{len(rows)} rows read, {n_flagged} flagged and left out, {sum(row.flag is None for row in merged)} left "
        "after repeats of one configuration are merged.",
        "",
        "| | rows | median error | 90 % of errors below | in the stated 90 % interval | median of boards |",
        "|---|---|---|---|---|---|",
    ]
    for kind, row in figures["kinds"].items():
        title, bound = KINDS[kind]
        aim = f" (bound {bound:.0%})" if bound else ""
        lines.append(
            f"| {title} | {row['n_rows']} | {row['median_error']:.1%}{aim} | {row['p90_error']:.0%} | "
            f"{row['inside_90_interval']:.1%} | {row['median_of_boards']:.1%} |"
        )
    lines += ["", "Median error by board, %:", ""]
    boards = sorted({board for row in figures["kinds"].values() for board in row["median_error_by_board"]})
    lines += ["| board | " + " | ".join(KINDS[kind][0] for kind in figures["kinds"]) + " |"]
    lines += ["|---" * (len(figures["kinds"]) + 1) + "|"]
    for board in boards:
        cells = [row["median_error_by_board"].get(board) for row in figures["kinds"].values()]
        lines.append(f"| {board} | " + " | ".join("" if cell is None else f"{cell:.1%}" for cell in cells) + " |")
    lines += [
        "",
        "Where the error is: predicted over published with all of the board left out, the median of its rows.",
        "",
    ]
    lines += ["| board | kernel | type | rows | decode | prefill |", "|---|---|---|---|---|---|"]
    lines += _where(evaluation)
    impossible = [row for row in rows if row.flag and row.flag.startswith("impossible")]
    lines += ["", "Rows that cannot be:", ""]
    lines += [f"- line {row.line}, {row.label}, {row.model} {row.quant}: {row.flag}" for row in impossible]
    return "\n".join(lines)


def _where(evaluation: "Evaluation") -> list[str]:
    """A line for each board, kernel and type: the signed median errors of decode and prefill."""
    decode = _by_kind(evaluation.residuals["decode_prior"])
    prefill = _by_kind([*evaluation.residuals["prefill_prior"], *evaluation.residuals["prefill_class"]])
    lines = []
    for key in sorted({*decode, *prefill}):
        rows = max(len(decode.get(key, ())), len(prefill.get(key, ())))
        cells = [f"{statistics.median(own[key]):+.0%}" if key in own else "" for own in (decode, prefill)]
        lines.append(f"| {' | '.join(key)} | {rows} | {' | '.join(cells)} |")
    return lines


def _by_kind(residuals: "Sequence[Residual]") -> dict[tuple[str, str, str], list[float]]:
    found: dict[tuple[str, str, str], list[float]] = {}
    for residual in residuals:
        row = residual.row
        found.setdefault((row.board, row.kernel, row.quant.upper()), []).append(math.exp(-residual.error) - 1)
    return found


def write_into(readme: Path, text: str) -> None:
    """Replaces what stands between the markers of `readme`.

    Raises:
        InputError: the markers are not there.
    """
    before = readme.read_text(encoding="utf-8")
    head, begin, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise InputError("the markers of the table are missing", where=readme, hint=f"{BEGIN} … {END}")
    with atomic_file(readme) as aside:
        aside.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}", encoding="utf-8")
