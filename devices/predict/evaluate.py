"""Fits the constants to published rows and says how far the prediction is off on rows that it was not fitted on.

    python -m slm_edge.devices.predict.evaluate [MEASUREMENTS.csv …] --write

Two errors, each on rows that the fit did not see:
    uncalibrated   all rows of a board are left out, the constants are fitted to the other boards
    calibrated     besides, one row of the same unit and build gives a factor; every other row of it is predicted, and
                   every row has its turn to be the one
"""

import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import click

from ...edge.console import emit, json_option, note
from ...edge.errors import InputError, SlmEdgeError
from ...edge.files.atomic import atomic_file
from ...edge.written import human_bytes
from .constants import FITTED_FILE, BoardFit, Constants, render
from .predict import Kernel, Predictor
from .published import PUBLISHED_FILE, Row, merge_repeats, read_rows

Key = TypeVar("Key")
ErrorOf = Callable[[Row, Constants], tuple[float, float]]
# Of a checkout; the wheel has no pages.
PAGE = FITTED_FILE.parents[1] / "docs" / "measurements" / "forecasts.md"
LAYER_GRID_S = tuple(n * 1e-5 for n in range(0, 11))
# Units of one board scatter half as much as boards do; of 0, 0.3, 0.6 and 1 the best for large errors on other units.
UNIT_DOUBT = 0.3
# Of llama.cpp; other engines' builds differ for other reasons than the board.
OUR_KERNELS = ("repack", "plain", "baseline")
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
    ours = row.kernel in OUR_KERNELS
    kernel: Kernel = row.kernel if ours else "repack"  # type: ignore[assignment]
    speed = Predictor(row.device, constants).prefill(
        row.work,
        n_prompt_tokens=row.n_prompt_tokens,
        threads=_threads(row),
        kernel=kernel,
        laid_out=row.laid_out if ours else None,
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


def llama_prefill_rows(rows: Iterable[Row]) -> list[Row]:
    """Of these, llama.cpp's."""
    return [row for row in prefill_rows(rows) if row.kernel in OUR_KERNELS]


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
    fitted = replace(fitted, classes=_classes(llama_prefill_rows(rows), fitted))
    return replace(fitted, boards=_boards(rows, fitted))


def _classes(rows: Sequence[Row], constants: Constants) -> dict[str, float]:
    """Measured over predicted prefill rate of each class: the median of its boards, each the median of its units."""
    found = {}
    for name, same in _grouped(rows, lambda row: row.device.cores.name if row.device else "").items():
        boards = [_errors_of_units(own, prefill_error, constants).values() for own in _grouped(same, _board).values()]
        found[name] = math.exp(statistics.median(statistics.median(units) for units in boards))
    return found


def _board(row: Row) -> str:
    return row.board


def _errors_of_units(rows: Iterable[Row], error_of: ErrorOf, constants: Constants) -> dict[str, float]:
    """The median log error of each unit's rows."""
    units = _grouped(rows, lambda row: row.unit)
    return {unit: statistics.median(error_of(row, constants)[0] for row in same) for unit, same in units.items()}


def _board_scale(errors_of_units: Collection[float]) -> float:
    """The log scale of a board from its units' errors: one unit alone says less of the next than many do."""
    n = len(errors_of_units)
    return statistics.median(errors_of_units) * n / (n + UNIT_DOUBT)


def _boards(rows: Sequence[Row], constants: Constants) -> dict[str, BoardFit]:
    found: dict[str, BoardFit] = {}
    for board, own in _grouped(decode_rows(rows), _board).items():
        found[board] = BoardFit(
            math.exp(_board_scale(_errors_of_units(own, decode_error, constants).values())), {}, len(own)
        )
    for board, own in _grouped(llama_prefill_rows(rows), _board).items():
        scales = {}
        for kernel, same in _grouped(own, lambda row: row.kernel).items():
            scales[kernel] = math.exp(_board_scale(_errors_of_units(same, prefill_error, constants).values()))
        before = found.get(board, BoardFit())
        found[board] = replace(before, prefill_scale=scales, n_rows=max(before.n_rows, len(own)))
    return found


def _scatter(rows: Sequence[Row], constants: Constants) -> float:
    """Mean over boards of the mean distance of a unit's rows from their median: what one factor cannot mend."""
    boards = []
    for own in _grouped(rows, _board).values():
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
    for own in _grouped(rows, _board).values():
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
            for row in llama_prefill_rows(rows)
            if row.device and row.device.cores.name in without[row.board].classes
        ],
        "prefill_class": [
            _residual(row, prefill_error, without[row.board])
            for row in llama_prefill_rows(rows)
            if row.device and row.device.cores.name not in without[row.board].classes
        ],
        "decode_board": _other_units(rows, decode_rows, decode_error, _board),
        "prefill_board": _other_units(rows, prefill_rows, prefill_error, lambda row: f"{row.board} {row.kernel}"),
        "decode_calibrated": _calibrated(decode_rows(rows), decode_error, without, lambda row: row.unit),
        "prefill_calibrated": _calibrated(prefill_rows(rows), prefill_error, without, lambda row: row.prefill_group),
    }
    constants = fit(rows)
    widths = {kind: half_width(residuals) for kind, residuals in found.items() if residuals}
    # Few boards have rows of several units, which makes Student's interval wide; knowing more cannot widen it.
    for what in ("decode", "prefill"):
        if f"{what}_board" in widths and f"{what}_prior" in widths:
            widths[f"{what}_board"] = min(widths[f"{what}_board"], widths[f"{what}_prior"])
    # Each board's coverage is judged with a width that its own rows did not make.
    for kind, residuals in found.items():
        halves = {
            board: half_width([other for other in residuals if other.row.board != board]) or widths[kind]
            for board in {residual.row.board for residual in residuals}
        }
        found[kind] = [replace(residual, half=halves[residual.row.board]) for residual in residuals]
    return Evaluation(replace(constants, half_width=widths), found)


