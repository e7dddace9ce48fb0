"""What a change of a pack leaves behind when its process is killed: files that pack.json does not name yet, or no more.

They are no fault of the pack: it opens without them. The next change removes them.
"""

import contextlib
import hashlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from ..errors import InputError, of_system
from ..files.aside import SUFFIX, remove_leftovers_below
from ..files.atomic import locked
from ..files.cache import cache_folder, store_folder
from .manifest import PACK_FILE, read_manifest

# Where changes write: an adapter and its card, the router, the ONNX form
_WRITTEN: Final = re.compile(r"router\.npz|adapters/[^/]+\.(gguf|json)|onnx/.+")
_ASIDE: Final = re.compile(rf"(.*/)?\.[^/]*{re.escape(SUFFIX)}(/.*)?", re.DOTALL)


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[None]:
    """One change at a time, after the leftovers of the last; the lock lies in the cache, because a pack holds nothing
    that it does not name.

    Raises:
        InputError: the pack is the store's.
    """
    if store_folder().resolve() in folder.resolve().parents:
        hint = f"change a copy: cp -r {folder} COPY"
        raise InputError("is kept in the store as it was pulled", where=folder, hint=hint)
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    with locked(cache_folder() / "locks" / f"pack-{name}.lock"):
        if (folder / PACK_FILE).is_file():
            remove_pack_leftovers(folder, read_manifest(folder).files)
        try:
            yield
        except OSError as error:
            raise of_system(error) from None


def is_leftover(name: str, named: Collection[str]) -> bool:
    """Whether a path inside a pack is a change's leftover.

    Args:
        named: the paths that pack.json names.
    """
    return name not in named and bool(_ASIDE.fullmatch(name) or _WRITTEN.fullmatch(name))


def find_leftovers(folder: Path, named: Collection[str]) -> list[str]:
    """The leftovers in a pack's folder, files and links alone."""
    inside = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not _is_folder(path))
    return [name for name in inside if is_leftover(name, named)]


def remove_pack_leftovers(folder: Path, named: Collection[str]) -> None:
    """Removes them; what another process holds, and what cannot be removed, stays."""
    remove_leftovers_below(folder)
    for name in find_leftovers(folder, named):
        if _ASIDE.fullmatch(name):
            continue
        with contextlib.suppress(OSError):
            (folder / name).unlink()
        for parent in (folder / name).parents:
            if parent == folder:
                break
            with contextlib.suppress(OSError):
                parent.rmdir()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
