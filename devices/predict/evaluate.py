"""Fits the constants to published rows and says how far the prediction is off on rows that it was not fitted on.

    python -m slm_edge.devices.predict.evaluate MEASUREMENTS.csv --write

Two errors, each on rows that the fit did not see:
    uncalibrated   all rows of a board are left out, the constants are fitted to the other boards
    calibrated     besides, one row of the same unit and build gives a factor; every other row of it is predicted, and
                   every row has its turn to be the one
"""

import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import click

from ...edge.console import emit, json_option, note
from ...edge.errors import InputError, SlmEdgeError
from ...edge.files.atomic import atomic_file
from ...edge.sizes import human_bytes
from .constants import FITTED_FILE, BoardFit, Constants, render
from .predict import Kernel, Predictor
from .published import Row, merge_repeats, read_rows

Key = TypeVar("Key")
LAYER_GRID_S = tuple(n * 1e-5 for n in range(0, 11))
# Student's t that leaves 5 % on one side, by degrees of freedom from 1; the last one for all above.
T_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753)


@dataclass(frozen=True)
class Residual:
    """log(measured / predicted) of one row; `half` is the interval's half-width that was stated for it."""

    row: Row
    error: float
    half: float = 0.0
    predicted: float = 0.0

    @property
    def relative(self) -> float:
        """|predicted / measured - 1|"""
        return abs(math.exp(-self.error) - 1)

    @property
    def inside(self) -> bool:
        return abs(self.error) <= self.half


def decode_error(row: Row, constants: Constants) -> tuple[float, float]:
    """log(measured / predicted) of a row's decode rate, and the predicted rate."""
    assert row.device is not None and row.work is not None and row.decode_per_s
    speed = Predictor(row.device, constants).decode(
        row.work, threads=_threads(row), depth_tokens=row.depth_tokens, kv_type="f16"
    )
    return math.log(row.decode_per_s / speed.tokens_per_s), speed.tokens_per_s


def prefill_error(row: Row, constants: Constants) -> tuple[float, float]:
    """The same of its prefill rate."""
    assert row.device is not None and row.work is not None and row.prefill_per_s
    kernel: Kernel = row.kernel if row.kernel in ("repack", "plain", "old") else "repack"  # type: ignore[assignment]
    speed = Predictor(row.device, constants).prefill(
        row.work, n_prompt_tokens=row.n_prompt_tokens, threads=_threads(row), kernel=kernel
    )
    return math.log(row.prefill_per_s / speed.tokens_per_s), speed.tokens_per_s


def _threads(row: Row) -> int:
    assert row.device is not None
    return min(row.threads or row.device.n_cores, row.device.n_cores)


def decode_rows(rows: Iterable[Row]) -> list[Row]:
    """Those with a decode rate that are not flagged."""
    return [row for row in rows if row.flag is None and row.decode_per_s]


def prefill_rows(rows: Iterable[Row]) -> list[Row]:
    """Those with a prefill rate that are not flagged."""
    return [row for row in rows if row.flag is None and row.prefill_per_s]


def fit(rows: Sequence[Row]) -> Constants:
    """Constants from the rows given; interval half-widths are not set here."""
    decode = decode_rows(rows)
    start = Constants()
    layer_s = min(LAYER_GRID_S, key=lambda s: _scatter(decode, replace(start, layer_s=s)))
    start = replace(start, layer_s=layer_s)
    with_curve = [row for row in decode if row.device and row.device.read_curve()]
    plain = [row for row in decode if row.device and not row.device.read_curve()]
    plain = [row for row in plain if row.device and "stream_triad_gb_per_s" not in row.device.facts]
    read = _solve(with_curve, lambda value: replace(start, read_part=value), start.read_part)
    theory = _solve(plain, lambda value: replace(start, theory_part=value), start.theory_part)
    fitted = replace(start, read_part=read, theory_part=theory)
    return replace(fitted, boards=_boards(rows, fitted))


