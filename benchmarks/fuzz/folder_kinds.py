"""Routers and packs: valid ones with an array, a value or a file damaged, and their hashes made right again."""

import hashlib
import io
import json
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from ...edge.errors import SlmEdgeError
from ...edge.gguf.base import BaseInfo
from ...edge.pack.manifest import PACK_FILE, render
from ...edge.pack.pack import Pack
from ...edge.pack.write import NewAdapter, build_pack
from ...edge.router.file import Background, RouterModel, read_router, write_router
from ...edge.router.hashing import N_SLOTS
from ...edge.router.router import Router
from ...edge.router.words import NAMES
from ..made.random_adapter import write_random_adapter
from .damage import TEXTS, damaged_bytes, damaged_value
from .gguf_kinds import write_tiny_base

_TASKS: Final = ("math", "code")
_PROMPTS: Final = ("What is 2 + 2?", "def f(x):", "", "\u2028é")
_HEADERS: Final = (
    *(b"(10**12,)", b"(-1,)", b"()", b"(1,)*9", b"(0,)", b"__import__('os').abort()", b"(" * 99),
    *(b"'<f8'", b"'|O'", b"'<U9'", b"'<i2'", b"True", b"'>f4'"),
)


def _random_router() -> RouterModel:
    random_values = np.random.default_rng(0)
    n = 1 + len(_TASKS)
    model = RouterModel(
        tasks=_TASKS,
        bias=random_values.normal(size=n).astype(np.float32),
        named=random_values.normal(size=(n, len(NAMES))).astype(np.float32),
        slots=random_values.normal(size=(N_SLOTS, n)).astype(np.float32),
        temperature=1.0,
        thresholds=dict.fromkeys(_TASKS, 0.5),
    )
    return model.with_prompts(Background((("Hello", None), (_PROMPTS[0], _TASKS[0]))))


class RouterKind:
    """Routers' files."""

    kind = "router"

    def prepare(self, folder: Path) -> None:
        """One valid router."""
        path = folder / "valid.npz"
        write_router(path, _random_router())
        self._bytes = path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            self._members = {name: archive.read(name) for name in archive.namelist()}

    def make(self, draw: random.Random, folder: Path) -> None:
        """The same with members damaged, or the archive."""
        if draw.random() < 0.25:
            data = damaged_bytes(draw, self._bytes)
        else:
            members = dict(self._members)
            for _ in range(draw.choice((1, 1, 2))):
                self._damage(draw, members)
            data = self._zipped(draw, members)
        (folder / "router.npz").write_bytes(data)

    def _damage(self, draw: random.Random, members: dict[str, bytes]) -> None:
        name = "meta.npy" if draw.random() < 0.4 and "meta.npy" in members else draw.choice(list(members))
        data = members[name]
        way = draw.randrange(8)
        if name == "meta.npy" and way <= 5:
            valid = self._members[name]
            meta = json.loads(valid[valid.index(b"\n") + 1 :])
            text = json.dumps(damaged_value(draw, meta, draw.choice((1, 1, 2)))).encode()
            members[name] = _npy(np.frombuffer(text, np.uint8))
        elif way == 0:
            del members[name]
            members.setdefault("meta.npy", self._members["meta.npy"])
        elif way == 1:
            members[draw.choice(list(members))] = data
        elif way == 2:
            # An earlier damage may have taken the line's end.
            head = data.find(b"\n") + 1
            part = draw.choice((b"(", b"'descr': ", b"False"))
            members[name] = data[:head].replace(part, draw.choice(_HEADERS)) + data[head:]
        elif way == 3:
            members[draw.choice(TEXTS)[:60000].replace("\ud800", "?").replace("\udfff", "?") or "x"] = data
        elif way == 4:
            value = draw.choice((np.nan, np.inf, -np.inf, 1e38, -1e9, 0))
            members[name] = data[:-4] + np.float32(value).tobytes()
        else:
            members[name] = damaged_bytes(draw, data)

    def _zipped(self, draw: random.Random, members: dict[str, bytes]) -> bytes:
        stream = io.BytesIO()
        kind = zipfile.ZIP_STORED if draw.random() < 0.9 else draw.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
        with zipfile.ZipFile(stream, "w", kind) as archive:
            for name, data in members.items():
                # A date of its own would make each run another
                archive.writestr(zipfile.ZipInfo(name), data, kind)
        return stream.getvalue()

    def use(self, folder: Path) -> object:
        """Read, its prompts unpacked, and asked."""
        model = read_router(folder / "router.npz")
        said: list[object] = [Router(model).choose(prompt).as_dict() for prompt in _PROMPTS]
        return [*said, model.prompts()]

    def run(self, folder: Path) -> object:
        """There is no more to it."""


