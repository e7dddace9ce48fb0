"""Whether an adapter holds the matrices of the modules that its config names, no fewer and no others.

PEFT warns of a missing pair, leaves its start in place, which does nothing, and passes over pairs that the config does
not name; a GGUF adapter would run with what there is. Names are compared by PEFT's rule (`check_target_module_exists`).
"""

from collections.abc import Collection, Iterable
from typing import Any, Final

from ...edge.files.read import read_json
from ...edge.gguf.base import BaseInfo
from ...edge.gguf.other_bases import adapted_family, n_own_kv_layers
from ..files.tensor_names import plain_name
from ..reasons import Reasons
from .patterns import named_by
from .peft_folder import CONFIG_FILE, PeftFolder

_OTHERS: Final = ("model.embed_tokens", "lm_head")
_ALL_LINEAR: Final = "all-linear"
_KEYS_VALUES: Final = ("self_attn.k_proj", "self_attn.v_proj")


def check_complete(folder: PeftFolder, base: BaseInfo, reasons: Reasons) -> None:
    """What is missing or too much goes to `reasons`; a folder that has some already is left alone."""
    raw = read_json(folder.path / CONFIG_FILE)
    targets = raw.get("target_modules")
    # mlx-lm's config names none.
    if reasons or not targets or not isinstance(targets, list | str) or "peft_type" not in raw:
        return
    family = adapted_family(base.family, [pair.module for pair in folder.pairs])
    blocks = {
        f"model.layers.{layer}.{part.module}": (part.module, layer)
        for layer in range(base.n_layers)
        for part in family.block
        if part.is_matrix and f"blk.{layer}.{part.name}.weight" in base.tensor_shapes
    }
    known = [*blocks, *_OTHERS]
    if isinstance(targets, str) and targets.lower() == _ALL_LINEAR:
        named = set(blocks)
    else:
        found = _named("target_modules", targets, known, reasons)
        left_out = set() if isinstance(targets, str) else _left_out(raw, blocks)
        if left_out is None:
            return
        named = found - left_out
    named -= _named("exclude_modules", raw.get("exclude_modules") or [], known, reasons)
    if reasons:
        return
    held = {pair.module for pair in folder.pairs}
    # What no layer reads: transformers 5 does not have it, 4 does.
    unread = {
        module
        for module, (name, layer) in blocks.items()
        if name in _KEYS_VALUES and layer >= n_own_kv_layers(base.file)
    }
    _tell(reasons, "its config names modules of which it holds no matrices", named - held - unread, blocks)
    # PEFT adapts the other of embedding and head by itself; a pattern may have meant a multimodal model's names.
    if isinstance(targets, list):
        _tell(
            reasons, "it holds matrices of modules that its config does not name", held & blocks.keys() - named, blocks
        )


def _named(field: str, names: Any, modules: Collection[str], reasons: Reasons) -> set[str]:
    """The modules that a field names, by a regular expression for the whole name or by a list of ends of names."""
    if isinstance(names, str):
        found, faults = named_by(names, modules)
        for fault in faults:
            reasons.wrong(f"{field}: {fault}")
        return found
    ends = (
        {plain_name(f"{name}.")[:-1] for name in names if isinstance(name, str)} if isinstance(names, list) else set()
    )
    return {module for module in modules if ends.intersection(_ends_of(module))}


def _ends_of(module: str) -> Iterable[str]:
    """`module` and all that is left of it behind each of its dots."""
    parts = module.split(".")
    return (".".join(parts[n:]) for n in range(len(parts)))


def _left_out(raw: dict[str, Any], blocks: dict[str, tuple[str, int]]) -> set[str] | None:
    """Modules of layers that `layers_to_transform` does not name; None where a pattern of its own names layers."""
    layers, patterns = raw.get("layers_to_transform"), raw.get("layers_pattern") or []
    if layers is None or layers == []:
        return set()
    patterns = [patterns] if isinstance(patterns, str) else patterns
    chosen = [layers] if isinstance(layers, int) else layers
    if not isinstance(chosen, list) or (patterns and "layers" not in patterns):
        return None
    return {module for module, (_, layer) in blocks.items() if layer not in chosen} | {*_OTHERS}


def _tell(reasons: Reasons, what: str, modules: Collection[str], blocks: dict[str, tuple[str, int]]) -> None:
    """One reason for each kind of module, with its layers."""
    layers: dict[str, list[int]] = {}
    for module in modules:
        name, layer = blocks.get(module, (module, -1))
        layers.setdefault(name, []).append(layer)
    for name, numbers in sorted(layers.items()):
        where = f" of layers {', '.join(map(str, sorted(numbers)))}" if min(numbers) >= 0 else ""
        reasons.wrong(what, f"{name}{where}")
