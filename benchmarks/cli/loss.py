"""`slm-edge bench loss`: how likely a task's reference answers are under an adapter."""

from pathlib import Path

import click

from ...edge.cli.options import PackType, data_option, threads_option
from ...edge.console import emit, json_option, progress


@click.command()
@click.argument("task_name", metavar="TASK", default="dolly")
@click.option("--pack", "pack_folder", type=PackType(), help="Pack to measure.  [default: the starter]")
@click.option("--adapter", default="none", show_default=True, metavar="NAME|none")
@click.option(
    "--against", type=click.Path(path_type=Path), help="Pack of the reference; the KL from it is reported too."
)
@click.option(
    "--against-adapter", default="none", show_default=True, metavar="NAME|none", help="Adapter of the reference pack."
)
@data_option("Folder with the task's data.", required=True)
@click.option("--limit", type=click.IntRange(1), help="Items, a fixed random sample.  [default: all]")
@threads_option
@json_option
def loss(
    task_name: str,
    pack_folder: Path | None,
    adapter: str,
    against: Path | None,
    against_adapter: str,
    data: Path,
    limit: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Nats per token of TASK's reference answers; with --against the KL from another pack's answers too.

    \b
    Example:
      slm-edge bench loss dolly --adapter summarize --data DATA --limit 100
      slm-edge bench loss dolly --pack q4 --adapter a --against f16 --against-adapter a --data DATA
    """
    from ...edge.pack.pack import Pack
    from ..likelihood.answer_loss import Side, measure, summary
    from ..tasks.registry import task as task_of

    task = task_of(task_name)
    items = task.items(data)[:limit]
    pack = Pack.open(pack_folder)
    pack.base_path(allow_pull=True)
    reference = None
    if against is not None:
        reference = Side(Pack.open(against), None if against_adapter == "none" else against_adapter)
    with progress(f"{task.name} x {adapter}", len(items), "items") as advance:
        ours = Side(pack, None if adapter == "none" else adapter)
        found = measure(ours, items, reference, threads=threads, on_item=advance)
    means = {name: one.as_dict() for name, one in summary(found).items()}
    text = ", ".join(f"{name} {one['value']:.4f} [{one['low']:.4f}, {one['high']:.4f}]" for name, one in means.items())
    emit(
        {"schema": 1, "task": task.name, "adapter": adapter, "n": len(found), "means": means, "items": found},
        as_json,
        f"{task.name} x {adapter}: {text}; n={len(found)} of {len(items)}",
    )
