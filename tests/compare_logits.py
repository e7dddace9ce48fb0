"""Runs the same tokens through transformers in F32 and through llama.cpp with an F32 KV cache."""

from pathlib import Path

import numpy as np
import torch
import transformers
from slm_edge.edge.llama.context import Context
from slm_edge.edge.llama.model import Model


class GeluTable(torch.nn.Module):
    """ggml's GELU: a table of F16 between -10 and 10."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x.abs() < 10, near, x.clamp(min=0))


def hf_logits(folder: Path, ids: list[int], *, gelu_table: bool = False) -> np.ndarray:
    """(tokens, vocabulary), float32; with GELU from a table of F16 and thresholds as ggml has them, or exactly."""
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
    if gelu_table:
        for module in model.modules():
            if hasattr(module, "act_fn"):
                module.act_fn = GeluTable()
            if hasattr(module, "_gaussian_topk"):
                # 0.95 of the activations are left out; llama.cpp's deviation is that of a sample.
                module._gaussian_topk = lambda x: (x - x.mean(-1, True) - 1.6448536 * x.std(-1, keepdim=True)).relu()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def gguf_logits(path: Path, ids: list[int]) -> np.ndarray:
    """(tokens, vocabulary), float32."""
    size = max(len(ids), 64)
    with (
        Model.load(path) as model,
        Context(
            model,
            n_ctx_tokens=size,
            n_batch_tokens=size,
            n_outputs_max=size,
            kv_type="f32",
            flash_attention="off",
            threads=1,
        ) as context,
    ):
        context.decode(ids, 0, outputs="all")
        return np.stack([context.logits(i) for i in range(len(ids))])


def random_ids(n_vocab: int, count: int = 48, seed: int = 0) -> list[int]:
    """Token ids without the first few, which are special."""
    return np.random.default_rng(seed).integers(3, n_vocab, count).tolist()


def largest_difference(folder: Path, path: Path, n_vocab: int, count: int = 48, *, gelu_table: bool = False) -> float:
    """max |Δlogit| over random tokens."""
    ids = random_ids(n_vocab, count)
    return float(np.abs(hf_logits(folder, ids, gelu_table=gelu_table) - gguf_logits(path, ids)).max())
