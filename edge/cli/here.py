"""What is on this machine: `slm-edge doctor`, `slm-edge cache`, `slm-edge service`, `slm-edge --version`."""

import importlib.util
import os
import platform
import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import emit, json_option
from ..errors import InputError, SlmEdgeError
from ..extras import EXTRA_OF_PACKAGE, extra_hint
from ..files.cache import base_cache_path, cache_folder, store_folder
from ..written import human_bytes

if TYPE_CHECKING:
    from ..serve.unit import Service

# Below this much memory or disk the starter pack's base has no room.
LEAST_FREE_BYTES = 300 << 20
PACKAGES = ("llama-cpp-python", "numpy", "huggingface-hub", "onnxruntime", "torch", "transformers", "peft")


def engine() -> dict[str, Any]:
    """llama.cpp as it is installed: versions of its Python package and of ggml, CPU features, and our kernels in it.

    Raises:
        EngineError: it does not load.
    """
    from ..llama.binding import lib, prompt_kernels
    from ..llama.model import cpu_features

    return {
        "llama_cpp_python": metadata.version("llama-cpp-python"),
        **{key: _ggml(lib(), f"ggml_{key}") for key in ("version", "commit")},
        "cpu_features": sorted(cpu_features()),
        "prompt_kernels": prompt_kernels().text,
        "prompt_kernels_missing": prompt_kernels().is_missing,
    }


def _ggml(module: Any, name: str) -> str | None:
    """A text that ggml says of itself; None in builds that do not say it."""
    import ctypes

    function = getattr(module._lib, name, None)
    if function is None:
        return None
    function.restype = ctypes.c_char_p
    return str(function().decode(errors="replace"))


def version_text() -> str:
    """What `--version` prints; that llama.cpp does not load is said, and no error."""
    first = f"slm-edge, version {metadata.version('slm-edge')}"
    try:
        facts = engine()
    except SlmEdgeError as error:
        return f"{first}\n{error}"
    ggml = f"ggml {facts['version']} ({facts['commit']})" if facts["version"] else "ggml of unknown version"
    return (
        f"{first}\nPython {platform.python_version()}, {platform.system()} {platform.machine()}\n"
        f"llama.cpp: llama-cpp-python {facts['llama_cpp_python']}, {ggml}\nCPU: {' '.join(facts['cpu_features'])}\n"
        f"prompt kernels: {facts['prompt_kernels']}"
    )


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what is installed here, what memory and disk have room for, and what to do about what is missing.

    The exit code is 1 if something keeps the starter pack from running.

    \b
    Examples:
      slm-edge doctor
      slm-edge doctor --json
    """
    from ..files.web import hub_endpoint, hub_state
    from ..pack.pack import Pack
    from ..system.machine import available_bytes, default_threads, machine_bytes, memory_limit_bytes

    faults, advice = [], []
    try:
        llama: dict[str, Any] | None = engine()
    except SlmEdgeError as error:
        llama = None
        faults.append(str(error))
    if llama is not None and platform.machine() == "x86_64" and "AVX2" not in llama["cpu_features"]:
        advice.append("llama.cpp was built without AVX2: pip install --force-reinstall --no-cache-dir llama-cpp-python")
    if llama is not None and llama["prompt_kernels_missing"]:
        from ..llama.binding import LIBRARY

        build = shlex.join((sys.executable, "-m", "slm_edge.edge.prompt_kernels.build", str(LIBRARY)))
        advice.append(
            "the prompt kernels are not built, with which many prompts take a half or a quarter of the time; "
            f"with a C++ compiler: {build}"
        )
    memory = {"total_bytes": machine_bytes(), "free_bytes": available_bytes(), "limit_bytes": memory_limit_bytes()}
    cache = cache_folder()
    place = store_folder()
    existing = next(folder for folder in (place, *place.absolute().parents) if folder.is_dir())
    disk_bytes = shutil.disk_usage(existing).free
    pack = Pack.open(None)
    has_base = pack.carries_base or base_cache_path(pack.base.sha256).is_file()
    room_bytes = min(memory["free_bytes"] or 0, memory["limit_bytes"] or LEAST_FREE_BYTES)
    if room_bytes < LEAST_FREE_BYTES:
        faults.append(
            f"{human_bytes(room_bytes)} of memory are free; the starter needs {human_bytes(LEAST_FREE_BYTES)}"
        )
    if not os.access(existing, os.W_OK):
        (advice if has_base else faults).append(f"{existing} cannot be written: set SLM_EDGE_HOME to another folder")
    if not has_base:
        if disk_bytes < LEAST_FREE_BYTES:
            faults.append(f"{human_bytes(disk_bytes)} are free on the disk of {place}; set SLM_EDGE_HOME to another")
        advice.append("the starter's base is not fetched yet: slm-edge pull starter")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if load is not None and load > (os.cpu_count() or 1):
        advice.append(
            f"the machine is busy (load {load:.1f}): answers are slower than they could be, so fewer threads compute"
        )
    missing: dict[str, list[str]] = {}
    for package, extra in EXTRA_OF_PACKAGE.items():
        if importlib.util.find_spec(package) is None:
            missing.setdefault(extra, []).append(package)
    advice += [f"for {extra} ({', '.join(packages)}): {extra_hint(extra)}" for extra, packages in missing.items()]
    data = {
        "slm_edge": metadata.version("slm-edge"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "executable": sys.executable,
        "packages": {name: _version(name) for name in PACKAGES},
        "llama_cpp": llama,
        "threads": default_threads(),
        "load": load,
        "memory": memory,
        "disk_free_bytes": disk_bytes,
        "cache": {"folder": str(cache), "files": _cached()},
        "store": _store(),
        "hub": {"endpoint": hub_endpoint(), "state": hub_state(), "caches": _other_caches()},
        "starter_base": has_base,
        "faults": faults,
        "advice": advice,
    }
    emit(data, as_json, _text(data))
    if faults:
        raise click.exceptions.Exit(1)


def _store() -> dict[str, Any]:
    """The store's folder and how large its parts are."""
    from ..store.store import Store, size_bytes

    store = Store()
    blobs, downloads = store.folder / "blobs", store.folder / "state" / "downloads"
    return {
        "folder": str(store.folder),
        "n_names": len(store.names()),
        "blobs_bytes": size_bytes(blobs),
        "downloads_bytes": size_bytes(downloads),
    }


