"""The router inside a pack: opening it, putting one in, adding an adapter to it by examples, taking one out.

    router = open_router(Pack.open("my-pack"))
    router.choose("How many legs have 3 cats?").adapter

A task of the router belongs to the adapter of that name, else to the first whose task card names it.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import InputError
from ..pack.manifest import ROUTER_FILE
from ..pack.pack import Pack, PackedAdapter, check_packed, starter_folder
from ..pack.write import add_files
from .examples import with_examples, without
from .file import RouterModel, read_router, write_router
from .router import Router

_HINT = "slm-edge router train --pack PACK, or slm-edge router put PACK, gives it one"


def open_router(pack: Pack | None, adapters: Mapping[str, PackedAdapter] | None = None) -> Router:
    """The pack's router, its bytes checked.

    Args:
        pack: None if there is none, a session over loose files.
        adapters: those that it may choose; None: all of the pack.

    Raises:
        InputError: there is no pack, it has no router, or none of the adapters is known to it.
        DamagedError: its bytes changed.
        UnsupportedError: as `file.read_router`.
    """
    if pack is None:
        raise InputError("a session over loose files has no router", hint="open a pack")
    model = read_pack_router(pack)
    names = adapters_of(model, pack.adapters if adapters is None else adapters)
    if not names:
        known = ", ".join((*model.tasks, *model.added))
        raise InputError(
            f"the router knows none of the pack's adapters; it knows {known}",
            where=pack.folder,
            hint="slm-edge router examples PACK NAME FILE teaches it one by examples",
        )
    return Router(model, names)


def read_pack_router(pack: Pack) -> RouterModel:
    """What the pack's router file holds; errors as `open_router`."""
    if ROUTER_FILE not in pack.manifest.files:
        raise InputError("the pack has no router, which 'auto' needs", where=pack.folder, hint=_HINT)
    path = pack.folder / ROUTER_FILE
    check_packed(path, pack.manifest.files[ROUTER_FILE])
    return read_router(path)


def adapters_of(model: RouterModel, adapters: Mapping[str, PackedAdapter]) -> dict[str, str]:
    """The router's tasks and added names that the adapters cover, each with the adapter's name."""
    found = {}
    for task in model.tasks:
        by_card = [name for name, adapter in adapters.items() if adapter.card.task == task and name not in model.added]
        if task in adapters:
            found[task] = task
        elif by_card:
            found[task] = by_card[0]
    return found | {name: name for name in model.added if name in adapters}


def starter_router() -> RouterModel:
    """The router of the starter pack: for math, code and summarize."""
    return read_pack_router(Pack.open(starter_folder()))


def put_router(folder: Path, model: RouterModel) -> Pack:
    """Puts a router into a pack, in place of the one that is there; raises as `pack.write.add_files`."""
    with tempfile.TemporaryDirectory() as aside:
        path = Path(aside) / ROUTER_FILE
        write_router(path, model)
        return add_files(folder, {ROUTER_FILE: path})


def learn_examples(folder: Path, name: str, examples: Sequence[str]) -> Pack:
    """Teaches a pack's router an adapter by prompts that are its own; others keep their weights.

    A pack without a router begins with the starter's.

    Raises:
        InputError: the pack has no such adapter, or there are too few examples.
    """
    pack = Pack.open(folder)
    if name not in pack.adapters:
        raise InputError(f"the pack has no adapter {name!r}", where=folder, hint=f"it has: {', '.join(pack.adapters)}")
    return put_router(folder, with_examples(router_to_teach(pack), name, examples))


def router_to_teach(pack: Pack) -> RouterModel:
    """The pack's router, or the starter's where it has none."""
    return read_pack_router(pack) if ROUTER_FILE in pack.manifest.files else starter_router()


def router_path(given: Path) -> Path:
    """A router's file, read and so checked; the word `starter` names the starter pack's."""
    path = starter_folder() / ROUTER_FILE if given == Path("starter") and not given.exists() else given
    read_router(path)
    return path


def forget(folder: Path, name: str) -> Pack:
    """Takes an adapter that was learnt by examples out of a pack's router; nothing if there is none."""
    pack = Pack.open(folder)
    if ROUTER_FILE not in pack.manifest.files:
        return pack
    model = read_pack_router(pack)
    return put_router(folder, without(model, name)) if name in model.added else pack
