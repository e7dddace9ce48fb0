"""Keep the adapter or merge it, train it on the float weights or on the quantised ones: measured, type by type.

    python -m slm_edge.benchmarks.thesis base.gguf --type q4_0 --type q2_k --seed 1 --seed 2 --data DATA -o thesis

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

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from ..edge.commands_options import data_option, threads_option
from ..edge.console import emit, json_option, note
from ..edge.errors import InputError
from ..edge.files import make_folder, write_json
from .answers import parsed
from .reproduce import TRAINING, run_command
from .stats import mean, paired_means

SHIPPED: Final = "shipped"
WAYS: Final = ("base", "kept, float", "kept, own", "merged")
TASK: Final = "summarize"


@dataclass(frozen=True)
class Plan:
    """What is run; `recipe` are flags of `slm-edge train summarize`, `n_loss` and `n_answers` numbers of items."""

    base: Path
    types: tuple[str, ...]
    seeds: tuple[int, ...]
    data: Path
    out: Path
    recipe: tuple[str, ...]
    n_loss: int
    n_answers: int
    threads: int | None
    say: Callable[[str], object] = note

    @property
    def few(self) -> list[object]:
        """The flag for threads."""
        return [] if self.threads is None else ["--threads", self.threads]


def run(plan: Plan) -> dict[str, Any]:
    """All cells; each row has type, seed, way and its measures by item.

    Raises:
        InputError: base or data are not there.
        SlmEdgeError: a step failed; the next run goes on there.
    """
    missing = [str(path) for path in (plan.base, *(plan.data / name for name in TRAINING[TASK])) if not path.exists()]
    if missing:
        raise InputError("what it is made from is not there", problems=missing)
    make_folder(plan.out)
    floats = _base(plan, plan.base, "f16", ("--allow-requantize",))
    bases = {kind: plan.base if kind == SHIPPED else _base(plan, floats, kind) for kind in plan.types}
    rows: list[dict[str, Any]] = []
    for seed in plan.seeds:
        adapter = _adapter(plan, floats, "f16", seed)
        reference = _pack(plan, f"f16-{seed}", floats, adapter)
        rows.append({"type": "f16", "seed": seed, "way": "kept, float", **_measured(plan, reference, True, reference)})
        for kind, base in bases.items():
            kept = _pack(plan, f"{kind}-float-{seed}", base, adapter)
            own = _pack(plan, f"{kind}-own-{seed}", base, _adapter(plan, base, kind, seed))
            merged = _pack(plan, f"{kind}-merged-{seed}", _merged(plan, floats, adapter, kind, seed), None)
            for way, pack, with_adapter in zip(
                WAYS, (kept, kept, own, merged), (False, True, True, False), strict=True
            ):
                rows.append({"type": kind, "seed": seed, "way": way, **_measured(plan, pack, with_adapter, reference)})
    return {"schema": 1, "base": plan.base.name, "recipe": list(plan.recipe), "rows": rows}


def _base(plan: Plan, source: Path, kind: str, flags: tuple[str, ...] = ()) -> Path:
    path = plan.out / f"base-{kind}.gguf"
    if not path.exists():
        plan.say(f"{kind}: exporting the base")
        run_command("export", "base", source, "-o", path, "--type", kind, *flags, *plan.few)
    return path


def _adapter(plan: Plan, base: Path, kind: str, seed: int) -> Path:
    peft, file = plan.out / "peft" / f"{kind}-{seed}", plan.out / f"adapter-{kind}-{seed}.gguf"
    if not (peft / "adapter_model.safetensors").exists():
        plan.say(f"{kind}, seed {seed}: training")
        make_folder(peft.parent)
        words: list[object] = ["train", TASK, "--base", base, "-o", peft, "--seed", seed, *plan.recipe, *plan.few]
        for name in TRAINING[TASK]:
            words += ["--data", plan.data / name]
        run_command(*words)
    if not file.exists():
        run_command("export", "lora", peft, "--base", base, "-o", file, "--type", "f32")
    return file


def _merged(plan: Plan, floats: Path, adapter: Path, kind: str, seed: int) -> Path:
    path = plan.out / f"merged-{kind}-{seed}.gguf"
    if not path.exists():
        # What ships as Q4_1 has its embedding in another type; plain q4_1 is the nearest that can be made here
        run_command("export", "merge", floats, adapter, "-o", path, "--type", "q4_1" if kind == SHIPPED else kind)
    return path


def _pack(plan: Plan, name: str, base: Path, adapter: Path | None) -> Path:
    folder = plan.out / "packs" / name
    if not folder.exists():
        make_folder(folder.parent)
        words: list[object] = ["pack", "build", "-o", folder, "--base", base, "--no-copy-base", "--default", "none"]
        run_command(*words, *([] if adapter is None else ["--adapter", f"{TASK}={adapter}"]))
    return folder


def _measured(plan: Plan, pack: Path, with_adapter: bool, reference: Path) -> dict[str, dict[str, float]]:
    """Item -> value, for nll, kl and rouge1."""
    name = TASK if with_adapter else "none"
    file = plan.out / "measured" / f"{pack.name}-{name}.json"
    if not file.exists():
        plan.say(f"{pack.name}, {name}: measuring")
        common: list[object] = ["--pack", pack, "--adapter", name, "--data", plan.data, *plan.few, "--json"]
        against = ["--against", reference, "--against-adapter", TASK]
        loss = json.loads(run_command("bench", "loss", "dolly", *common, "--limit", plan.n_loss, *against))
        out = plan.out / "answers" / pack.name
        make_folder(out.parent)
        run_command("bench", "scores", "dolly", *common, "--limit", plan.n_answers, "--out", out)
        found = {key: {item: row[key] for item, row in loss["items"].items()} for key in ("nll", "kl")}
        write_json(
            make_folder(file.parent) / file.name, {**found, "rouge1": _rouge(out, None if name == "none" else name)}
        )
    values: dict[str, dict[str, float]] = json.loads(file.read_text(encoding="utf-8"))
    return values


def _rouge(out: Path, adapter: str | None) -> dict[str, float]:
    (path,) = (out / "answers").glob(f"dolly.{adapter or 'base'}.*.jsonl")
    return {record.id: record.scores["rouge1"] for record in parsed(path.read_bytes(), path)[1]}


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
            difference = "" if way == "kept, float" else _difference(mine, other)
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


def _difference(mine: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    """Mean paired difference of the loss with its 95 % interval."""
    found = paired_means(_values(other, "nll"), _values(mine, "nll")).difference
    return f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--type", "types", multiple=True, default=("q8_0", "q4_0", "q2_k", SHIPPED), show_default=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=(1, 2), show_default=True)
@click.option("--recipe", default="--steps 40", show_default=True, help="Flags of `slm-edge train summarize`.")
@click.option("--n-loss", type=click.IntRange(2), default=100, show_default=True, help="Answers that are scored.")
@click.option("--n-answers", type=click.IntRange(2), default=60, show_default=True, help="Answers that are asked for.")
@data_option("Folder with dolly/.", required=True)
@threads_option
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for all that is made.")
@json_option
def main(
    base: Path,
    types: tuple[str, ...],
    seeds: tuple[int, ...],
    recipe: str,
    n_loss: int,
    n_answers: int,
    data: Path,
    threads: int | None,
    out: Path,
    as_json: bool,
) -> None:
    """Keep or merge an adapter, train it on float or quantised weights: loss, KL and ROUGE-1 of each, paired.

    \b
    Example:
      python -m slm_edge.benchmarks.thesis base.gguf --type q4_0 --type q2_k --data DATA -o thesis
    """
    plan = Plan(base, types, seeds, data, out, tuple(recipe.split()), n_loss, n_answers, threads)
    found = run(plan)
    write_json(out / "thesis.json", found)
    emit({"rows": len(found["rows"])}, as_json, table(found))


if __name__ == "__main__":
    main()
