"""Reads published measurements (a CSV) as rows that the prediction can be held against, and flags those that cannot be.

Columns: device, model, params_b, quant, size_mib, threads, pp_tps, pp_n, tg_tps, tg_n, engine, version, date, source,
doubtful, peak_ram_mib, power_w, notes, tier. Values may be missing; more columns do no harm.
"""

import csv
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...edge.errors import InputError
from ..catalogue.catalogue import Device, match_device
from ..catalogue.quant_mix import quant_label
from ..catalogue.shapes import match_shape
from ..catalogue.workload import Workload
from .predict import Predictor

# Rows gathered here, each with its source.
PUBLISHED_FILE = Path(__file__).parent.parent / "published.csv"
NEEDED = ("device", "model", "quant", "tg_tps", "engine")
# Architectures whose bytes per token are not in a table of matrices.
_NOT_DENSE = re.compile(r"moe|a\d(\.\d)?b\b|deepseek-v2|smallthinker|gemma-?(3n|4)|falcon-?h1|qwen3\.5|mamba", re.I)


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        line: in the CSV, for messages.
        unit: who measured which label with what: rows of one unit share board, firmware and build.
        kernel: "repack", "plain", "baseline", or another engine's name.
        laid_out: types that the build lays out anew.
        n_prompt_tokens, depth_tokens: of the prefill; mean depth of the decode.
        decode_per_s, prefill_per_s: measured; None if not.
        flag: why it is not held against the prediction; None if it is.
        n_merged: repeats of one configuration, whose median this is.
    """

    line: int
    label: str
    device: Device | None
    unit: str
    model: str
    quant: str
    work: Workload | None
    threads: int | None
    kernel: str
    n_prompt_tokens: int
    depth_tokens: float
    decode_per_s: float | None
    prefill_per_s: float | None
    flag: str | None = None
    n_merged: int = 1
    laid_out: frozenset[str] = frozenset()

    @property
    def board(self) -> str:
        """Boards of one chip and memory count as one."""
        return (self.device.like or self.device.id) if self.device else self.label

    @property
    def prefill_group(self) -> tuple[str, str, str]:
        """Rows between which a known kernel carries over: unit, kernel and main type."""
        return self.unit, self.kernel, self.quant.split("_K")[0]


def read_rows(path: Path) -> list[Row]:
    """Reads and flags every row.

    Raises:
        InputError: not such a table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            table = list(reader)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path) from None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8", where=path) from None
    missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(
            "is not a table of measurements", where=path, problems=[f"no column {name}" for name in missing]
        )
    return [_row(line, cells) for line, cells in enumerate(table, start=2)]


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _row(line: int, cells: dict[str, str]) -> Row:
    get = {key: (value or "").strip() for key, value in cells.items() if isinstance(value, str)}
    device = match_device(get["device"])
    label = quant_label(get["quant"])
    work = _work(get, label)
    prompt = int(_number(get.get("pp_n")) or 512)
    answer = _number(get.get("tg_n")) or 128
    notes = get.get("notes", "")
    depth = answer / 2 + (prompt if "decode after the prompt" in notes else 0)
    threads = _number(get.get("threads"))
    kernel, laid_out = _kernel(get, device, work)
    row = Row(
        line=line,
        label=get["device"],
        device=device,
        unit=" | ".join((get["device"], get["engine"].split(" (")[0].lower(), get.get("source", "")[:24])),
        model=get["model"],
        quant=get["quant"],
        work=work,
        threads=int(threads) if threads else None,
        kernel=kernel,
        laid_out=laid_out,
        n_prompt_tokens=prompt,
        depth_tokens=depth,
        decode_per_s=_number(get["tg_tps"]),
        prefill_per_s=_number(get.get("pp_tps")),
    )
    return replace(row, flag=_flag(get, row, label))


def _work(get: dict[str, str], label: str | None) -> Workload | None:
    if label is None:
        return None
    shape = match_shape(get["model"])
    if shape is not None:
        return Workload.of_shape(shape, label)
    params, size_mib = _number(get.get("params_b")), _number(get.get("size_mib"))
    if params is None and size_mib is None:
        return None
    file_bytes = size_mib * 1048576 if size_mib else None
    # A file's size says more of its parameters than nothing: 4.85 bits each in a Q4_K_M.
    n_params = params * 1e9 if params else (file_bytes or 0) * 8 / 4.85
    return Workload.of_size(get["model"], n_params, label, file_bytes)


def _kernel(get: dict[str, str], device: Device | None, work: Workload | None) -> tuple[str, frozenset[str]]:
    """The kernel that most of the weights met, and the types that the build of that date lays out anew."""
    nothing: frozenset[str] = frozenset()
    engine, version, notes = (get.get(key, "").lower() for key in ("engine", "version", "notes"))
    for other in ("ik_llama", "llamafile", "executorch", "mnn", "mlc"):
        if other in engine:
            return other, nothing
    if "before" in version or "no-repack" in notes or "no repack" in notes or device is None or work is None:
        return "plain", nothing
    if get["quant"].upper().startswith("Q4_0_"):
        return "repack", frozenset({"q4_0"})
    if "ollama" in engine and device.cores.baseline_part < 1:
        return "baseline", nothing
    date = get.get("date", "") or "2026"
    laid_out = device.cores.repacked_in(f"{date}-12" if len(date) == 4 else date[:7])
    return Predictor(device).kernel_of(work, laid_out), laid_out


def _flag(get: dict[str, str], row: Row, label: str | None) -> str | None:
    notes = get.get("notes", "").lower()
    dense = not (_NOT_DENSE.search(row.model) or "moe" in notes or "per-layer embeddings" in notes)
    bound = impossible(row) if dense else None
    if bound:
        return bound
    if get.get("doubtful"):
        return f"its source marks it doubtful: {get['doubtful']}"
    if row.device is None:
        return "the device is not in the catalogue"
    if label is None:
        return f"{row.quant} is not a llama.cpp type that is known here"
    if not dense:
        return "not a dense decoder of matrices: bytes per token are not in its table"
    if "ram limit" in row.model.lower() or "swap" in notes:
        return "paging from storage"
    if row.work is None:
        return "neither shape nor size is known"
    if row.device and row.work.file_bytes > row.device.usable_bytes:
        return "does not fit the RAM"
    return None


def impossible(row: Row) -> str | None:
    """Why a row cannot be: more bytes per second than the memory has, or more products than the units have."""
    if row.device is None or row.work is None or not row.work.sure:
        return None
    limit = row.device.number("theoretical_gb_per_s")
    rate = (row.decode_per_s or 0) * row.work.streamed_bytes / 1e9
    if rate > limit:
        return f"impossible: {rate:.0f} GB/s of weights over a memory of {limit:g} GB/s"
    peak = row.device.number("int8_gops", 0) / 2
    macs = (row.prefill_per_s or 0) * row.work.block_weights / 1e9
    if peak and macs > peak:
        return f"impossible: {macs:.0f} GMAC/s on units with a peak of {peak:g}"
    return None


def merge_repeats(rows: Iterable[Row]) -> list[Row]:
    """One row for each configuration that was measured more than once by the same people: the medians."""
    groups: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[(row.unit, row.model, row.quant, row.threads, row.kernel, row.n_prompt_tokens, row.flag)].append(row)
    merged = []
    for same in groups.values():
        merged.append(
            replace(
                same[0],
                decode_per_s=_median([row.decode_per_s for row in same]),
                prefill_per_s=_median([row.prefill_per_s for row in same]),
                n_merged=len(same),
            )
        )
    return merged


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