def _boards(rows: Sequence[Row], constants: Constants) -> dict[str, BoardFit]:
    found: dict[str, BoardFit] = {}
    for board, own in _grouped(decode_rows(rows), lambda row: row.board).items():
        units = [
            statistics.median(decode_error(row, constants)[0] for row in same)
            for same in _grouped(own, lambda row: row.unit).values()
        ]
        found[board] = BoardFit(math.exp(statistics.median(units)), {}, len(own))
    for board, own in _grouped(prefill_rows(rows), lambda row: row.board).items():
        scales = {}
        for kernel, same in _grouped(own, lambda row: row.kernel).items():
            if kernel in ("repack", "plain", "old"):
                units = [
                    statistics.median(prefill_error(row, constants)[0] for row in unit)
                    for unit in _grouped(same, lambda row: row.unit).values()
                ]
                scales[kernel] = math.exp(statistics.median(units))
        before = found.get(board, BoardFit())
        found[board] = replace(before, prefill_scale=scales, n_rows=max(before.n_rows, len(own)))
    return found


def _scatter(rows: Sequence[Row], constants: Constants) -> float:
    """Mean over boards of the mean distance of a unit's rows from their median: what one factor cannot mend."""
    boards = []
    for own in _grouped(rows, lambda row: row.board).values():
        units = []
        for same in _grouped(own, lambda row: row.unit).values():
            # One or two models cannot tell a time per layer from a rate.
            if len({row.model for row in same}) > 2:
                errors = [decode_error(row, constants)[0] for row in same]
                middle = statistics.median(errors)
                units += [abs(error - middle) for error in errors]
        if units:
            boards.append(statistics.fmean(units))
    return statistics.fmean(boards) if boards else 0.0


def _solve(rows: Sequence[Row], make: Callable[[float], Constants], default: float) -> float:
    """The median over boards of the value that makes a board's median error zero; boards that it does not move say
    nothing."""
    values = []
    for own in _grouped(rows, lambda row: row.board).values():
        low, high = 0.15, 1.0
        at_low, at_high = _middle(own, make(low)), _middle(own, make(high))
        if at_low - at_high < 0.1 or at_low < 0 or at_high > 0:
            continue
        for _ in range(20):
            mid = (low + high) / 2
            low, high = (mid, high) if _middle(own, make(mid)) > 0 else (low, mid)
        values.append((low + high) / 2)
    return statistics.median(values) if values else default


def _middle(rows: Sequence[Row], constants: Constants) -> float:
    bare = replace(constants, boards={})
    return statistics.median(decode_error(row, bare)[0] for row in rows)


