"""`slm-edge router`: train, measure, show and use the router; teach it adapters by examples."""

from pathlib import Path

import click

from ..console import emit, json_option
from ..written import human_bytes
from .lazy import Entry, LazyGroup
from .options import PackType

PATH = click.Path(path_type=Path)
COMMANDS = {
    "train": Entry("train.cli.router:train", "Train the router for math, code and summarize.", "train"),
    "eval": Entry("benchmarks.cli.router:evaluate", "Measure a router on sources that it never saw.", "bench"),
    "speed": Entry("benchmarks.cli.router:speed", "Time a router at 3 and at 1,000 adapters.", "bench"),
}


@click.group(cls=LazyGroup, entries=COMMANDS)
def router() -> None:
    """Choose the adapter by the prompt: train, measure, show and teach the router of a pack.

    \b
    Examples:
      slm-edge router choose --explain "How many legs have 3 cats?"
      slm-edge router examples my-pack translate prompts.txt
    """


@router.command()
@click.argument("prompt")
@click.option("--pack", type=PackType(), help="Folder of a pack.  [default: the starter pack]")
@click.option("--explain", is_flag=True, help="Say what decided, feature by feature.")
@json_option
def choose(prompt: str, pack: Path | None, explain: bool, as_json: bool) -> None:
    """Say which adapter would answer PROMPT. No model is loaded.

    \b
    Example:
      slm-edge router choose --explain "Write a haiku about rain"
    """
    from ..pack.pack import Pack
    from ..router.in_pack import open_router

    decision = open_router(Pack.open(pack)).choose(prompt, explain=explain)
    emit(decision.as_dict(), as_json, decision.text())


@router.command()
@click.argument("folder", metavar="[PACK]", required=False, type=PATH)
@json_option
def show(folder: Path | None, as_json: bool) -> None:
    """Show the router of PACK [default: the starter pack]: its tasks, thresholds, and what it was trained on.

    \b
    Example:
      slm-edge router show my-pack --json
    """
    from ..pack.manifest import ROUTER_FILE
    from ..pack.pack import Pack
    from ..router.in_pack import adapters_of, read_pack_router

    pack = Pack.open(folder)
    model = read_pack_router(pack)
    size_bytes = (pack.folder / ROUTER_FILE).stat().st_size
    adapters = adapters_of(model, pack.adapters)
    data = {
        "file": str(pack.folder / ROUTER_FILE),
        "size_bytes": size_bytes,
        "adapters": adapters,
        "added": list(model.added),
        "thresholds": dict(model.thresholds),
        "temperature": model.temperature,
        "about": dict(model.about),
    }
    lines = [f"router of {pack.name}, {human_bytes(size_bytes)}"]
    for task in (*model.tasks, *model.added):
        how = "by examples" if task in model.added else "trained"
        lines.append(
            f"  {task:16} {how:12} from confidence {model.thresholds.get(task, 0.5):.2f}, "
            f"adapter {adapters.get(task, 'not in this pack')}"
        )
    about = [
        model.about.get(key) for key in ("n_prompts", "cross_validated_accuracy", "cross_validated_calibration_error")
    ]
    if all(isinstance(value, int | float) for value in about):
        lines.append(
            f"trained on {about[0]} prompts; cross-validated on them {about[1]:.1%} right, "
            f"calibration error {about[2]:.3f}"
        )
    emit(data, as_json, "\n".join(lines))


@router.command()
@click.argument("folder", metavar="PACK", type=PATH)
@click.argument("file", type=PATH)
@json_option
def put(folder: Path, file: Path, as_json: bool) -> None:
    """Put the router FILE into PACK; `starter` as FILE takes the starter pack's.

    \b
    Example:
      slm-edge router put my-pack starter
    """
    from ..router.file import read_router
    from ..router.in_pack import put_router, starter_router

    known = file == Path("starter") and not file.exists()
    pack = put_router(folder, starter_router() if known else read_router(file))
    emit({"pack": str(pack.folder)}, as_json, f"{pack.folder} has a router")


@router.command()
@click.argument("folder", metavar="PACK", type=PATH)
@click.argument("name")
@click.argument("file", type=PATH)
@json_option
def examples(folder: Path, name: str, file: Path, as_json: bool) -> None:
    """Teach PACK's router the adapter NAME by example prompts: FILE has one a line, or is JSON Lines with "prompt".

    Twenty are enough. Nothing else is trained again. A pack without a router begins with the starter's.

    \b
    Example:
      slm-edge router examples my-pack translate prompts.txt
    """
    from ..router.examples import read_examples
    from ..router.in_pack import learn_examples

    prompts = read_examples(file)
    pack = learn_examples(folder, name, prompts)
    emit(
        {"pack": str(pack.folder), "adapter": name, "n_examples": len(prompts)},
        as_json,
        f"{name} is known to the router",
    )