def _other_caches() -> list[str]:
    """Folders of other programs from which files are taken by their sha256."""
    from ..hub.elsewhere import hub_caches, ollama_folders

    return [str(folder) for folder in (*hub_caches(), *ollama_folders())]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _text(data: dict[str, Any]) -> str:
    memory, llama, files = data["memory"], data["llama_cpp"], data["cache"]["files"]
    limit = f", at most {human_bytes(memory['limit_bytes'])} for this process" if memory["limit_bytes"] else ""
    rows = {
        "slm-edge": data["slm_edge"],
        "Python": f"{data['python']}, {data['executable']}",
        "system": data["system"],
        "llama.cpp": "does not load",
        "CPU": f"{data['threads']} threads by default",
        "memory": f"{human_bytes(memory['free_bytes'])} free of {human_bytes(memory['total_bytes'])}{limit}",
        "disk": f"{human_bytes(data['disk_free_bytes'])} free for the store",
        "cache": f"{data['cache']['folder']}, {human_bytes(sum(row['size_bytes'] for row in files))}",
        "store": f"{data['store']['folder']}, {human_bytes(data['store']['blobs_bytes'])}",
        "hub": f"{data['hub']['endpoint']}, {data['hub']['state']}",
        "packages": ", ".join(f"{name} {version or 'missing'}" for name, version in data["packages"].items()),
    }
    if llama is not None:
        rows["llama.cpp"] = f"llama-cpp-python {llama['llama_cpp_python']}, ggml {llama['version'] or 'unknown'}"
        rows["CPU"] += f"; llama.cpp uses {' '.join(llama['cpu_features'])}"
        rows["kernels"] = f"for prompts: {llama['prompt_kernels']}"
    lines = [f"{name:10} {value}" for name, value in rows.items()]
    lines += [f"FAULT      {fault}" for fault in data["faults"]]
    lines += [f"to do      {advice}" for advice in data["advice"]]
    return "\n".join(lines if data["faults"] else [*lines, 'Ready: slm-edge run "Hello"'])


@click.group()
def cache() -> None:
    """List or clean what was fetched and measured once.

    \b
    Example:
      slm-edge cache list
    """


@cache.command("list")
@json_option
def list_files(as_json: bool) -> None:
    """List the files of the cache with their sizes.

    \b
    Example:
      slm-edge cache list
    """
    folder, rows = cache_folder(), _cached()
    lines = [f"{human_bytes(row['size_bytes']):>10}  {row['file']}{_model(row)}" for row in rows]
    lines.append(f"{human_bytes(sum(row['size_bytes'] for row in rows)):>10}  {folder}")
    emit({"folder": str(folder), "files": rows}, as_json, "\n".join(lines))


