"""The memory plan against what a session really takes, model by model.

    python -m slm_edge.benchmarks.proofs.memory_plan base.gguf other.gguf
    python -m slm_edge.benchmarks.proofs.memory_plan --like Llama-3.2-1B.gguf --type q4_0 --type q8_0
    python -m slm_edge.benchmarks.proofs.memory_plan --shape llama-3.2-1b --shape llama-3.2-3b --quick
    python -m slm_edge.benchmarks.proofs.memory_plan base.gguf --rank 16 --rank 128
    python -m slm_edge.benchmarks.proofs.memory_plan base.gguf --ceiling --rank 16

Each row is a process of its own that opens a session and computes a prompt of more than 512 tokens. Measured is the
peak of its resident set as the kernel counts it (VmHWM), less pages that are mapped twice at the end, which is what the
plan is about. For a published shape the plan is that of `slm-edge devices fit --model`, which sees no file. With
`--rank` a random adapter is swapped with the base, prefixes are kept up to a budget, and two answers are begun at once
in a second context. With `--ceiling` the same is run in a control group of its own (root is needed), whose limit the
kernel enforces by killing: once at the planned size, where it must end well, and once at 60 % of the least plan, where
it must be refused with exit code 4. RLIMIT_DATA is no honest ceiling: it counts what is reserved and never touched.
"""

import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from ...devices.catalogue.shapes import find_shape
from ...devices.catalogue.table_view import table_of
from ...edge.console import emit, json_option
from ...edge.errors import DoesNotFitError
from ...edge.gguf.base import BaseInfo
from ...edge.gguf.file import GgufFile
from ...edge.gguf.types import GgmlType
from ...edge.llama.model import cpu_features, faster_as_stored
from ...edge.memory.fit import fit, plan_session
from ...edge.memory.plan import MemoryPlan, plan_memory
from ...edge.options import EngineOptions
from ...edge.system.machine import CGROUP
from ...edge.written import human_bytes
from ..made.random_adapter import write_random_adapter
from ..made.random_base import make_base, make_shape

CHILD = """
import json, sys
from slm_edge.edge.errors import DoesNotFitError
from slm_edge.edge.system.machine import peak_memory_bytes
from slm_edge.edge.session.session import Session
path, adapters, options = json.loads(sys.argv[1])
try:
    with Session.of_files(path, {name: (file, None) for name, file in adapters.items()}, **options) as session:
        for i, name in enumerate((None, *adapters) * 2 if adapters else ()):
            # Another beginning each time: every swap leaves a snapshot.
            session.use(name).ask(f"{i}" + " hello" * 130, max_tokens=8, system="")
        # Beyond the first whole batch behind the short chunks, as far as there is room; the KV cache is cleared when it
        # is made, so that more takes time and no memory.
        ten, none = (len(session.prompt_tokens("x" + " hello" * n, system="")) for n in (10, 0))
        PROMPT = " hello" * (min(session.n_ctx_tokens - 40, 540) * 10 // (ten - none))
        answer = session.ask(PROMPT, max_tokens=8, system="")
        if options.get("n_parallel"):
            batcher = session.new_batcher(options["n_parallel"])
            for _ in range(options["n_parallel"]):
                longest = {"max_tokens": session.n_ctx_tokens}
                batcher.submit(session.request(PROMPT, session.choice, "", longest), session.choice)
            for _ in range(10):
                batcher.advance()
        print(json.dumps({"peak_bytes": peak_memory_bytes(), "n_prompt_tokens": answer.n_prompt_tokens}))
except DoesNotFitError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
SETUPS: tuple[dict[str, Any], ...] = (
    {"mmap": True, "repack": True},
    {"mmap": False, "repack": True},
    {"mmap": True, "repack": False},
    {"mmap": True, "repack": True, "both_layouts": True},
    {"mmap": False, "repack": True, "kv_type": "q8_0", "n_ctx_tokens": 512},
)
# Everything at once: an adapter, kept prefixes up to their budget, and answers at once in a second context.
FULL: EngineOptions = {"n_ctx_tokens": 1024, "prefix_budget_bytes": 8 << 20, "n_parallel": 2}


def run(
    path: Path, options: Mapping[str, Any], limit_bytes: int | None = None, adapter: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The child process, in a control group of its own where a limit is given."""
    adapters = {} if adapter is None else {"a": str(adapter)}
    command = [sys.executable, "-c", CHILD, json.dumps([str(path), adapters, options])]
    if limit_bytes is None:
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    with control_group(limit_bytes) as group:
        # The shell puts itself into the group and becomes the child.
        enter = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group)]
        return subprocess.run([*enter, *command], capture_output=True, encoding="utf-8", check=False)


