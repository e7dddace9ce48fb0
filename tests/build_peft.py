"""Makes PEFT adapters: real ones with PEFT itself (torch), and hand-written folders for what PEFT would not save.

adapter = real_adapter(tmp_path / "peft", hf_folder, r=8, lora_alpha=16, target_modules=ALL)
broken = written_adapter(tmp_path / "bad", {"…lora_A.weight": array}, use_dora=True)
"""

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Two modules of the tiny bases: 64 to 64, and 64 to 32.
Q0 = "model.layers.0.self_attn.q_proj"
K0 = "model.layers.0.self_attn.k_proj"
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "tiny",
    "r": 4,
    "lora_alpha": 8,
    "bias": "none",
    "target_modules": ["q_proj"],
}


def real_adapter(
    folder: Path, base: Path | Any, *, seed: int = 1, size: float = 0.5, dtype: Any = None, **config: Any
) -> Path:
    """Saves a random adapter with PEFT; both A and B are far from zero.

    Args:
        base: a Hugging Face folder, or a loaded model.
        size: of B's values, times 1 / sqrt(rank).
        dtype: of the saved matrices; None: F32.
        config: fields of LoraConfig.
    """
    import warnings

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base).float() if isinstance(base, Path) else base
    fields = {"target_modules": list(ALL), "task_type": "CAUSAL_LM"} | config
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = get_peft_model(model, LoraConfig(**fields))
        with torch.no_grad():
            for name, weight in peft.named_parameters():
                if "lora_A" in name or "lora_embedding_A" in name:
                    weight.copy_(torch.randn_like(weight) / np.sqrt(weight.shape[1] if "lora_A" in name else 1))
                elif "lora_B" in name and name.endswith("bias"):
                    weight.fill_(size)
                elif "lora_B" in name or "lora_embedding_B" in name:
                    weight.copy_(torch.randn_like(weight) * size / np.sqrt(weight.shape[1]))
        if dtype is not None:
            for name, weight in peft.named_parameters():
                if "lora_" in name:
                    weight.data = weight.data.to(dtype)
        peft.save_pretrained(str(folder), safe_serialization=True)
    return Path(folder)


def pair(module: str, n_in: int, n_out: int, rank: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    """A module's A and B under PEFT's names."""
    rng = np.random.default_rng(seed)
    return {
        f"base_model.model.{module}.lora_A.weight": rng.standard_normal((rank, n_in)).astype(np.float32),
        f"base_model.model.{module}.lora_B.weight": rng.standard_normal((n_out, rank)).astype(np.float32),
    }


def written_adapter(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    """Writes adapter_config.json and adapter_model.safetensors as told, sensible or not."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = (re.match(r"base_model\.model\.(.+?)\.lora_", name) for name in tensors)
    named = sorted({match[1] for match in found if match})
    targets = {"target_modules": named} if named else {}
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | targets | config))
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes the format by hand; uint16 arrays are stored as BF16."""
    names = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(np.uint16): "BF16"}
    names |= {np.dtype(np.int32): "I32", np.dtype(np.float64): "F64"}
    header, at = {}, 0
    for name, values in tensors.items():
        header[name] = {
            "dtype": names[values.dtype],
            "shape": list(values.shape),
            "data_offsets": [at, at + values.nbytes],
        }
        at += values.nbytes
    text = json.dumps(header).encode()
    data = b"".join(np.ascontiguousarray(values).tobytes() for values in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