@cache.command()
@click.option("--bases", is_flag=True, help="Base models of earlier versions too; the next run fetches them again.")
@json_option
def clean(bases: bool, as_json: bool) -> None:
    """Delete broken-off downloads and what was measured of this machine; with --bases old base models too.

    Use it while no other slm-edge runs. Locks, which have no size, stay. Packs and base models are in the store, see
    slm-edge list, rm and prune.

    \b
    Examples:
      slm-edge cache clean
      slm-edge cache clean --bases
    """
    folder = cache_folder()
    gone = [row for row in _cached() if _may_go(row["file"], bases)]
    for row in gone:
        (folder / row["file"]).unlink(missing_ok=True)
    size = human_bytes(sum(row["size_bytes"] for row in gone))
    emit({"folder": str(folder), "deleted": gone}, as_json, f"{len(gone)} files deleted, {size}: {folder}")


def _may_go(name: str, bases: bool) -> bool:
    """Whether cleaning deletes a file: what slm-edge makes there by itself, and nothing else that one may have put."""
    top, _, rest = name.partition("/")
    if top == "bases":
        return rest.endswith(".part") or (bases and rest.endswith(".gguf"))
    return top == "devices" and not rest.endswith(".lock")


def _cached() -> list[dict[str, Any]]:
    """The files of the cache, the store and locks left out: path below the folder, size."""
    folder = cache_folder()
    found = (path for path in sorted(folder.rglob("*")) if path.suffix != ".lock" and not path.is_symlink())
    return [
        {"file": path.relative_to(folder).as_posix(), "size_bytes": path.stat().st_size}
        for path in found
        if path.is_file() and path.relative_to(folder).parts[0] not in ("locks", "store")
    ]


def _model(row: dict[str, Any]) -> str:
    """The starter's base by its name."""
    from ..pack.pack import Pack

    base = Pack.open(None).base
    return f"  ({base.file_name})" if Path(row["file"]).stem == base.sha256 else ""


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[install|uninstall] [PACK] [SERVE OPTIONS]")
@click.option("--print", "as_text", is_flag=True, help="Print the unit, and change nothing.")
@click.option("--user", is_flag=True, help="A service of this user, in place of the system's.")
@click.option("--name", default="slm-edge", show_default=True, metavar="NAME", help="Of the unit, for several servers.")
@click.option("--no-start", is_flag=True, help="Enable it for the next boot, and don't start it now.")
@click.option(
    "--root",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Install into the system below this folder, such as a mounted SD card.",
)
@json_option
def service(
    words: tuple[str, ...], as_text: bool, user: bool, name: str, no_start: bool, root: Path | None, as_json: bool
) -> None:
    """Install "slm-edge serve" as a systemd service that starts at boot, or remove it.

    What follows is as for "slm-edge serve"; paths are made absolute. The service may read files and write to its cache
    alone. A file of --keys is handed over by systemd.

    \b
    Examples:
      slm-edge service --print my-pack
      sudo /opt/slm/bin/slm-edge service install /srv/my-pack --keys /etc/slm-edge.keys --host 0.0.0.0
      slm-edge service install --user my-pack
      sudo /opt/slm/bin/slm-edge service uninstall
    """
    from ..serve.unit import install, uninstall, unit_text
    from ..written import check_name

    check_name(name, "the name of the service")
    action = words[0] if words and words[0] in ("install", "uninstall") else None
    if action is None and not as_text:
        raise click.UsageError("Say install, uninstall or --print.")
    found = _service(words[0 if action is None else 1 :], user, name, root or Path("/"))
    text = unit_text(found)
    if as_text:
        emit({"path": str(found.path), "unit": text}, as_json, text)
        return
    done = uninstall(found) if action == "uninstall" else install(found, start=not no_start)
    emit({"path": str(found.path), "done": done}, as_json, "\n".join(done))


def _service(words: tuple[str, ...], user: bool, name: str, root: Path) -> "Service":
    """The service for the words of `slm-edge serve`, which are checked as that command does."""
    from ..serve.unit import Service, service_command
    from .serve import serve

    given = serve.make_context("slm-edge serve", [*words]).params
    keys, unix, model = given["keys"], given["unix"], given["model"]
    # The system's service runs as a user that may not read it.
    handed = keys.absolute() if keys is not None and not user else None
    files = [Path(one.split("=")[0]) for one in given["loras"]] + [one for one in (keys, unix) if one is not None]
    if model is not None and Path(model).exists():
        files.append(Path(model))
    elif model is not None and not user:
        raise InputError("no such file or folder", where=model, hint="a service of the system needs a pack by its path")
    found: list[str] = []
    for word in words:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        found.append(f"{option}{equals}{Path(value).absolute()}" if value and Path(value) in files else word)
    if handed is not None:
        at = next(i for i, word in enumerate(found) if word.split("=")[0] == "--keys")
        del found[at : at + (1 if "=" in found[at] else 2)]
    return Service(name, service_command(found), user, given["drain_s"], handed, root)