@contextlib.contextmanager
def control_group(limit_bytes: int) -> Iterator[Path]:
    """A new control group with a memory limit, of version 1 or 2; removed afterwards. OSError if it cannot be."""
    first = (CGROUP / "memory" / "memory.limit_in_bytes").exists()
    group = Path(tempfile.mkdtemp(prefix="slm-edge-", dir=CGROUP / "memory" if first else CGROUP))
    try:
        (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit_bytes))
        yield group
    finally:
        group.rmdir()


def can_make_groups() -> bool:
    """Whether this user may make control groups with a memory limit."""
    try:
        with control_group(1 << 30):
            return True
    except OSError:
        return False


def compare(path: Path, setup: dict[str, Any], threads: int, table: GgufFile | None = None) -> dict[str, Any]:
    """One row: the plan, of `table` if one is given, and what was measured."""
    plan = plan_memory(table or BaseInfo.open(path), n_threads=threads, **setup)
    done = run(path, {**vars(plan.choices), "threads": threads})
    return _row(path, plan, done)


def compare_full(path: Path, rank: int, threads: int) -> dict[str, Any]:
    """The same with a random adapter on all linear layers, and `FULL`."""
    options: EngineOptions = {**FULL, "threads": threads}
    with _adapter(path, rank) as adapter:
        plan = plan_session(BaseInfo.open(path), options, [adapter.stat().st_size])
        done = run(path, options, adapter=adapter)
    return {"rank": rank, **_row(path, plan, done)}


