"""The admin socket: what this server does, and its adapters, changed while it runs and kept until the next time.

Only the server's own user can open it, so that a path in a request is one that this user may read anyway. A file that
is added is copied first, by its hash: what serves does not change when the original does.
"""

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from ..console import note
from ..errors import DamagedError, InputError, SlmEdgeError
from ..files.atomic import write_json
from ..files.cache import state_folder, store_folder
from ..files.read import parse_json, read_text, sha256_file
from ..openai.checks import decoded
from ..openai.faults import Fault
from ..openai.reply import Call
from ..openai.service import Service
from ..pack.card import TaskCard
from ..pack.manifest import PACK_FILE
from ..pack.pack import Pack, find_adapter

# With an admin key, over the network, all but these.
SOCKET_ONLY: Final = frozenset({"/v1/load_lora_adapter"})
Digest = Annotated[str, Meta(pattern="^(sha256:[0-9a-f]{64})?$")]


class LoadRequest(Struct, kw_only=True):
    """Body of POST /v1/load_lora_adapter, with vLLM's names.

    lora_path: an adapter's GGUF file, or a pack that has an adapter of that name.
    load_inplace: in place of what the name stands for; else it must be new.
    expected_generation: the digest that the name must stand for until now.
    """

    lora_name: Annotated[str, Meta(min_length=1, max_length=64)]
    lora_path: Annotated[str, Meta(min_length=1, max_length=4096)]
    load_inplace: bool = False
    expected_generation: Digest | None = None


class UnloadRequest(Struct, kw_only=True):
    """Body of POST /v1/unload_lora_adapter."""

    lora_name: Annotated[str, Meta(min_length=1, max_length=64)]
    expected_generation: Digest | None = None


class _Added(Struct):
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    card: dict[str, Any]


class _Record(Struct):
    """What adapters.json has."""

    added: dict[str, _Added]
    removed: list[str]


