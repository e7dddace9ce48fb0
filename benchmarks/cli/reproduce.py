"""`slm-edge bench reproduce`: train, export, pack and score on one base; the table beside the published row."""

from pathlib import Path

import click

from ...edge.cli.options import data_option, threads_option
from ...edge.console import emit, json_option, note


@click.command()
@click.option("--base", type=click.Path(path_type=Path), required=True, help="A GGUF, or a Hugging Face folder.")
@click.option("--base-type", default="q4_k_m", show_default=True, help="Type that a folder is exported as.")
@click.option("--rank", "ranks", type=click.IntRange(1), multiple=True, help="May be given again.  [default: 128]")
@data_option("Folder with gsm8k/, mbpp/, dolly/, humaneval/.", required=True)
@click.option("--steps", type=click.IntRange(1), help="Training steps.  [default: one pass over the data]")
@click.option("--limit", type=click.IntRange(1), help="Items of each benchmark.  [default: all]")
@click.option(
    "--samples", type=click.IntRange(1), default=20, show_default=True, help="Samples of each HumanEval problem."
)
@click.option("--max-tokens", type=click.IntRange(1), help="Longest answer.  [default: each task's own]")
@click.option(
    "--train", "train", multiple=True, metavar="FIELD=VALUE", help="Field of the recipe, e.g. lr=5e-4; repeatable."
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of the training.")
@threads_option
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for everything that is made.")
@json_option
def reproduce(
    base: Path,
    base_type: str,
    ranks: tuple[int, ...],
    data: Path,
    steps: int | None,
    limit: int | None,
    samples: int,
    max_tokens: int | None,
    train: tuple[str, ...],
    seed: int,
    threads: int | None,
    out: Path,
    as_json: bool,
) -> None:
    """Train, export, pack and score adapters of some ranks; print pass@1, ROUGE-1 and exact match beside the source's.

    Runs slm-edge's own commands, one after the other. The same command continues where it stopped; more ranks, items or
    samples can be added to the same folder. Missing data is an error before anything begins.
    The folder gets rank-N/ with adapters, pack and answers, reproduce.json and reproduce.md.

    \b
    Example:
      slm-edge bench reproduce --base base.gguf --rank 16 --rank 128 --data DATA -o again
    """
    from ...edge.files.atomic import atomic_file, write_json
    from ..report.reproduce import Plan, table
    from ..report.reproduce import reproduce as run

    plan = Plan(
        base=base,
        ranks=tuple(dict.fromkeys(ranks)) or (128,),
        data=data,
        out=out,
        base_type=base_type,
        steps=steps,
        limit=limit,
        samples=samples,
        max_tokens=max_tokens,
        threads=threads,
        seed=seed,
        train=train,
    )
    found = run(plan, note)
    text = table(found)
    write_json(out / "reproduce.json", found)
    with atomic_file(out / "reproduce.md") as aside:
        aside.write_text(text + "\n", encoding="utf-8")
    emit(found, as_json, text)