def _npy(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


class PackKind:
    """Packs, whose hashes and seal are made right again after most damage, as by one who wants it to be read."""

    kind = "pack"

    def prepare(self, folder: Path) -> None:
        """A pack of a base, two adapters with cards, and a router."""
        base = write_tiny_base(folder / "tiny.gguf", "llama")
        router = folder / "router.npz"
        write_router(router, _random_router())
        new = []
        for seed, name in enumerate(_TASKS):
            write_random_adapter(BaseInfo.open(base), folder / f"{name}.gguf", rank=2, seed=seed)
            changes = {"schema": {"type": "object", "properties": {"a": {"type": "integer"}}}} if seed else {}
            new.append(NewAdapter(name, folder / f"{name}.gguf", card_changes=changes))
        self._pack = folder / "pack"
        sources = [
            {"kind": "pypi-wheel", "package": "x", "version": "1", "member": "x/y.gguf"},
            {"kind": "hub", "repo": "a/b", "file": "c.gguf", "revision": "0" * 40},
        ]
        build_pack(
            self._pack, base=base, adapters=new, name="p", router=router, sources=sources, default_adapter=_TASKS[0]
        )
        self._manifest = json.loads((self._pack / PACK_FILE).read_text())

    def make(self, draw: random.Random, folder: Path) -> None:
        """A copy with pack.json, a card or another file damaged."""
        files = sorted(path.relative_to(self._pack) for path in self._pack.rglob("*") if path.is_file())
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            os.link(self._pack / file, folder / file)
        manifest = json.loads(json.dumps(self._manifest))
        way = draw.randrange(10)
        if way <= 4:
            manifest = damaged_value(draw, manifest, draw.choice((1, 1, 2, 3)))
        else:
            cards = [file for file in files if file.suffix == ".json" and file.name != PACK_FILE]
            file = draw.choice(cards if way <= 7 else files)
            data = (folder / file).read_bytes()
            if file in cards and draw.random() < 0.8:
                data = json.dumps(damaged_value(draw, json.loads(data), draw.choice((1, 1, 2)))).encode()
            else:
                data = damaged_bytes(draw, data)
            (folder / file).unlink()
            if draw.random() < 0.97:
                (folder / file).write_bytes(data)
            else:
                (folder / file).symlink_to("/dev/zero")
            if file.as_posix() in manifest["files"]:
                self._hash_again(manifest, file, data)
            elif draw.random() < 0.8:
                return
        (folder / PACK_FILE).unlink()
        sealed = isinstance(manifest, dict) and draw.random() < 0.9
        text = (render(manifest) if sealed else json.dumps(manifest)).encode()
        (folder / PACK_FILE).write_bytes(damaged_bytes(draw, text) if draw.random() < 0.05 else text)

    def _hash_again(self, manifest: Any, file: Path, data: bytes) -> None:
        name, sha256 = file.as_posix(), hashlib.sha256(data).hexdigest()
        manifest["files"][name] = sha256
        for row in (manifest["base"], *manifest["adapters"]):
            if name in (row.get("file"), row.get("file_name")):
                row |= {"sha256": sha256, "size_bytes": len(data)}

    def use(self, folder: Path) -> object:
        """Opened, and verified; cards' rules and places are looked at."""
        pack = Pack.open(folder)
        done: list[object] = [pack.manifest.as_dict()]
        readers: tuple[Callable[[], object], ...] = (
            pack.base_path,
            lambda: Pack.open(folder, verify=True),
            *(adapter.card.rules for adapter in pack.adapters.values()),
            *(adapter.card.as_dict for adapter in pack.adapters.values()),
        )
        for read in readers:
            try:
                done.append(read())
            except SlmEdgeError as error:
                done.append(str(error))
        return done

    def run(self, folder: Path) -> object:
        """There is no more to it: its files are kinds of their own."""
