"""The command; see `--help`."""

import contextlib
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final

import click

from .folder_kinds import PackKind, RouterKind
from .gguf_kinds import AdapterKind, BaseKind
from .grammar_kinds import GrammarKind
from .request_kinds import RequestKind
from .runner import Finding, Run, Target
from .text_kinds import RowsKind, SchemaKind, TemplateKind

KINDS: Final[dict[str, type[Target]]] = {
    kind.kind: kind
    for kind in (
        *(BaseKind, AdapterKind, RouterKind, PackKind),
        *(TemplateKind, SchemaKind, GrammarKind, RowsKind, RequestKind),
    )
}
_MOST: Final = 10**9


def keep(run: Run, finding: Finding, out: Path) -> Path:
    """Writes a finding and its case's files into a folder of its own, and gives that."""
    place = out / f"{finding.kind}-{finding.seed}-{finding.case}"
    shutil.rmtree(place, ignore_errors=True)
    (place / "case").mkdir(parents=True)
    # A case is made of its number alone; a file that hangs a reader is only written here.
    run.target.make(run.draw(finding.case), place / "case")
    (place / "finding.json").write_text(json.dumps(vars(finding), indent=2) + "\n", encoding="utf-8")
    return place


@click.command()
@click.argument("kinds", nargs=-1, required=True, metavar="KIND...", type=click.Choice([*KINDS]))
@click.option("--minutes", type=float, help="Begin no further case after so long.")
@click.option("--cases", type=click.IntRange(1, _MOST), help="Run so many cases.")
@click.option("--seed", type=int, default=0, show_default=True, help="Other seeds give other cases.")
@click.option("--case", "only", type=click.IntRange(0, _MOST), help="Run this one alone.")
@click.option(
    "--run-every",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="Of what is read, every Nth goes on to llama.cpp.",
)
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for what is found.")
def main(
    kinds: tuple[str, ...],
    minutes: float | None,
    cases: int | None,
    seed: int,
    only: int | None,
    run_every: int,
    out: Path | None,
) -> None:
    """Damage valid files of each KIND and have them read; exit with 1 if a reader died, hung, filled memory or raised.

    Without --minutes and --cases it runs for one minute a kind. A finding is repeated by its --seed and --case. The
    kinds: base, adapter, router, pack, template, schema, grammar, rows, request.
    """
    if minutes is None and cases is None and only is None:
        minutes = 1.0
    numbers = range(cases or _MOST) if only is None else range(only, only + 1)
    n_found = 0
    for kind in kinds:
        begun = time.monotonic()
        run = Run(KINDS[kind](), seed, run_every=1 if only is not None and run_every else run_every)
        run.deadline = None if minutes is None else begun + 60 * minutes
        n_before = n_found
        with (
            tempfile.TemporaryDirectory(prefix="slm-edge-fuzz-") as folder,
            contextlib.closing(run.cases(numbers, Path(folder))) as found,
        ):
            for finding in found:
                n_found += 1
                click.echo(finding)
                if out is not None:
                    click.echo(f"  kept in {keep(run, finding, out)}")
                elif only is not None:
                    click.echo(finding.text)
        ends = ", ".join(f"{end} {n}" for end, n in sorted(run.counts.items()))
        seconds = time.monotonic() - begun
        n_new = n_found - n_before
        click.echo(f"{kind}, seed {seed}: {run.n_cases} cases in {seconds:.0f} s, {n_new} found ({ends})")
    raise SystemExit(1 if n_found else 0)


if __name__ == "__main__":
    main()
