"""`slm-edge bench samples`: judges a samples.jsonl of HumanEval, whoever made it, in the sandbox."""

from pathlib import Path

import click

from ...edge.cli.options import data_option
from ...edge.console import emit, json_option, progress


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--problems",
    type=click.Path(path_type=Path),
    help="HumanEval.jsonl or .jsonl.gz.  [default: humaneval/HumanEval.jsonl.gz in --data]",
)
@data_option("Data folder.")
@click.option(
    "--k", "ks", type=click.IntRange(1), multiple=True, help="pass@k; may be given again.  [default: 1 10 100]"
)
@click.option("--workers", type=click.IntRange(1, 256), help="Programs run at once.  [default: one per CPU]")
@click.option("--allow-unsafe", is_flag=True, help="Run the programs even where this system cannot confine them.")
@json_option
def samples(
    file: Path,
    problems: Path | None,
    data: Path | None,
    ks: tuple[int, ...],
    workers: int | None,
    allow_unsafe: bool,
    as_json: bool,
) -> None:
    """Judge FILE, a samples.jsonl as HumanEval's own script reads it: pass@k by the unbiased estimator.

    FILE_results.jsonl gets every sample with what became of it, as that script writes it.

    \b
    Example:
      slm-edge bench samples bench/samples/humaneval.code.jsonl --data DATA
    """
    from ...edge.errors import InputError
    from ..report.samples_file import KS, evaluate, read_samples, summary, write_rows
    from ..sandbox import sandbox as code_sandbox
    from ..tasks.humaneval import judging_problems

    if problems is None and data is None:
        raise InputError("the problems are not named", hint="--problems HumanEval.jsonl.gz, or --data DATA")
    if problems is None:
        assert data is not None
        problems = data / "humaneval" / "HumanEval.jsonl.gz"
    known = judging_problems(problems)
    rows = read_samples(file, known)
    code_sandbox.allow_unsafe(allow_unsafe)
    with progress("judging", total=len(rows), unit="samples") as advance:
        results = evaluate(rows, known, workers=workers, on_done=advance)
    written = write_rows(file.with_name(f"{file.name}_results.jsonl"), results)
    found = summary(results, ks or KS)
    lines = [f"{found['n']} problems, {found['n_samples']} samples; {written}"]
    lines += [
        f"{name}: {100 * value['value']:.2f} % [{100 * value['low']:.2f}, {100 * value['high']:.2f}]"
        for name, value in found.items()
        if name.startswith("pass@")
    ]
    emit({**found, "results": str(written)}, as_json, "\n".join(lines))
