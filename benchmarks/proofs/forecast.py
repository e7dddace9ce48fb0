"""One small model is profiled, larger ones are predicted from it, then measured: how far off the prediction is.

    python -m slm_edge.benchmarks.proofs.forecast small.gguf big.gguf bigger.gguf --threads 2

What a user does, in one command: the machine is probed, `slm-edge profile` runs on the small model alone (and on a
random adapter over it, unless --base-only), `devices calibrate` takes what it says, `devices fit`'s model predicts each
larger one with and without a random adapter, and those are measured as `slm-edge profile --quick` does. Nothing is kept
in the cache. Speeds of a busy machine are not worth comparing. Prints a row per measurement, or all as JSON.
"""

import contextlib
import math
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ...devices.catalogue.workload import Workload
from ...devices.machine.probe import N_STEPS, probe
from ...devices.predict.predict import Predictor, Speed
from ...devices.predict.unit_factors import adapter_of_case, calibrate
from ...devices.profile.measure import Plan, measure_case
from ...devices.profile.profile import Request, run_profile
from ...edge.console import emit, json_option, progress
from ...edge.gguf.base import BaseInfo
from ...edge.pack.card import TaskCard
from ...edge.pack.write import NewAdapter, build_pack
from ...edge.session.session import Session
from ..made.random_adapter import write_random_adapter

Row = dict[str, Any]


def rows_of(predictor: Predictor, work: Workload, case: dict[str, Any], threads: int) -> Iterator[Row]:
    """Each rate of a measured case beside its prediction."""
    adapter = adapter_of_case(case)
    for row in case["prefill"]:
        n = row["n_prompt_tokens"]
        speed = predictor.prefill(work, n_prompt_tokens=n, threads=threads, adapter=adapter)
        yield {"what": f"prompt of {n}", **_against(speed, row)}
    for row in case["decode"]:
        depth = row["depth_tokens"] + row["n_tokens"] / 2
        speed = predictor.decode(work, threads=threads, depth_tokens=depth, adapter=adapter)
        yield {"what": f"decode at {row['depth_tokens']}", **_against(speed, row)}


def _against(speed: Speed, row: dict[str, Any]) -> Row:
    measured = row["tokens_per_s"]
    return {
        "predicted_per_s": speed.tokens_per_s,
        "low": speed.low,
        "high": speed.high,
        "measured_per_s": measured["median"],
        "samples": measured["samples"],
        "error": speed.tokens_per_s / measured["median"] - 1,
        "inside": speed.low <= measured["median"] <= speed.high,
    }


def summary_of(rows: list[Row]) -> dict[str, Row]:
    """Median error and share within the stated interval, of decode and of prompts."""
    found = {}
    for kind in ("decode", "prompt"):
        own = [row for row in rows if row["what"].startswith(kind)]
        if own:
            errors = [abs(row["error"]) for row in own]
            found[kind] = {
                "n": len(own),
                "median_error": statistics.median(errors),
                "most": max(errors),
                "inside": statistics.fmean(row["inside"] for row in own),
            }
    return found


@click.command()
@click.argument("small", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("bigs", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--threads", type=click.IntRange(1), help="[default: one per fast physical core]")
@click.option("--repeats", type=click.IntRange(2), default=3, show_default=True)
@click.option("--rank", type=click.IntRange(1), default=16, show_default=True, help="Of the random adapters.")
@click.option("--base-only", is_flag=True, help="Calibrate without an adapter over the small model.")
@json_option
def main(
    small: Path, bigs: tuple[Path, ...], threads: int | None, repeats: int, rank: int, base_only: bool, as_json: bool
) -> None:
    """Calibrates on SMALL, predicts and measures each of BIGS."""
    with progress("probing", N_STEPS, "steps") as advance:
        found = probe(advance)
    with tempfile.TemporaryDirectory(prefix="slm-edge-") as folder:
        file = Path(folder) / "adapter.gguf"
        request = Request(base=small, quick=True, threads=threads, repeats=repeats)
        if not base_only:
            write_random_adapter(BaseInfo.open(small), file, rank=rank)
            new = NewAdapter("random", file, TaskCard(task="random"))
            pack = build_pack(Path(folder) / "pack", base=small, adapters=[new], copy_base=False)
            request = Request(pack=pack.folder, quick=True, threads=threads, repeats=repeats)
        calibration = calibrate(run_profile(request), found.device, found.calibration)
        predictor = Predictor(found.device, calibration=calibration)
        plain = Plan.quick()
        plan = Plan(plain.prompt_tokens, plain.depths, plain.n_tokens, repeats)
        rows: list[Row] = []
        for big in bigs:
            write_random_adapter(BaseInfo.open(big), file, rank=rank)
            with contextlib.closing(Session.of_files(big, {"random": (file, None)}, threads=threads)) as session:
                work = Workload.of_file(session.base.file, session.base.name)
                for name in (None, "random"):
                    case = measure_case(session, name, plan, lambda: None)
                    for row in rows_of(predictor, work, case, session.context.threads):
                        rows.append({"model": big.stem, "adapter": f"rank {rank}" if name else None, **row})
                        emit({}, False, _line(rows[-1])) if not as_json else None
    summary = summary_of(rows)
    lines = [
        f"{kind}: {row['n']} rates, median error {row['median_error']:.1%}, most {row['most']:.1%}, "
        f"{row['inside']:.0%} in the stated interval"
        for kind, row in summary.items()
    ]
    scales = {"decode": calibration.decode, "prefill": calibration.prefill, "kv_part": calibration.kv_part}
    fixed = {"pair_s": calibration.pair_s, "layer_s": calibration.layer_s}
    data = {"calibration": {**scales, **fixed}, "rows": rows, "summary": summary}
    emit(data, as_json, "\n".join([f"calibrated by {calibration.source}: {data['calibration']}", *lines]))


def _line(row: Row) -> str:
    spread = max(row["samples"]) / min(row["samples"]) - 1 if min(row["samples"]) else math.inf
    return (
        f"{row['model']:36} {row['adapter'] or 'base':8} {row['what']:14} predicted {row['predicted_per_s']:7.2f} "
        f"[{row['low']:.2f}, {row['high']:.2f}]  measured {row['measured_per_s']:7.2f} (spread {spread:.0%})  "
        f"{row['error']:+.1%}"
    )


if __name__ == "__main__":
    main()
