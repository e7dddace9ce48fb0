"""What is in the store, as people see it: packs, models, bases and adapters, with their sizes, and who uses them.

for row in stored(Store()):
    row.kind, row.name, row.size_bytes, row.last_used, row.used_by
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from ..console import note
from ..errors import InputError, SlmEdgeError
from ..files.cache import old_base_path
from ..hub.reference import parse
from ..store.prune import PART_DAYS, Unneeded, prune, unneeded
from ..store.store import Store, size_bytes
from ..store.uses import Use, uses_of
from ..store.version import Version
from ..written import nearest
from .located import pulled
from .manifest import read_manifest
from .pack import Pack, starter_folder

STARTER: Final = "starter"
_RUNNING: Final = "running: "


@dataclass(frozen=True)
class Row:
    """One thing in the store.

    Attributes:
        digest: sha256 of a file; of a pack that of its pack.json.
        size_bytes: of its files; those of a pack are links to blobs, which others may share.
        last_used: in UTC, ISO 8601; None if it was never.
        used_by: names and folders of what needs it, and the commands that run with it.
        running: a process uses it now.
        origin: where it came from; None for what came with a pack, or with slm-edge.
    """

    kind: Literal["pack", "model", "base", "adapter"]
    name: str
    digest: str
    size_bytes: int
    path: str
    last_used: str | None = None
    used_by: list[str] = field(default_factory=list)
    running: bool = False
    origin: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def stored(store: Store) -> list[Row]:
    """Everything in the store that has a name, and the bases of packs elsewhere; what cannot be read is left out."""
    packs: list[Row] = []
    adapters: list[Row] = []
    needs: dict[str, list[str]] = {}
    for name, version, folder in _current(store):
        uses = uses_of(store, version.digest)
        packs.append(
            Row(
                version.kind,
                name,
                version.digest,
                size_bytes(folder),
                str(folder),
                *_used(uses),
                origin=version.origin.reference,
            )
        )
        for sha256 in version.blobs:
            needs.setdefault(sha256, []).append(name)
        if version.kind == "pack":
            adapters += _adapters(name, folder)
    starter = Pack.open(None)
    needs.setdefault(starter.base.sha256, []).append(STARTER)
    adapters += _adapters(STARTER, starter_folder())
    return [*packs, *_bases(store, needs, starter), *adapters]


def _current(store: Store) -> Iterator[tuple[str, Version, Path]]:
    for name in store.names():
        with contextlib.suppress(SlmEdgeError):
            if (found := store.find(name)) is not None:
                yield name, *found


def _used(uses: Iterable[Use]) -> tuple[str | None, list[str], bool]:
    """When it was used last, the commands that run with it, and whether there is one."""
    uses = list(uses)
    running = [f"{_RUNNING}{use.command}" for use in uses if use.running]
    return (uses[0].last if uses else None), running, bool(running)


def _adapters(pack: str, folder: Path) -> Iterator[Row]:
    with contextlib.suppress(SlmEdgeError, OSError):
        for row in read_manifest(folder).adapters:
            yield Row(
                "adapter", f"{pack}/{row.name}", row.sha256, row.size_bytes, str(folder / row.file), used_by=[pack]
            )


def _bases(store: Store, needs: dict[str, list[str]], starter: Pack) -> Iterator[Row]:
    """The bases that packs need and do not carry, and those that an earlier version kept."""
    names = {starter.base.sha256: starter.base.file_name}
    bases = {starter.base.sha256}
    for _, version, folder in _current(store):
        if version.base is not None:
            bases.add(version.base)
            with contextlib.suppress(SlmEdgeError):
                names[version.base] = read_manifest(folder).base.file_name
    for path in (store.folder / "state" / "used").glob("*"):
        if (store.blob(path.name)).is_file():
            bases.add(path.name)
    for sha256 in sorted(bases):
        path = store.blob(sha256)
        path = path if path.exists() else old_base_path(sha256)
        if not path.is_file():
            continue
        uses = uses_of(store, sha256)
        last, running, runs = _used(uses)
        there = [use.who for use in uses if is_needed(sha256, use)]
        named = names.get(sha256) or next((use.file_name for use in uses if use.file_name), sha256[:12])
        used_by = [*dict.fromkeys([*needs.get(sha256, []), *there]), *running]
        yield Row("base", named, sha256, path.stat().st_size, str(path), last, used_by, runs)


def is_needed(sha256: str, use: Use) -> bool:
    """Whether who used a base once still needs it: a pack's folder that is still there and still names it."""
    folder = Path(use.who)
    if not folder.is_absolute():
        return False
    try:
        return read_manifest(folder).base.sha256 == sha256
    except (SlmEdgeError, OSError):
        return False


