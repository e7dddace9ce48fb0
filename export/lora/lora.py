"""A PEFT adapter to a GGUF adapter for one base, exactly scaled, checked before it is put in its place.

    export_lora("peft/math", "base.gguf", "math.gguf", task="math")

Needs numpy only, no torch. Memory is a few matrices, whatever the adapter's size. Keys written: llama.cpp's own
(general.*, adapter.*) and those of `edge.gguf.adapter`.
"""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...edge.console import progress
from ...edge.errors import InputError, UnsupportedError
from ...edge.files.atomic import atomic_file, check_new
from ...edge.files.read import sha256_file
from ...edge.gguf.adapter import (
    ALORA_TOKENS_KEY,
    ALPHA_KEY,
    BASE_NAME_KEY,
    FINGERPRINT_KEY,
    PROMPT_PREFIX_KEY,
    RANK_KEY,
    SOURCE_SHA256_KEY,
    TASK_NAME_KEY,
    AdapterInfo,
    check_adapter,
    names_another_base,
)
from ...edge.gguf.base import BaseInfo
from ...edge.gguf.families import FAMILIES
from ...edge.gguf.file import ValueType
from ...edge.gguf.other_bases import OTHER_FAMILIES
from ..files.gguf_writer import Value, array, float32, text, uint32, write_gguf
from ..reasons import Reasons
from .complete import check_complete
from .peft_folder import PeftFolder
from .plan import LoraType, PlannedTensor, plan_tensors
from .scaling import FileScaling, file_scaling

_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ExportedLora:
    """What was written.

    Attributes:
        info: as `check_adapter` read it back.
        types: GGML type name -> number of matrices stored so.
        n_folded: modules whose own scale was multiplied into B, because one alpha cannot say it.
        notes: what the user should know, though it is no fault.
    """

    info: AdapterInfo
    sha256: str
    types: dict[str, int]
    n_folded: int
    notes: tuple[str, ...]


def export_lora(
    peft_dir: str | os.PathLike[str],
    base: str | os.PathLike[str] | BaseInfo,
    output: str | os.PathLike[str],
    *,
    kind: LoraType = "auto",
    task: str | None = None,
    prompt_prefix: str | None = None,
    force: bool = False,
) -> ExportedLora:
    """Converts the folder that PEFT saved into `output`, for the base GGUF `base`.

    Args:
        base: the GGUF, or what is known of it if it is not here (`edge.onnx.folder.OnnxBase.stated`).
        kind: how matrices are stored; "auto" takes Q8_0 where rows allow it, else F16 (see `plan_tensors`).
        task: name of the task; None: what train.json says, else none is written.
        prompt_prefix: text that the adapter wants in front of prompts.
        force: replace an existing file.

    Raises:
        UnsupportedError: a GGUF adapter cannot hold this one; all reasons are in `problems`.
        InputError: it is wrong in itself or not made for this base; all reasons are in `problems`.
        DamagedError: a file is cut short.
    """
    output = Path(output)
    info = base if isinstance(base, BaseInfo) else BaseInfo.open(base)
    if "lora" not in info.family.uses:
        raise UnsupportedError(
            f"adapters for the architecture {info.architecture!r} are not exported; "
            f"{', '.join(name for name, row in (FAMILIES | OTHER_FAMILIES).items() if 'lora' in row.uses)} are: a row "
            "would say which matrix is which, and whether rows are reordered",
            where=info.file.path,
            hint="one that llama.cpp's convert_lora_to_gguf.py made can be used: slm-edge pack add PACK NAME a.gguf",
        )
    reasons = Reasons()
    with PeftFolder.open(peft_dir, reasons) as folder:
        _check_output(output, info, folder, force)
        _check_identity(folder, info, reasons)
        check_complete(folder, info, reasons)
        scaling = _scaling(folder, reasons)
        with progress("reading", None):
            planned = plan_tensors(folder, info, scaling, kind, reasons)
        reasons.raise_any("cannot be exported", folder.path)
        keys = _keys(folder, info, planned, scaling, _task(folder, task), prompt_prefix)
        assert folder.weights is not None
        tensors = [tensor.new(folder.weights) for tensor in planned]
        with atomic_file(output) as aside:
            with progress("writing", sum(tensor.size_bytes for tensor in tensors), "bytes") as advance:
                write_gguf(aside, keys, tensors, on_bytes=advance)
            written = check_adapter(aside, info)
            digest = sha256_file(aside)
        return ExportedLora(
            info=AdapterInfo(**(vars(written) | {"path": output})),
            sha256=digest,
            types=dict(Counter(tensor.type.name for tensor in planned)),
            n_folded=len(scaling.factors),
            notes=tuple(_notes(folder, info)),
        )