def _residual(row: Row, error_of: ErrorOf, constants: Constants) -> Residual:
    error, predicted = error_of(row, constants)
    return Residual(row, error, predicted=predicted)


def _other_units(
    rows: Sequence[Row],
    pick: Callable[[Iterable[Row]], list[Row]],
    error_of: ErrorOf,
    group: Callable[[Row], str],
) -> list[Residual]:
    """Rows of a unit predicted with a scale from the other units of the same board."""
    bare = replace(fit(rows), boards={})
    residuals = []
    rows = [row for row in rows if row.kernel in OUR_KERNELS]
    for own in _grouped(pick(rows), group).values():
        units = _errors_of_units(own, error_of, bare)
        if len(units) < 2:
            continue
        for row in own:
            scale = _board_scale([value for unit, value in units.items() if unit != row.unit])
            error, predicted = error_of(row, bare)
            residuals.append(Residual(row, error - scale, predicted=predicted * math.exp(scale)))
    return residuals


def _calibrated(
    rows: Sequence[Row],
    error_of: ErrorOf,
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
@click.argument("measurements", type=click.Path(path_type=Path), nargs=-1)
@click.option("--write", is_flag=True, help="Write devices/constants.toml and docs/measurements/forecasts.md.")
@json_option
def main(measurements: tuple[Path, ...], write: bool, as_json: bool) -> None:
    """Fit the prediction to published measurements and show its error on rows that it was not fitted on.

    The rows of devices/published.csv are always among them; MEASUREMENTS are more such tables (CSV).
    """
    from .evaluate_text import markdown, summary, write_into

    tables = (PUBLISHED_FILE, *measurements)
    rows = []
    for table in tables:
        found = read_rows(table)
        if all(row.flag for row in found):
            raise InputError("no row can be held against the prediction", where=table)
        rows += found
    merged = merge_repeats(rows)
    evaluation = evaluate(merged)
    text = markdown(evaluation, rows, merged)
    if write:
        with atomic_file(FITTED_FILE) as aside:
            source = " and ".join(table.name for table in tables)
            aside.write_text(render(evaluation.constants, source), encoding="utf-8")
        write_into(PAGE, text)
        note(f"wrote {FITTED_FILE.name} and {PAGE.name} ({human_bytes(len(text))} of tables)")
    emit(summary(evaluation, rows), as_json, text)


if __name__ == "__main__":
    try:
        main()
    except SlmEdgeError as error:
        note(str(error))
        sys.exit(error.exit_code)
