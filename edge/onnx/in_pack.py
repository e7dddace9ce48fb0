"""The ONNX form of a pack: a folder `onnx` in it, and for each adapter the same adapter in onnxruntime's format.

    onnx/slm_edge_onnx.json, onnx/model.onnx, …    the base, see `folder.py`
    onnx/adapters/NAME.onnx_adapter                 adapter NAME; its task card is that of adapters/NAME.gguf
    onnx/adapters/NAME.onnx_adapter.json            what it was made from

pack.json names these files with their sha256 like any others; which they are follows from their names.
"""

from pathlib import Path
from typing import Final

from ..errors import InputError
from ..pack.pack import Pack, PackedAdapter
from ..pack.write import ONNX_ADAPTERS, add_files
from .adapter import SUFFIX, OnnxAdapter, description_path
from .folder import ONNX_FILE, OnnxBase

ONNX_FOLDER: Final = "onnx"
_BASE: Final = f"{ONNX_FOLDER}/{ONNX_FILE}"


def has_onnx(pack: Pack) -> bool:
    """Whether the pack has an ONNX form."""
    return _BASE in pack.manifest.files


def onnx_folder(pack: Pack) -> Path:
    """Where the ONNX form of the base is.

    Raises:
        InputError: the pack has none.
    """
    if not has_onnx(pack):
        raise InputError(
            "the pack has no ONNX form",
            where=pack.folder,
            hint="slm-edge export onnx BASE.gguf -o DIR, then slm-edge pack onnx PACK DIR",
        )
    return pack.folder / ONNX_FOLDER


def base_sha256(pack: Pack) -> str:
    """Of the description of the base's ONNX form, which names its other files; raises as `onnx_folder`."""
    onnx_folder(pack)
    return pack.manifest.files[_BASE]


def adapter_file(name: str) -> str:
    """Where a pack keeps the ONNX form of an adapter."""
    return f"{ONNX_ADAPTERS}/{name}{SUFFIX}"


def onnx_adapters(pack: Pack) -> dict[str, PackedAdapter]:
    """The adapters that have an ONNX form, by name, with their cards."""
    found = {}
    for name, packed in pack.adapters.items():
        file = adapter_file(name)
        sha256 = pack.manifest.files.get(file)
        if sha256 is not None:
            path = pack.folder / file
            found[name] = PackedAdapter(name, path, sha256, path.stat().st_size, packed.card)
    return found


def add_onnx_base(folder: Path, onnx: Path) -> Pack:
    """Adds the base's ONNX form; replaces an earlier one and the adapters that no longer fit it.

    Raises:
        InputError: it was made from another base, or is no such folder.
        DamagedError: the pack, or the folder, is damaged.
    """
    pack = Pack.open(folder)
    base = OnnxBase.open(onnx, verify=True)
    if base.fingerprint != pack.base.fingerprint:
        raise InputError(
            f"was made from another base: its fingerprint is {base.fingerprint}, the pack's {pack.base.fingerprint}",
            where=onnx,
        )
    before = OnnxBase.open(onnx_folder(pack)) if has_onnx(pack) else None
    fits = before is not None and (before.dtype, before.lora) == (base.dtype, base.lora)
    files = {f"{ONNX_FOLDER}/{name}": onnx / name for name in (ONNX_FILE, *base.files)}

    def goes(name: str) -> bool:
        return name.startswith(f"{ONNX_FOLDER}/") and not (fits and name.startswith(f"{ONNX_ADAPTERS}/"))

    return add_files(folder, files, goes)


def add_onnx_adapter(folder: Path, name: str, file: Path) -> Pack:
    """Adds the ONNX form of an adapter that the pack has.

    Raises:
        InputError: the pack has no ONNX form or no such adapter, or the file is no adapter for its base.
        DamagedError: the pack, or the file, is damaged.
    """
    pack = Pack.open(folder)
    if name not in pack.adapters:
        raise InputError(
            f"the pack has no adapter {name!r} whose ONNX form this could be",
            where=folder,
            hint=f"add the GGUF adapter first: slm-edge pack add PACK {name} {name}.gguf",
        )
    OnnxAdapter.open(file, OnnxBase.open(onnx_folder(pack)))
    inside = adapter_file(name)
    files = {inside: file}
    if description_path(file).is_file():
        files[f"{inside}.json"] = description_path(file)
    return add_files(folder, files, lambda path: path == f"{inside}.json")
