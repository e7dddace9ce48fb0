"""Where a training computes: which device, how torch is set for it, and what train.json says of it.

prepare_device(best_device())
"""

from typing import Any

import torch

from ...edge.errors import InputError


def best_device() -> str:
    """cuda where there is a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def prepare_device(device: str) -> None:
    """Sets how torch computes on a GPU, for all that follows in this process; nothing on a CPU.

    Raises:
        InputError: this torch sees no GPU.
    """
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        built = "was built without CUDA" if torch.version.cuda is None else "finds none"
        raise InputError(f"no GPU can be used: torch {torch.__version__} {built}", hint="--device cpu")
    # f32 products on the matrix units (TF32): finer than bf16, several times as fast as true f32
    torch.set_float32_matmul_precision("high")
    # cuDNN's attention plans anew for each shape of a pass, and no two passes have the same
    torch.backends.cuda.enable_cudnn_sdp(False)


def has_bf16_units() -> bool:
    """Whether this CPU has matrix units for bf16 (AMX) that torch uses; False where torch cannot tell."""
    told = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return told is not None and bool(told())


def device_record(device: str) -> dict[str, Any]:
    """What train.json says of where it was computed."""
    if device == "cpu":
        return {"device": device}
    return {
        "device": device,
        "device_name": torch.cuda.get_device_name(),
        "gpu_peak_bytes": torch.cuda.max_memory_allocated(),
    }
