"""A running server follows its pack: an update of adapters comes into use without a restart.

    with Follower(engine, pack):            # looks at the pack's name in the store every few seconds
        ...

A changed adapter is loaded, tried, and given its name between two steps of the engine; answers in the making end with
the one they began with. A version over another base, or with another router, needs a restart, which is said once. A
version on trial whose adapters the engine refuses again and again is taken back, as after failing uses.
"""

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from ..console import note
from ..errors import DoesNotFitError, SlmEdgeError
from ..pack.manifest import ROUTER_FILE
from ..pack.pack import Pack
from ..store.store import Store
from ..store.version import Version
from .state import end_use

if TYPE_CHECKING:
    from ..scheduler.engine import Engine

EVERY_S: Final = 5.0


class Follower:
    """Keeps an engine's adapters as its pack's name in the store has them.

    Args:
        engine: over the pack, on llama.cpp.
        pack: one of the store; of any other there is nothing to follow.
        every_s: between two looks.
    """

    def __init__(self, engine: "Engine", pack: Pack, every_s: float = EVERY_S) -> None:
        self._engine, self._pack, self._every_s = engine, pack, every_s
        self._store = Store()
        self._version = self._store.version_of(pack.folder)
        # Of adapters of its versions, also of those that were taken in part; others came by hand.
        self._digests = {one.sha256 for one in pack.adapters.values()}
        self._told: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def __enter__(self) -> Self:
        if self._version is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Looks no more; call it before the engine is closed. Calling it twice does nothing."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                self.look()
            except (SlmEdgeError, OSError) as error:
                self._tell(str(error))

    def look(self) -> bool:
        """Takes a new version into use if there is one; returns whether it did.

        Raises:
            SlmEdgeError: it cannot be used; what was served is served on, and the next look tries again.
        """
        assert self._version is not None
        found = self._store.find(self._version.name)
        if found is None or found[0].digest == self._version.digest:
            return False
        version, folder = found
        pack = Pack.open(folder)
        if reason := self._needs_restart(pack):
            self._tell(f"{version.name}: the new version has {reason}; restart the server to have it")
            return False
        # Marked as used, so that nobody removes its files while they are served.
        pack.base_path()
        by_hand = self._by_hand()
        self._digests |= {one.sha256 for one in pack.adapters.values()}
        try:
            self._engine.follow(pack, self._pack.adapters, stays=by_hand, apart=True)
        except SlmEdgeError as error:
            # Memory may suffice another time.
            if not isinstance(error, DoesNotFitError):
                end_use(self._store, version.name, version.digest, error.message)
            raise
        end_use(self._store, version.name, version.digest, None)
        self._take(pack, version)
        return True

    def _by_hand(self) -> set[str]:
        """Names that were given to other files, or taken away, by hand: they stay so."""
        served = {one.name: one.digest for one in self._engine.facts().adapters}
        given = {name for name, digest in served.items() if digest not in self._digests}
        return given | (self._pack.adapters.keys() - served.keys())

    def _needs_restart(self, pack: Pack) -> str | None:
        """What of a pack cannot be changed in a running engine; None where all can."""
        if pack.base.sha256 != self._pack.base.sha256:
            return "another base"
        routers = [one.manifest.files.get(ROUTER_FILE) for one in (pack, self._pack)]
        return "another router" if routers[0] != routers[1] else None

    def _take(self, pack: Pack, version: Version) -> None:
        note(f"{version.name}: the server has its new version, {version.digest[:12]}")
        self._pack, self._version, self._told = pack, version, None

    def _tell(self, text: str) -> None:
        if text != self._told:
            self._told = text
            note(text)
