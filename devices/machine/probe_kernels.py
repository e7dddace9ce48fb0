"""The rates of llama.cpp's own kernels on this machine, type by type, on a small random model written for the purpose.

    rates = kernel_rates("q4_k", threads=4)
    rates.token_s, rates.token_one_s, rates.prompt_s

The model has 154 million weights, as large as to miss the caches: what is measured is the real matrix code of the
llama.cpp that is installed, not a formula.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ...edge.gguf.types import GgmlType
from ..catalogue.workload import Workload

if TYPE_CHECKING:
    from ...edge.llama.context import Context

# What the usual files are made of: Q4_0, Q4_1 and Q8_0 as such, and the parts of a Q4_K_M (with Q5_0 where rows are no
# multiple of 256).
PROBED_TYPES: Final = ("q4_0", "q4_1", "q5_0", "q8_0", "q4_k", "q6_k")
N_LAYERS: Final = 12
N_EMBD: Final = 1024
N_FF: Final = 2816
N_PROMPT: Final = 64
N_DECODE: Final = 12
# A busy machine must not turn seconds into minutes.
BUDGET_S: Final = 1.0
# Each block's F16 fields, at their places in bytes, such that weights come out near those of a trained model.
_SCALES: Final[dict[str, dict[int, float]]] = {
    "q4_0": {0: 0.004},
    "q4_1": {0: 0.004, 2: -0.03},
    "q5_0": {0: 0.002},
    "q8_0": {0: 0.0003},
    "q4_k": {0: 1.2e-4, 2: 9e-4},
    "q6_k": {208: 2e-5},
}


@dataclass(frozen=True)
class KernelRates:
    """Seconds of one token of an answer, with all threads and with one, and of a prompt of `N_PROMPT` with all."""

    work: Workload
    token_s: float
    token_one_s: float
    prompt_s: float


def kernel_rates(label: str, threads: int) -> KernelRates:
    """Measures one of `PROBED_TYPES`."""
    from ...edge.gguf.file import GgufFile
    from ...edge.llama.context import Context
    from ...edge.llama.model import Model, cpu_features, faster_as_stored

    with tempfile.TemporaryDirectory(prefix="slm-edge-probe-") as folder:
        path = Path(folder) / f"{label}.gguf"
        write_model(path, label)
        file = GgufFile.open(path)
        work = Workload.of_file(file)
        with contextlib.ExitStack() as stack:
            model = stack.enter_context(Model.load(path, mmap=False))
            for_prompts = model
            if faster_as_stored(file, cpu_features()):
                # As a session computes them.
                for_prompts = stack.enter_context(Model.load(path, mmap=False, repack=False))
            prompt = [i % 250 for i in range(N_PROMPT)]
            size: dict[str, Any] = {"n_ctx_tokens": 256, "n_batch_tokens": N_PROMPT}
            with Context(for_prompts, **size, threads=threads) as context:
                context.decode([1], 0)
                prompt_s = min(_times(lambda i: _prompt(context, prompt), 3))
            with Context(model, **size, threads=threads) as context:
                context.decode([1], 0)
                token_s = float(np.median(_times(lambda i: _token(context, i + 1), N_DECODE)))
            token_one_s = token_s
            if threads > 1:
                with Context(model, **size, threads=1) as context:
                    context.decode([1], 0)
                    token_one_s = float(np.median(_times(lambda i: _token(context, i + 1), N_DECODE)))
    return KernelRates(work, token_s, token_one_s, prompt_s)


def _times(work: Callable[[int], None], most: int) -> list[float]:
    """Seconds of each of up to `most` calls; no more are made once `BUDGET_S` is over."""
    times: list[float] = []
    while len(times) < most and sum(times) < BUDGET_S:
        start_s = time.perf_counter()
        work(len(times))
        times.append(time.perf_counter() - start_s)
    return times


def _prompt(context: "Context", prompt: list[int]) -> None:
    context.clear()
    context.decode(prompt, 0)
    context.logits_view()


def _token(context: "Context", position: int) -> None:
    context.decode([position], position)
    context.logits_view()


def write_model(path: Path, label: str, n_layers: int = N_LAYERS) -> None:
    """A random model in one of `PROBED_TYPES` that llama.cpp loads; its text means nothing."""
    import gguf

    kind = gguf.GGMLQuantizationType[label.upper()]
    writer = gguf.GGUFWriter(path, "llama")
    letters = [chr(0x100 + byte) for byte in range(256)]
    letters.append(letters[0] + letters[1])
    writer.add_context_length(2048)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_block_count(n_layers)
    writer.add_head_count(16)
    writer.add_head_count_kv(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(N_EMBD // 16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(letters)
    writer.add_token_types([1] * len(letters))
    # llama.cpp wants merges, be it one.
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    rng = np.random.default_rng(0)
    made: dict[tuple[int, int], Any] = {}

    def matrix(name: str, n_in: int, n_out: int) -> None:
        if (n_in, n_out) not in made:
            made[n_in, n_out] = _blocks(rng, label, n_in, n_out)
        writer.add_tensor(name, made[n_in, n_out], raw_dtype=kind)

    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    matrix("token_embd.weight", N_EMBD, len(letters))
    for layer in range(n_layers):
        head = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{head}{name}.weight", N_EMBD, N_EMBD)
        matrix(f"{head}ffn_gate.weight", N_EMBD, N_FF)
        matrix(f"{head}ffn_up.weight", N_EMBD, N_FF)
        matrix(f"{head}ffn_down.weight", N_FF, N_EMBD)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{head}{name}.weight", np.ones(N_EMBD, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(N_EMBD, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _blocks(rng: np.random.Generator, label: str, n_in: int, n_out: int) -> Any:
    """Random blocks with scales that keep values near those of trained weights."""
    n_values, n_bytes = GgmlType[label.upper()].block
    blocks = rng.integers(0, 256, (n_out, n_in // n_values, n_bytes), dtype=np.uint8)
    for place, scale in _SCALES[label].items():
        blocks[:, :, place : place + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return blocks.reshape(n_out, -1)
