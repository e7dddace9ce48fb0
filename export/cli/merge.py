"""`slm-edge export merge`: an adapter added into its base."""

from pathlib import Path

import click

from ...edge.console import emit, json_option, note
from ...edge.written import human_bytes
from ..base.quantize import TYPES, find_type

A_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("base", type=A_FILE)
@click.argument("adapter", type=A_FILE)
@click.option("-o", "--output", required=True, type=A_FILE, help="The GGUF file to write.")
@click.option("--type", "type_name", required=True, metavar="TYPE", help=f"{', '.join(TYPES)}.")
@click.option("--scale", default=1.0, show_default=True, help="Scale of the adapter, on top of its own.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def merge(base: Path, adapter: Path, output: Path, type_name: str, scale: float, force: bool, as_json: bool) -> None:
    """Merge ADAPTER into BASE (both GGUF), to ship a single task.

    A merged base cannot swap, and is quantised once more than an adapter beside its base; --type f16 keeps all.

    \b
    Example:
      slm-edge export merge base.gguf math.gguf -o base-math.gguf --type q4_0
    """
    from ..base.merge import merge as merge_files

    kind = find_type(type_name)
    assert kind is not None
    result = merge_files(base, adapter, output, kind, scale, force=force)
    for line in result.notes:
        note(f"note: {line}")
    emit(
        result.as_dict(),
        as_json,
        f"{result.path}: {result.n_parameters / 1e6:,.1f} M parameters, {result.type}, "
        f"{human_bytes(result.size_bytes)}, in {result.seconds_s:.1f} s",
    )