class Kept:
    """What was added to a served pack, and taken from it, since it was packed.

    Args:
        served: folder or file that is served; each has a record of its own, and all versions of a pulled pack one.

    Attributes:
        lock: around each change of a name and its record.

    Raises:
        DamagedError: the record is none.
    """

    def __init__(self, served: Path) -> None:
        folder = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
        served = served.resolve()
        if served.parent.parent == (store_folder() / "packs").resolve():
            served = served.parent
        place = hashlib.sha256(os.fsencode(served)).hexdigest()[:16]
        self.folder = (Path(folder) if folder else state_folder() / "serve") / place
        self._path = self.folder / "adapters.json"
        self.lock = threading.Lock()
        # Around the files: who fails takes no copy away that another is about to give a name to.
        self._files_lock = threading.Lock()
        self._in_use: Counter[Path] = Counter()
        self.added: dict[str, dict[str, Any]] = {}
        self.removed: list[str] = []
        if self._path.is_file():
            data = parse_json(read_text(self._path), self._path)
            try:
                record = msgspec.convert(data, _Record)
            except msgspec.ValidationError as error:
                text = f"is no record of the adapters that were added and removed: {error}"
                hint = "move it away, and add the adapters again once the server runs"
                raise DamagedError(text, where=self._path, hint=hint) from None
            self.added, self.removed = msgspec.to_builtins(record.added), record.removed

    def file_of(self, sha256: str) -> Path:
        """Where the file with this hash is kept."""
        return self.folder / f"{sha256}.gguf"

    @contextlib.contextmanager
    def copy(self, path: Path) -> Iterator[Path]:
        """A copy of a file under its hash; behind the block it stays if a name stands for it then.

        Raises:
            InputError: it is no regular file, or cannot be read.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.is_file() or not stat.S_ISREG(path.stat().st_mode):
            raise InputError("no such file", where=path)
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as aside:
            try:
                with path.open("rb") as stream:
                    shutil.copyfileobj(stream, aside)
                aside.flush()
                os.fsync(aside.fileno())
                place = self.file_of(sha256_file(Path(aside.name)))
                with self._files_lock:
                    os.replace(aside.name, place)
                    self._in_use[place] += 1
            except BaseException:
                Path(aside.name).unlink(missing_ok=True)
                raise
        try:
            yield place
        finally:
            with self._files_lock:
                self._in_use[place] -= 1
                if not self._in_use[place]:
                    del self._in_use[place]
                    self.forget(place)

    def add(self, name: str, sha256: str, card: Mapping[str, Any]) -> None:
        """The name stands for that file from now on."""
        self.added[name] = {"sha256": sha256, "card": dict(card)}
        self.removed = [one for one in self.removed if one != name]
        self._write()

    def remove(self, name: str) -> None:
        """The name stands for nothing from now on."""
        self.added.pop(name, None)
        self.removed = sorted({*self.removed, name})
        self._write()

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(self._path, {"added": self.added, "removed": self.removed})

    def forget(self, path: Path) -> None:
        """Takes a copy away, unless a name stands for it."""
        # A list made at once: names may be added meanwhile.
        if path.stem not in {one["sha256"] for one in list(self.added.values())}:
            path.unlink(missing_ok=True)

    def restore(self, service: Service) -> None:
        """Loads and takes away what was last time; what cannot be is told, and the server goes on."""
        # Only now: while a server runs, answers in the making may need a file whose name stands for another.
        for path in self.folder.glob("*.gguf"):
            self.forget(path)
        names = set(service.engine.adapters)
        for name in self.removed:
            if name in names:
                service.engine.unload(name)
        for name, row in self.added.items():
            try:
                card = TaskCard.of(row["card"], self._path)
                service.engine.load(name, self.file_of(row["sha256"]), card=card, apart=True)
            except (SlmEdgeError, KeyError, TypeError) as error:
                note(f"the adapter {name!r}, which was added to this server, is left out: {error}")


async def load_adapter(service: Service, kept: Kept, call: Call) -> None:
    """Gives a name to an adapter: by a file or a pack, checked and tried before the name stands for it."""
    request, _ = decoded(call.body, LoadRequest)
    path = Path(request.lora_path)
    if not path.is_absolute():
        raise Fault(400, "invalid_value", "lora_path: give the whole path", param="lora_path")
    expected = request.expected_generation
    if expected is None and not request.load_inplace:
        expected = ""

    def work() -> dict[str, Any]:
        name, engine = request.lora_name, service.engine
        source, card = _source(path, name)
        with kept.copy(source) as copied:
            # The child takes its time, in which others may change their names.
            engine.try_apart(name, copied, card=card, expect_digest=expected)
            with kept.lock:
                digest = engine.load(name, copied, card=card, expect_digest=expected, apart=True)
                made = next(one for one in engine.facts().adapters if one.name == name)
                kept.add(name, digest, made.card.as_dict())
        return {"name": name, "digest": f"sha256:{digest}"}

    await call.answer(await service.run(work))


async def unload_adapter(service: Service, kept: Kept, call: Call) -> None:
    """Takes a name away; answers in the making are made to their end."""
    request, _ = decoded(call.body, UnloadRequest)

    def work() -> None:
        with kept.lock:
            service.engine.unload(request.lora_name, expect_digest=request.expected_generation)
            kept.remove(request.lora_name)

    await service.run(work)
    await call.answer({"name": request.lora_name, "removed": True})


async def list_adapters(service: Service, kept: Kept, call: Call) -> None:
    """The adapters that can be asked now."""

    def work() -> list[dict[str, Any]]:
        return [
            {
                "name": one.name,
                "digest": f"sha256:{one.digest}",
                "bytes": one.size_bytes,
                "task": one.card.task,
                "loaded": one.loaded,
                "added": one.name in kept.added,
            }
            for one in service.engine.facts().adapters
        ]

    await call.answer({"adapters": await service.run(work)})


def _source(path: Path, name: str) -> tuple[Path, TaskCard | None]:
    """The file that a path means, and its card where it is a pack's."""
    if (path / PACK_FILE).is_file():
        packed = find_adapter(Pack.open(path).adapters, name)
        return packed.path, packed.card
    return path, None
