"""How long `slm-edge run` takes to its first token, as a whole process, beside llama.cpp's own command.

    python -m slm_edge.benchmarks.proofs.cold_start base.gguf --beside llama-completion
    python -m slm_edge.benchmarks.proofs.cold_start base.gguf --lora adapter.gguf --beside llama-completion --runs 20

Both get the same file, prompt and chat template, and answer with one token; in turns, after one run of each
that is not counted, so that the file is in memory and what is proved once is known. Wall time counts from the start of
the process to the first byte of its answer; processor time is that of the whole process, which other processes disturb
less. The difference is ours less the other's in the same turn; the bound is on its median, in wall time. `--beside`
takes llama-cli or llama-completion, whose options are the same here, or llama-simple, which has no chat template, no
sampler and no adapters, and so starts sooner than they can; without it ours is timed alone.
Prints a line for each and one JSON document; ends with 1 if the bound is missed.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import click

from ...edge.errors import EngineError
from ...edge.system.load import OthersCores
from ..stats import spread

BOUND_S: Final = 0.15
PROMPT: Final = "Name a colour."


def timed(command: list[str]) -> dict[str, float]:
    """Seconds of a process to the first byte that it prints, and of processor time to its end.

    Raises:
        EngineError: it printed nothing, or failed.
    """
    # A file, since llama.cpp says more there than a pipe holds while nobody reads it.
    with tempfile.TemporaryFile() as errors:
        began_s = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, bufsize=0)
        assert process.stdout is not None
        first = process.stdout.read(1)
        first_s = time.perf_counter() - began_s
        while process.stdout.read(1 << 16):
            pass
        # Not `wait`, which does not tell what the process used.
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    if process.returncode or not first:
        raise EngineError(f"{command[0]} ended with {process.returncode}", problems=said.strip().splitlines()[-3:])
    return {"first_token_s": first_s, "processor_s": used.ru_utime + used.ru_stime}


def commands(base: Path, lora: Path | None, beside: str | None, given: list[str]) -> dict[str, list[str]]:
    """What is run, by its name; `given` are options that both have."""
    same = ["-m", str(base), "-p", PROMPT, "-n", "1", *given, *(["--lora", str(lora)] if lora else [])]
    found = {"slm-edge": [sys.executable, "-m", "slm_edge.edge", "run", *same]}
    if beside is not None:
        # Its answer alone goes to stdout. Its warm-up is left out, as ours has none.
        if Path(beside).name == "llama-simple":
            return found | {"llama-simple": [beside, "-m", str(base), "-n", "1", PROMPT]}
        own = "--jinja -cnv -st --temp 0 --no-display-prompt --no-warmup --simple-io"
        found[Path(beside).name] = [beside, *same, *own.split()]
    return found


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--lora", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A GGUF adapter of BASE.")
@click.option("--beside", help="llama.cpp's program.")
@click.option("--runs", type=click.IntRange(1), default=15, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of both.  [default: each chooses]")
@click.option("--context", type=click.IntRange(64), default=2048, show_default=True, help="Tokens.")
def main(base: Path, lora: Path | None, beside: str | None, runs: int, threads: int | None, context: int) -> None:
    """Time whole processes to their first token."""
    if lora is not None and beside is not None and Path(beside).name == "llama-simple":
        raise click.UsageError("llama-simple takes no adapter.")
    both = commands(base, lora, beside, ["-c", str(context), *(["--threads", str(threads)] if threads else [])])
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in both}
    for command in both.values():
        timed(command)
    others = OthersCores()
    for turn in range(runs):
        # Who goes first changes, for what the one before leaves behind.
        for name in sorted(both, reverse=bool(turn % 2)):
            taken[name].append(timed(both[name]))
    document: dict[str, Any] = {"base": base.name, "lora": lora.name if lora else None, "runs": runs}
    document |= {"others_cores": round(others(), 2), "results": {}, "difference": {}}
    for name, rows in taken.items():
        document["results"][name] = {what: spread([row[what] for row in rows]) for what in rows[0]}
        shown = document["results"][name]["first_token_s"]
        used = document["results"][name]["processor_s"]["median"]
        click.echo("{}: {median:.3f} s ({min:.3f} to {max:.3f}), ".format(name, **shown) + f"processor {used:.3f} s")
    missed = False
    if beside is not None:
        ours, other = taken.values()
        for what in ("first_token_s", "processor_s"):
            less = spread([a[what] - b[what] for a, b in zip(ours, other, strict=True)])
            document["difference"][what] = less
            click.echo("{}: ours takes {median:+.3f} s more ({min:+.3f} to {max:+.3f})".format(what, **less))
        document["bound_s"] = BOUND_S
        missed = document["difference"]["first_token_s"]["median"] > BOUND_S
    click.echo(json.dumps(document))
    if missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