def _grouped(rows: Iterable[Row], key: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    groups: dict[Key, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


@dataclass(frozen=True)
class Evaluation:
    """Residuals by kind: "decode_prior", "decode_calibrated", "prefill_calibrated", …, and the fitted constants."""

    constants: Constants
    residuals: dict[str, list[Residual]]


def evaluate(rows: Sequence[Row]) -> Evaluation:
    """Fits, leaves out, and gathers."""
    rows = [row for row in rows if row.flag is None]
    boards = sorted({row.board for row in rows})
    without = {board: fit([row for row in rows if row.board != board]) for board in boards}
    found: dict[str, list[Residual]] = {
        "decode_prior": [_residual(row, decode_error, without[row.board]) for row in decode_rows(rows)],
        "prefill_prior": [
            _residual(row, prefill_error, without[row.board])
            for row in prefill_rows(rows)
            if row.kernel in ("repack", "plain", "old")
        ],
        "decode_board": _other_units(rows, decode_rows, decode_error, lambda row: row.board),
        "prefill_board": _other_units(rows, prefill_rows, prefill_error, lambda row: f"{row.board} {row.kernel}"),
        "decode_calibrated": _calibrated(decode_rows(rows), decode_error, without, lambda row: row.unit),
        "prefill_calibrated": _calibrated(prefill_rows(rows), prefill_error, without, lambda row: row.prefill_group),
    }
    constants = fit(rows)
    widths = {kind: half_width(residuals) for kind, residuals in found.items() if residuals}
    # Each board's coverage is judged with a width that its own rows did not make.
    for kind, residuals in found.items():
        halves = {
            board: half_width([other for other in residuals if other.row.board != board]) or widths[kind]
            for board in {residual.row.board for residual in residuals}
        }
        found[kind] = [replace(residual, half=halves[residual.row.board]) for residual in residuals]
    return Evaluation(replace(constants, half_width=widths), found)


def _residual(row: Row, error_of: Callable[[Row, Constants], tuple[float, float]], constants: Constants) -> Residual:
    error, predicted = error_of(row, constants)
    return Residual(row, error, predicted=predicted)


def _other_units(
    rows: Sequence[Row],
    pick: Callable[[Iterable[Row]], list[Row]],
    error_of: Callable[[Row, Constants], tuple[float, float]],
    group: Callable[[Row], str],
) -> list[Residual]:
    """Rows of a unit predicted with a scale from the other units of the same board."""
    bare = replace(fit(rows), boards={})
    residuals = []
    # Other engines' builds differ for other reasons than the unit.
    rows = [row for row in rows if row.kernel in ("repack", "plain", "old")]
    for own in _grouped(pick(rows), group).values():
        units = {
            unit: statistics.median(error_of(row, bare)[0] for row in same)
            for unit, same in _grouped(own, lambda row: row.unit).items()
        }
        if len(units) < 2:
            continue
        for row in own:
            scale = statistics.median(value for unit, value in units.items() if unit != row.unit)
            error, predicted = error_of(row, bare)
            residuals.append(Residual(row, error - scale, predicted=predicted * math.exp(scale)))
    return residuals


def _calibrated(
    rows: Sequence[Row],
    error_of: Callable[[Row, Constants], tuple[float, float]],
    without: dict[str, Constants],
    group: Callable[[Row], object],
) -> list[Residual]:
    """Each row predicted from each other row of its group; one residual per row: the median over who calibrates."""
    residuals = []
    for own in _grouped(rows, group).values():
        errors = [error_of(row, replace(without[row.board], boards={})) for row in own]
        for i, row in enumerate(own):
            others = [errors[j][0] for j in range(len(own)) if j != i]
            for other in others:
                error = errors[i][0] - other
                residuals.append(Residual(row, error, predicted=errors[i][1] * math.exp(other)))
    return residuals


def half_width(residuals: Sequence[Residual]) -> float:
    """The log half-width of the 90 % interval for a row of a board that made none of the residuals; 0 without any.

    Student's interval for one more of K boards, t(0.95, K) s sqrt(1 + 1 / K), s² the mean of the boards' mean squares:
    rows of a board err together, so a board is one observation, and with so few of them a quantile of the errors is
    too narrow. One board tells nothing of others; its largest error is taken.
    """
    boards = [[residual.error for residual in own] for own in _by_board(residuals).values()]
    if len(boards) < 2:
        return max((abs(error) for own in boards for error in own), default=0.0)
    n = len(boards)
    variance = statistics.fmean(statistics.fmean(error**2 for error in own) for own in boards)
    return T_95[min(n, len(T_95)) - 1] * math.sqrt(variance * (1 + 1 / n))


def _by_board(residuals: Sequence[Residual]) -> dict[str, list[Residual]]:
    boards: dict[str, list[Residual]] = defaultdict(list)
    for residual in residuals:
        boards[residual.row.board].append(residual)
    return boards


@click.command()
@click.argument("measurements", type=click.Path(path_type=Path))
@click.option("--write", is_flag=True, help="Write the fit (constants.toml) and the table in devices/README.md.")
@json_option
def main(measurements: Path, write: bool, as_json: bool) -> None:
    """Fit the prediction to published MEASUREMENTS (CSV) and show its error on rows that it was not fitted on."""
    from .evaluate_text import markdown, summary, write_into

    rows = read_rows(measurements)
    merged = merge_repeats(rows)
    if not any(row.flag is None for row in merged):
        raise InputError("no row can be held against the prediction", where=measurements)
    evaluation = evaluate(merged)
    text = markdown(evaluation, rows, merged)
    if write:
        with atomic_file(FITTED_FILE) as aside:
            aside.write_text(render(evaluation.constants, measurements.name), encoding="utf-8")
        write_into(FITTED_FILE.with_name("README.md"), text)
        note(f"wrote {FITTED_FILE.name} and README.md ({human_bytes(len(text))} of tables)")
    emit(summary(evaluation, rows), as_json, text)


if __name__ == "__main__":
    try:
        main()
    except SlmEdgeError as error:
        note(str(error))
        sys.exit(error.exit_code)
