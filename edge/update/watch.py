"""Watches the uses of a new version: what fails again and again is taken back.

    with watched(pack):                     # around opening a session and answering
        ...

A use that ends in an error of the engine or of damaged bytes has failed, and so has one whose process dies. What the
user gave wrong, and Ctrl-C, count neither way. A pack that is not on trial costs a look into one small file.
"""

import contextlib
from collections.abc import Iterator

from ..errors import DamagedError, EngineError
from ..pack.pack import Pack
from ..store.store import Store
from .state import begin_use, end_use


@contextlib.contextmanager
def watched(pack: Pack | None) -> Iterator[None]:
    """Counts a use of a pack, if it is a version on trial.

    Raises:
        EngineError: uses before this one died, and the version was taken back: the next command has the one before.
    """
    store = Store()
    version = store.version_of(pack.folder) if pack is not None else None
    if version is None:
        yield
        return
    name, digest = version.name, version.digest
    if begin_use(store, name, digest):
        raise EngineError("the new version was taken back", where=name, hint="run the same again")
    try:
        yield
    except (EngineError, DamagedError) as error:
        end_use(store, name, digest, error.message)
        raise
    except BaseException:
        end_use(store, name, digest, None, counts=False)
        raise
    end_use(store, name, digest, None)
