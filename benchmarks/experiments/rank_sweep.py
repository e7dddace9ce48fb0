"""One task at several ranks, and the highest cut down after training: loss, score, size and speed side by side.

    python -m slm_edge.benchmarks.experiments.rank_sweep base.gguf --rank 16 --rank 128 --cut 16 --data DATA -o ranks

The task is dolly's. All ranks learn from the same rows in the same order with alpha = 2 rank, so that B·A is scaled
alike. `--cut` and `--energy` are `slm-edge train compress` of the highest rank. Each gets the loss of held-out answers
(nats per token), the KL from the highest rank's adapter, ROUGE-1 of real answers, its file's size in F16, and prompt
and decode speed against the base alone, in turns in one context. Differences are paired, against the highest rank.
Every step is one of our own commands, and one whose result is there is not done again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ...edge.console import emit, json_option
from ...edge.files.atomic import write_json
from ...edge.llama.context import Context
from ...edge.llama.model import Adapter, Model
from ..proofs.adapter_tax import in_turns, ratios
from ..report.reproduce import run_command
from ..stats import mean
from .one_task import Work, export, loss_difference, measured, pack, train, work_options

BASE = "base"
N_PROMPT, N_DECODE = 128, 32


def run(work: Work, base: Path, ranks: tuple[int, ...], cuts: tuple[int, ...], energies: tuple[float, ...], turns: int,
        seed: int) -> dict[str, Any]:  # fmt: skip
    """All rows; each has its name, its measures by item, its size and its speed.

    Raises:
        InputError: base or data are not there.
        SlmEdgeError: a step failed; the next run goes on there.
    """
    work.check(base)
    folders = {
        f"rank {rank}": train(work, base, f"rank-{rank}", ("--rank", rank, "--alpha", 2 * rank, "--seed", seed))
        for rank in sorted(ranks)
    }
    highest = f"rank {max(ranks)}"
    for flag, value in [*(("--rank", rank) for rank in cuts), *(("--energy", share) for share in energies)]:
        folder = work.out / "peft" / f"cut{flag[1:]}-{value}"
        if not folder.exists():
            run_command("train", "compress", folders[highest], "-o", folder, flag, value)
        folders[f"{highest}, cut to {flag[2:]} {value}"] = folder
    files = {name: export(work, base, folder) for name, folder in folders.items()}
    packs = {name: pack(work, folders[name].name, base, file) for name, file in files.items()}
    reference = packs[highest]
    rows: list[dict[str, Any]] = [{"name": BASE, **measured(work, reference, False, reference)}]
    rows += [{"name": name, **measured(work, folder, True, reference)} for name, folder in packs.items()]
    shipped = {name: export(work, base, folder, "f16") for name, folder in folders.items()}
    speeds = _speeds(base, shipped, turns, work.threads)
    for row in rows[1:]:
        row |= {"size_bytes": shipped[row["name"]].stat().st_size, **speeds[row["name"]]}
    return {"schema": 1, "base": base.name, "recipe": list(work.recipe), "turns": turns, "seed": seed,
            "highest": highest, "rows": rows}  # fmt: skip


def _speeds(base: Path, files: Mapping[str, Path], turns: int, threads: int | None) -> dict[str, dict[str, Any]]:
    with Model.load(base) as model:
        sets: dict[str, list[tuple[Adapter, float]]] = {BASE: []}
        sets |= {name: [(model.load_adapter(file), 1.0)] for name, file in files.items()}
        with Context(model, n_ctx_tokens=N_PROMPT + N_DECODE, threads=threads) as context:
            taken = in_turns(context, sets, N_PROMPT, N_DECODE, turns)
    return {name: ratios(taken[BASE], taken[name]) for name in files}


def table(found: Mapping[str, Any]) -> str:
    """The rows as Markdown."""
    rows, highest = found["rows"], found["highest"]
    other = next(row for row in rows if row["name"] == highest)
    lines = [f"| adapter | loss, nats/token | against {highest} | KL from {highest} | ROUGE-1 | MB | prompt | decode |"]
    lines += ["|---" * 8 + "|"]
    for row in rows:
        items = {key: list(row[key].values()) for key in ("nll", "kl", "rouge1")}
        nll, kl, rouge = (mean(values).as_dict() for values in items.values())
        cells = [row["name"], f"{nll['value']:.4f}", "", f"{kl['value']:.4f}"]
        cells += [f"{rouge['value']:.3f} [{rouge['low']:.3f}, {rouge['high']:.3f}]", "", "", ""]
        if row is not other:
            cells[2] = loss_difference([other["nll"][item] for item in row["nll"]], items["nll"])
        if "size_bytes" in row:
            cells[5] = f"{row['size_bytes'] / 1e6:.1f}"
            cells[6:] = [
                f"x{one['median']:.2f} ({one['min']:.2f}-{one['max']:.2f})"
                for one in (row["prefill_ratio"], row["decode_ratio"])
            ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"dolly held-out; loss and KL on {len(other['nll'])} answers, ROUGE-1 on {len(other['rouge1'])}; seed "
        f"{found['seed']}; sizes in F16; speed: the base's seconds over the adapter's, {found['turns']} turns, "
        f"{N_PROMPT} tokens of prompt, {N_DECODE} decoded",
    ]
    return "\n".join(lines)


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--rank", "ranks", multiple=True, type=click.IntRange(1), default=(16, 32, 64, 128), show_default=True)
@click.option("--cut", "cuts", multiple=True, type=click.IntRange(1), default=(16,), show_default=True,
              help="Rank that the highest is cut to.")  # fmt: skip
@click.option("--energy", "energies", multiple=True, type=float, default=(0.9,), show_default=True,
              help="Energy that the highest is cut to.")  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--runs", "turns", type=click.IntRange(1), default=5, show_default=True, help="Turns of the speeds.")
@work_options
@json_option
def main(
    base: Path,
    ranks: tuple[int, ...],
    cuts: tuple[int, ...],
    energies: tuple[float, ...],
    seed: int,
    turns: int,
    work: Work,
    as_json: bool,
) -> None:
    """Train one task at several ranks, cut the highest, and set loss, score, size and speed side by side.

    \b
    Example:
      python -m slm_edge.benchmarks.experiments.rank_sweep base.gguf --rank 16 --rank 128 --data DATA -o ranks
    """
    found = run(work, base, ranks, cuts, energies, turns, seed)
    write_json(work.out / "ranks.json", found)
    emit({"rows": len(found["rows"])}, as_json, table(found))


if __name__ == "__main__":
    main()
