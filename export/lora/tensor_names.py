"""Names of an adapter's tensors without what a wrapper put into them while it was trained and saved.

    plain_name("module.base_model.model._orig_mod.model.layers.0.self_attn.q_proj.lora_A.default.weight")
    # "model.layers.0.self_attn.q_proj.lora_A.weight"

The matrices are the same: torch.compile, DistributedDataParallel, FSDP and activation checkpointing wrap modules and so
lengthen their names, PEFT's own state_dict keeps the adapter's name, and a multimodal model wraps its language model.
"""

import re
from typing import Final

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
# transformers since 4.52 (model.language_model.layers) and before (language_model.model.layers)
_LANGUAGE_MODEL: Final = re.compile(
    r"^(?:model\.language_model\.(?=(?:layers|embed_tokens|norm)\.)|language_model\.model\.)"
)
_LANGUAGE_HEAD: Final = re.compile(r"^language_model\.(?=lm_head\.)")
_OTHER_SENSES: Final = re.compile(
    r"(?:^|\.)(visual|vision_tower|vision_model|vision_encoder|multi_modal_projector|mm_projector|audio_tower|"
    r"audio_model|embed_vision|embed_audio)\."
)


def plain_name(name: str) -> str:
    """The name as PEFT's `save_pretrained` gives it, without `base_model.model.` before it."""
    name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    while name.startswith(PREFIX):
        name = name.removeprefix(PREFIX)
    name = _ADAPTER_NAME.sub(r".\1", name)
    return _LANGUAGE_HEAD.sub("", _LANGUAGE_MODEL.sub("model.", name))


def other_sense(name: str) -> str | None:
    """The part of a multimodal model, other than its language model, that a name belongs to."""
    found = _OTHER_SENSES.search(name)
    return None if found is None else found[1]
