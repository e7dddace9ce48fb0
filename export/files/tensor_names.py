"""Names of an adapter's tensors without what a wrapper put into them while it was trained and saved.

    plain_name("module.base_model.model._orig_mod.model.layers.0.self_attn.q_proj.lora_A.default.weight")
    # "model.layers.0.self_attn.q_proj.lora_A.weight"

The matrices are the same: torch.compile, DistributedDataParallel, FSDP and activation checkpointing wrap modules and so
lengthen their names, PEFT's own state_dict keeps the adapter's name, and a multimodal model wraps its language model.
"""

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ...edge.files.read import CHUNK_BYTES
from ...edge.gguf.families import OTHER_SENSES
from .safetensors import SafetensorsFile

WEIGHTS_FILE: Final = "adapter_model.safetensors"
PREFIX: Final = "base_model.model."
# torch.compile, DistributedDataParallel and DeepSpeed, FSDP, activation checkpointing, Lightning Fabric
_WRAPPERS: Final = frozenset(
    {
        *("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"),
        *("_fpw_module", "_original_module"),
    }
)
# The adapter's name, which save_pretrained leaves out and a plain state_dict does not
_ADAPTER_NAME: Final = re.compile(r"\.(lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.(?!weight$|bias$)[^.]+")
# Of a multimodal model (transformers since 4.52 model.language_model.layers, before language_model.model.layers,
# Idefics' model.text_model.layers), of a bare one (AutoModel's layers), of one in a holder (model.model.layers)
_BACKBONE: Final = re.compile(r"^(?:(?:model|language_model|text_model)\.)*(?=(?:layers|embed_tokens|norm)\.)")
_HEAD: Final = re.compile(r"^(?:(?:model|language_model)\.)*(?=lm_head\.)")


def plain_name(name: str) -> str:
    """The name as PEFT's `save_pretrained` gives it, without `base_model.model.` before it."""
    name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    # What stands before PEFT's own prefix holds the PEFT model: Lightning's `model.`, TRL's `pretrained_model.`.
    name = f".{name}".rpartition(f".{PREFIX}")[2].removeprefix(".")
    name = _ADAPTER_NAME.sub(r".\1", name)
    return _HEAD.sub("", _BACKBONE.sub("model.", name))


def other_sense(name: str) -> str | None:
    """The part of a multimodal model, other than its language model, that a name belongs to."""
    found = OTHER_SENSES.search(name)
    return None if found is None else found[1]


@contextlib.contextmanager
def plainly_named(folder: Path) -> Iterator[Path]:
    """The folder with the names that PEFT loads: itself, or a copy that lasts as long as the block.

    Raises:
        InputError, DamagedError: as `SafetensorsFile.open`.
    """
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        yield folder
        return
    with SafetensorsFile.open(weights) as file, tempfile.TemporaryDirectory() as aside:
        names = {name: PREFIX + plain_name(name) for name in file.tensors}
        if all(name == plain for name, plain in names.items()):
            yield folder
            return
        start = min((entry.start_bytes for entry in file.tensors.values()), default=0)
        header = {
            names[name]: {
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "data_offsets": [entry.start_bytes - start, entry.start_bytes - start + entry.size_bytes],
            }
            for name, entry in file.tensors.items()
        }
        copy = Path(aside)
        shutil.copy(folder / "adapter_config.json", copy)
        text = json.dumps(header).encode()
        with weights.open("rb") as reader, (copy / WEIGHTS_FILE).open("wb") as writer:
            writer.write(len(text).to_bytes(8, "little") + text)
            reader.seek(start)
            shutil.copyfileobj(reader, writer, CHUNK_BYTES)
        yield copy