def _row(path: Path, plan: MemoryPlan, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    if done.returncode:
        raise click.ClickException(f"{path}: the child failed\n{done.stderr}")
    peak_bytes = json.loads(done.stdout)["peak_bytes"]
    return {
        "model": path.name,
        "plan": plan.as_dict(),
        "peak_bytes": peak_bytes,
        "plan_over_peak": plan.total_bytes / peak_bytes,
    }


@contextlib.contextmanager
def _adapter(base: Path, rank: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="slm-edge-") as folder:
        path = Path(folder) / "a.gguf"
        write_random_adapter(BaseInfo.open(base), path, rank=rank)
        yield path


def ceiling(path: Path, threads: int, rank: int | None = None) -> dict[str, Any]:
    """Exit codes under a limit at the plan and at 60 % of the least plan that there is.

    Args:
        rank: with an adapter of this rank and `FULL`; None: the base alone.
    """
    base = BaseInfo.open(path)
    options: EngineOptions = {"mmap": False, "threads": threads}
    if rank:
        options = {**FULL, **options}
    with _adapter(path, rank) if rank else contextlib.nullcontext() as adapter:
        sizes = [adapter.stat().st_size] if adapter else []
        planned_bytes = plan_session(base, options, sizes).total_bytes
        adapters: dict[str, Any] = {"adapters_bytes": sum(sizes), "n_adapters": len(sizes)}
        least_bytes = _least(base, threads, adapters).total_bytes
        at_plan = run(path, options, planned_bytes, adapter)
        below = run(path, {"threads": threads}, round(0.6 * least_bytes), adapter)
    return {
        "model": path.name,
        "rank": rank,
        "planned_bytes": planned_bytes,
        "exit_at_plan": at_plan.returncode,
        "least_bytes": least_bytes,
        "exit_at_60_percent": below.returncode,
        "refusal": below.stderr.strip(),
    }


def _least(base: BaseInfo, threads: int, adapters: dict[str, Any]) -> MemoryPlan:
    """The smallest plan that `fit` knows."""
    low, high = 1 << 20, 1 << 40
    while high - low > 1 << 20:
        middle = (low + high) // 2
        try:
            fit(base, middle, n_threads=threads, **adapters)
            high = middle
        except DoesNotFitError:
            low = middle
    return fit(base, high, n_threads=threads, **adapters)


Models = Iterator[tuple[Path, GgufFile | None]]


def _models(bases: tuple[Path, ...], like: Path | None, shapes: tuple[str, ...], types: tuple[str, ...]) -> Models:
    """Files, made where they are not there, with the table to plan from where that is not the file's own."""
    yield from ((base, None) for base in bases)
    if like is not None:
        for name in types or ("q4_0", "q8_0"):
            with tempfile.TemporaryDirectory(dir=like.parent) as folder:
                kind = GgmlType[name.upper()]
                # As llama.cpp's quantiser does for a head below 8 bits.
                head = GgmlType.Q6_K if name in ("q4_0", "q4_k") else None
                yield make_base(Path(folder) / f"{like.stem}-{name}.gguf", like=like, type=kind, head=head), None
    for shape, name in itertools.product(map(find_shape, shapes), types or ("q4_0", "q4_k_m", "q8_0")):
        with tempfile.TemporaryDirectory(prefix="slm-edge-") as folder:
            yield make_shape(Path(folder) / f"{shape.name}-{name}.gguf", shape, name), table_of(shape, name)


@click.command()
@click.argument("bases", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--like", type=click.Path(exists=True, path_type=Path), help="Random weights in the shape of this base.")
@click.option("--shape", "shapes", multiple=True, help="Random weights in the shape of this published model.")
@click.option(
    "--type", "types", multiple=True, help="Of the random weights.  [default: q4_0, q8_0; q4_k_m with --shape]"
)
@click.option("--quick", is_flag=True, help="Repacked weights, mapped and read; no others.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--rank", "ranks", multiple=True, type=int, help="With an adapter of this rank, and all else at once.")
@click.option("--ceiling", "with_ceiling", is_flag=True, help="Run in a limited control group instead.")
@json_option
def main(
    bases: tuple[Path, ...],
    like: Path | None,
    shapes: tuple[str, ...],
    types: tuple[str, ...],
    quick: bool,
    threads: int,
    ranks: tuple[int, ...],
    with_ceiling: bool,
    as_json: bool,
) -> None:
    """Compares plan and measurement for each base in four setups, or five."""
    rows: list[dict[str, Any]] = []
    for path, table in _models(bases, like, shapes, types):
        if with_ceiling:
            for rank in ranks or (None,):
                rows.append(ceiling(path, threads, rank))
                emit(rows[-1], False, _ceiling_line(rows[-1])) if not as_json else None
            continue
        for rank in ranks:
            rows.append(compare_full(path, rank, threads))
            emit(rows[-1], False, _line(rows[-1])) if not as_json else None
        slow = faster_as_stored(table or GgufFile.open(path), cpu_features())
        for setup in () if ranks else SETUPS[:2] if quick else SETUPS:
            if setup.get("both_layouts") and not slow:
                continue
            rows.append(compare(path, setup, threads, table))
            emit(rows[-1], False, _line(rows[-1])) if not as_json else None
    if as_json:
        emit(rows, True, "")
    if with_ceiling and any(row["exit_at_plan"] != 0 or row["exit_at_60_percent"] != 4 for row in rows):
        sys.exit(1)


def _line(row: dict[str, Any]) -> str:
    choices = row["plan"]["choices"]
    layout = "both  " if choices["both_layouts"] else "repack" if choices["repack"] else "plain "
    setup = f"{'mmap' if choices['mmap'] else 'read'} {layout}"
    setup += f" rank {row['rank']:3}" if "rank" in row else ""
    return (
        f"{row['model']:44} {setup} {choices['n_ctx_tokens']:5} {choices['kv_type']:4}  "
        f"plan {human_bytes(row['plan']['total_bytes']):>10}  peak {human_bytes(row['peak_bytes']):>10}  "
        f"{100 * (row['plan_over_peak'] - 1):+5.1f} %"
    )


def _ceiling_line(row: dict[str, Any]) -> str:
    rank = f"rank {row['rank']:3} " if row["rank"] else ""
    return (
        f"{row['model']:44} {rank}at {human_bytes(row['planned_bytes'])}: exit {row['exit_at_plan']};  "
        f"at 60 % of {human_bytes(row['least_bytes'])}: exit {row['exit_at_60_percent']}"
    )


if __name__ == "__main__":
    main()