def _check_output(output: Path, base: BaseInfo, folder: PeftFolder, force: bool) -> None:
    taken = [base.file.path, *(path for path in folder.path.iterdir())]
    if output.exists() and any(output.samefile(path) for path in taken):
        raise InputError("is what is exported; it would be overwritten", where=output, hint="write to another file")
    check_new(output, force)


def _check_identity(folder: PeftFolder, base: BaseInfo, reasons: Reasons) -> None:
    """What train.json and the config say about the base must fit it."""
    stated = _trained_on(folder).get("fingerprint")
    if stated is not None and stated != base.fingerprint:
        reasons.wrong(
            f"it was trained on another base: train.json has the fingerprint {stated}, "
            f"{base.file.path.name} has {base.fingerprint}"
        )
    highest = max(folder.config.alora_tokens, default=0)
    if highest >= base.n_vocab:
        reasons.wrong(f"alora_invocation_tokens names token {highest}; the base's vocabulary has {base.n_vocab}")


def _trained_on(folder: PeftFolder) -> dict[str, Any]:
    stated = folder.training.get("base")
    return stated if isinstance(stated, dict) else {}


def _scaling(folder: PeftFolder, reasons: Reasons) -> FileScaling:
    modules = [pair.module for pair in folder.pairs]
    try:
        return file_scaling(folder.scaling, modules)
    except ValueError:
        if modules:
            reasons.wrong("its scale is 0 in every module (lora_alpha): the adapter changes nothing")
        return FileScaling(1.0, {})


def _task(folder: PeftFolder, task: str | None) -> str | None:
    recipe = folder.training.get("recipe")
    if task is not None or not isinstance(recipe, dict) or not isinstance(recipe.get("task"), str):
        return task
    return str(recipe["task"])


def _base_id(folder: PeftFolder) -> tuple[str, str | None]:
    """Name and hub organisation of the base that PEFT names; of a local path only its last part."""
    name = folder.config.base_name.replace("\\", "/").rstrip("/")
    if _HUB_ID.fullmatch(name) and not name.startswith("."):
        organisation, _, model = name.partition("/")
        return model, organisation
    return name.rpartition("/")[2], None


def _keys(
    folder: PeftFolder,
    base: BaseInfo,
    planned: list[PlannedTensor],
    scaling: FileScaling,
    task: str | None,
    prompt_prefix: str | None,
) -> dict[str, Value]:
    assert folder.weights is not None
    keys = {
        "general.architecture": text(base.architecture),
        "general.type": text("adapter"),
        "adapter.type": text("lora"),
        "general.name": text(task or folder.path.resolve().name),
    }
    model, organisation = _base_id(folder)
    if model:
        keys |= {"general.base_model.count": uint32(1), "general.base_model.0.name": text(model)}
        if folder.config.revision:
            keys["general.base_model.0.version"] = text(folder.config.revision)
        if organisation:
            keys["general.base_model.0.organization"] = text(organisation)
            keys["general.base_model.0.repo_url"] = text(f"https://huggingface.co/{organisation}/{model}")
    keys[ALPHA_KEY] = float32(scaling.alpha)
    if folder.config.alora_tokens:
        # llama.cpp takes UINT32 here and nothing else.
        keys[ALORA_TOKENS_KEY] = array(ValueType.UINT32, folder.config.alora_tokens)
    if task:
        keys[TASK_NAME_KEY] = text(task)
    if prompt_prefix:
        keys[PROMPT_PREFIX_KEY] = text(prompt_prefix)
    keys |= {
        RANK_KEY: uint32(max(pair.rank for pair in folder.pairs)),
        FINGERPRINT_KEY: text(base.fingerprint),
        BASE_NAME_KEY: text(base.name),
        SOURCE_SHA256_KEY: text(sha256_file(folder.weights.path)),
        "general.quantization_version": uint32(2),
    }
    return keys


def _notes(folder: PeftFolder, base: BaseInfo) -> list[str]:
    notes = []
    named, file = _base_id(folder)[0], base.file
    trained_on = _trained_on(folder)
    same_file = isinstance(trained_on.get("sha256"), str) and trained_on["sha256"] == sha256_file(file.path)
    if not same_file and names_another_base(named, base):
        notes.append(
            f"PEFT names the base {named!r}, the file says {base.name!r}: if they are not the same model, the adapter "
            "will not work (`slm-edge export verify --hf` with the base that PEFT names tells)"
        )
    return notes