def find_row(store: Store, name: str) -> Row:
    """What `name` names: a pack, a model, a base by its file's name, or anything by the beginning of its digest.

    Raises:
        InputError: nothing does, or several.
    """
    rows = stored(store)
    found = [row for row in rows if name in (row.name, row.origin)]
    if not found and (asked := parse(name)).is_elsewhere and (one := pulled(asked)) and one.version is not None:
        found = [row for row in rows if row.name == one.version.name]
    if not found and len(name) >= 6:
        found = [row for row in rows if row.digest.startswith(name.removeprefix("sha256:"))]
    if not found:
        near = nearest(name, [row.name for row in rows])
        raise InputError(
            f"there is no {name!r} in the store",
            hint=f"did you mean {near}?" if near else "slm-edge list shows what there is",
        )
    if len({row.digest for row in found}) > 1:
        raise InputError(f"{name!r} names several", problems=[f"{row.name} {row.digest}" for row in found])
    return found[0]


def remove(store: Store, name: str) -> Unneeded:
    """Removes a pack, model or base, and what nothing else needs then; returns what went.

    Raises:
        InputError: there is no such thing, something else needs it, or a process uses it.
    """
    row = find_row(store, name)
    if row.kind == "adapter":
        pack = row.used_by[0]
        ask = "it came with slm-edge" if pack == STARTER else f"slm-edge rm {pack} removes the pack"
        raise InputError("is part of a pack", where=row.name, hint=ask)
    if row.running:
        raise InputError("is in use", where=row.name, problems=row.used_by, hint="stop what uses it first")
    if row.kind == "base":
        needed = [who for who in row.used_by if who != STARTER]
        if needed:
            raise InputError("is needed", where=row.name, problems=needed, hint="remove what needs it first")
        return _prune_now(store, lambda: _base_alone(row))
    ref = store.ref(row.name)
    digests = sorted(ref.kept) if ref is not None else []
    for digest in digests:
        running = [use.command for use in uses_of(store, digest) if use.running]
        if running:
            raise InputError("is in use", where=row.name, problems=running, hint="stop what uses it first")
    before = unneeded_now(store)
    store.forget(row.name)
    return _prune_now(store, lambda: _only_new(store, before))


def _prune_now(store: Store, plan: Callable[[], Unneeded]) -> Unneeded:
    try:
        return prune(store, plan, wait=False)
    except BlockingIOError:
        note("another slm-edge is pulling; slm-edge prune removes the files later")
        return Unneeded((), (), (), 0)


def _base_alone(row: Row) -> Unneeded:
    old_base_path(row.digest).unlink(missing_ok=True)
    return Unneeded((), (row.digest,), (), row.size_bytes)


def _only_new(store: Store, before: Unneeded) -> Unneeded:
    """What became unneeded: `rm` removes what it names, and leaves the rest to `prune`."""
    now = unneeded_now(store)
    return Unneeded(
        tuple(row for row in now.versions if row not in before.versions),
        tuple(sha256 for sha256 in now.blobs if sha256 not in before.blobs),
        (),
        now.freed_bytes - before.freed_bytes,
    )


def unneeded_now(store: Store, days: int = PART_DAYS) -> Unneeded:
    """What nothing needs: no name, no pack elsewhere, no process, and not the starter pack."""
    return unneeded(store, is_needed, [Pack.open(None).base.sha256], days)
