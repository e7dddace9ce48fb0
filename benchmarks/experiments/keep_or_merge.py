"""Keep the adapter or merge it, train it on the float weights or on the quantised ones: measured, type by type.

    python -m slm_edge.benchmarks.experiments.keep_or_merge base.gguf --type q4_0 --seed 1 --data DATA -o thesis

For each type and seed, four ways to ship one task (dolly):

- base: the quantised base alone;
- kept, float: an adapter trained on the float reference, beside the quantised base;
- kept, own: an adapter trained on the quantised weights themselves, beside them;
- merged: the adapter of the float reference merged into the float weights, which are then quantised.

Each gets the loss of the held-out answers (nats per token), the KL from the float reference with its own adapter of the
same seed, and ROUGE-1 of real answers, with paired differences against "kept, float". The base's values as F16 are the
float reference; the type "shipped" is the base file as it is. Every step is one of our own commands, and one whose
result is there is not done again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from ...edge.console import emit, json_option
from ...edge.files.atomic import write_json
from ..report.reproduce import run_command
from ..stats import mean
from .one_task import Work, export, loss_difference, measured, pack, train, work_options

SHIPPED: Final = "shipped"
WAYS: Final = ("base", "kept, float", "kept, own", "merged")


@dataclass(frozen=True)
class Plan:
    """What is compared, and how."""

    base: Path
    types: tuple[str, ...]
    seeds: tuple[int, ...]
    work: Work


def run(plan: Plan) -> dict[str, Any]:
    """All cells; each row has type, seed, way and its measures by item.

    Raises:
        InputError: base or data are not there.
        SlmEdgeError: a step failed; the next run goes on there.
    """
    work = plan.work
    work.check(plan.base)
    floats = _base(work, plan.base, "f16", ("--allow-requantize",))
    bases = {kind: plan.base if kind == SHIPPED else _base(work, floats, kind) for kind in plan.types}
    rows: list[dict[str, Any]] = []
    for seed in plan.seeds:
        adapter = _adapter(work, floats, "f16", seed)
        reference = pack(work, f"f16-{seed}", floats, adapter)
        rows.append({"type": "f16", "seed": seed, "way": "kept, float", **measured(work, reference, True, reference)})
        for kind, base in bases.items():
            kept = pack(work, f"{kind}-float-{seed}", base, adapter)
            own = pack(work, f"{kind}-own-{seed}", base, _adapter(work, base, kind, seed))
            merged = pack(work, f"{kind}-merged-{seed}", _merged(work, floats, adapter, kind, seed), None)
            for way, folder, with_adapter in zip(
                WAYS, (kept, kept, own, merged), (False, True, True, False), strict=True
            ):
                found = measured(work, folder, with_adapter, reference)
                rows.append({"type": kind, "seed": seed, "way": way, **found})
    return {"schema": 1, "base": plan.base.name, "recipe": list(work.recipe), "rows": rows}


def _base(work: Work, source: Path, kind: str, flags: tuple[str, ...] = ()) -> Path:
    path = work.out / f"base-{kind}.gguf"
    if not path.exists():
        work.say(f"{kind}: exporting the base")
        run_command("export", "base", source, "-o", path, "--type", kind, *flags, *work.few)
    return path


def _adapter(work: Work, base: Path, kind: str, seed: int) -> Path:
    return export(work, base, train(work, base, f"{kind}-{seed}", ("--seed", seed)))


def _merged(work: Work, floats: Path, adapter: Path, kind: str, seed: int) -> Path:
    path = work.out / f"merged-{kind}-{seed}.gguf"
    if not path.exists():
        # What ships as Q4_1 has its embedding in another type; plain q4_1 is the nearest that can be made here
        run_command("export", "merge", floats, adapter, "-o", path, "--type", "q4_1" if kind == SHIPPED else kind)
    return path


def table(found: Mapping[str, Any]) -> str:
    """Markdown: each type and way over all seeds, with the paired difference of the loss from "kept, float"."""
    rows = found["rows"]
    seeds = sorted({row["seed"] for row in rows})
    lines = ["| type | way | loss, nats/token | against kept, float | KL | ROUGE-1 |", "|---|---|---|---|---|---|"]
    for kind in dict.fromkeys(row["type"] for row in rows):
        for way in WAYS:
            mine = [row for row in rows if (row["type"], row["way"]) == (kind, way)]
            if not mine:
                continue
            other = [row for row in rows if (row["type"], row["way"]) == (kind, "kept, float")]
            cells = [mean(_values(mine, key)).as_dict() for key in ("nll", "kl", "rouge1")]
            nll, kl, rouge = (f"{one['value']:.4f} [{one['low']:.4f}, {one['high']:.4f}]" for one in cells)
            difference = "" if way == "kept, float" else loss_difference(_values(other, "nll"), _values(mine, "nll"))
            lines.append(f"| {kind} | {way} | {nll} | {difference} | {kl} | {rouge} |")
    n = {key: len(rows[0][key]) for key in ("nll", "rouge1")}
    lines += [
        "",
        f"dolly held-out; loss and KL on {n['nll']} answers, ROUGE-1 on {n['rouge1']}; seeds {seeds}, averaged by item",
    ]
    return "\n".join(lines)


def _values(rows: list[dict[str, Any]], key: str) -> list[float]:
    """An item's mean over the seeds, for each item that all rows have."""
    items = sorted(set.intersection(*(set(row[key]) for row in rows)))
    return [sum(row[key][item] for row in rows) / len(rows) for item in items]


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--type", "types", multiple=True, default=("q8_0", "q4_0", "q2_k", SHIPPED), show_default=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=(1, 2), show_default=True)
@work_options
@json_option
def main(base: Path, types: tuple[str, ...], seeds: tuple[int, ...], work: Work, as_json: bool) -> None:
    """Keep or merge an adapter, train it on float or quantised weights: loss, KL and ROUGE-1 of each, paired.

    \b
    Example:
      python -m slm_edge.benchmarks.experiments.keep_or_merge base.gguf --type q4_0 --type q2_k --data DATA -o thesis
    """
    found = run(Plan(base, types, seeds, work))
    write_json(work.out / "thesis.json", found)
    emit({"rows": len(found["rows"])}, as_json, table(found))


if __name__ == "__main__":
    main()
