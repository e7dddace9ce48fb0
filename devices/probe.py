"""Probes this machine in seconds: sustained read bandwidth by threads, and the rates of two of llama.cpp's kernels.

    found = probe()
    found.device.read_curve(), found.calibration.decode

The kernels run on a small random model written for the purpose (154 million weights, as large as to miss the caches):
what is measured is the real matrix code of the llama.cpp that is installed, not a formula.
"""

import dataclasses
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..edge.console import Advance
from ..edge.cpu import default_threads
from ..edge.errors import InputError
from ..edge.files import cache_folder, make_folder, read_json, write_json
from .catalogue import GIB, Device, Fact, core_classes
from .predict import Calibration, Predictor
from .workload import Workload

if TYPE_CHECKING:
    from ..edge.engine import Context

PROBED: Final = "probed here"
READ_BYTES: Final = 256 << 20
N_LAYERS: Final = 12
N_EMBD: Final = 1024
N_FF: Final = 2816
N_PROMPT: Final = 64
# A busy machine must not turn seconds into minutes.
BUDGET_S: Final = 1.5


@dataclass(frozen=True)
class Probe:
    """What was found: the machine as a device, and its kernels' rates over those of its class."""

    device: Device
    calibration: Calibration
    seconds: float


def probe(advance: Advance | None = None) -> Probe:
    """Measures this machine.

    Args:
        advance: told of each of 4 steps.
    """
    step = advance or (lambda n=1, /, *, text=None, total=None: None)
    start_s = time.perf_counter()
    threads = default_threads()
    curve = read_bandwidth(threads)
    step(1, text="memory")
    device = this_device(curve)
    rates: dict[str, tuple[float, float, Workload]] = {}
    for label in ("q4_0", "q8_0"):
        rates[label] = _model_rates(label, threads)
        step(1, text=f"{label} kernels")
    bare = Predictor(device, calibration=Calibration(decode=1.0, prefill={"repack": 1.0, "plain": 1.0}))
    scales = []
    prefill: dict[str, float] = {}
    for decode_per_s, prefill_per_s, work in rates.values():
        scales.append(decode_per_s / bare.decode(work, threads=threads, depth_tokens=16).tokens_per_s)
        kernel = bare.kernel_of(work)
        predicted = bare.prefill(work, n_prompt_tokens=N_PROMPT, threads=threads, kernel=kernel).tokens_per_s
        prefill.setdefault(kernel, prefill_per_s / predicted)
    step(1)
    calibration = Calibration(
        decode=float(np.median(scales)), prefill=prefill, source=f"a probe of this machine ({threads} threads)"
    )
    return Probe(device, calibration, time.perf_counter() - start_s)


def read_bandwidth(threads: int) -> dict[int, float]:
    """GB/s of summing a buffer beyond the caches, the best of four, by number of threads (1, 2, …, `threads`)."""
    buffer = np.ones(READ_BYTES // 8, np.int64)
    curve = {}
    counts = sorted({1, 2, threads} & set(range(1, threads + 1)))
    for count in counts:
        pieces = np.array_split(buffer, count)
        best_s = float("inf")
        with ThreadPoolExecutor(count) as pool:
            for _ in range(4):
                start_s = time.perf_counter()
                list(pool.map(np.add.reduce, pieces))
                best_s = min(best_s, time.perf_counter() - start_s)
        curve[count] = round(READ_BYTES / best_s / 1e9, 2)
    return curve


def _model_rates(label: str, threads: int) -> tuple[float, float, Workload]:
    """Decode and prefill tokens/s of the small model in one type, and its workload."""
    from ..edge.engine import Context, Model
    from ..edge.gguf_file import GgufFile

    with tempfile.TemporaryDirectory(prefix="slm-edge-probe-") as folder:
        path = Path(folder) / f"{label}.gguf"
        write_model(path, label)
        work = Workload.of_file(GgufFile.open(path))
        with (
            Model.load(path, mmap=False) as model,
            Context(model, n_ctx_tokens=256, n_batch_tokens=N_PROMPT, threads=threads) as context,
        ):
            prompt = [i % 250 for i in range(N_PROMPT)]
            context.decode([1], 0)
            prefill_s = _times(lambda i: _prompt(context, prompt), 2)
            context.clear()
            context.decode([1], 0)
            decode_s = _times(lambda i: _token(context, i + 1), 32)
    return 1 / float(np.median(decode_s)), N_PROMPT / min(prefill_s), work


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
    """A random model in Q4_0 or Q8_0 that llama.cpp loads; its text means nothing."""
    import gguf

    kind = {"q4_0": gguf.GGMLQuantizationType.Q4_0, "q8_0": gguf.GGMLQuantizationType.Q8_0}[label]
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
    """Random blocks with a scale that keeps values near those of trained weights."""
    n_bytes = {"q4_0": 18, "q8_0": 34}[label]
    blocks = rng.integers(0, 256, (n_out, n_in // 32, n_bytes), dtype=np.uint8)
    scale = np.float16(0.004 if label == "q4_0" else 0.0003)
    blocks[:, :, :2] = np.frombuffer(scale.tobytes(), np.uint8)
    return blocks.reshape(n_out, -1)


def this_device(curve: dict[int, float] | None = None) -> Device:
    """This machine as a device of the catalogue, without or with measured bandwidth."""
    import psutil

    n_cores = default_threads()
    ram_bytes = min(psutil.virtual_memory().total, _memory_limit())
    facts = {
        "big_cores": Fact(n_cores, PROBED),
        "clock_ghz": Fact(_clock_ghz(), "the kernel's highest frequency, else what it shows now"),
        "ram_gib": Fact([ram_bytes / GIB], PROBED),
        "reserve_gib": Fact(round(0.05 * ram_bytes / GIB, 2), "assumed: a twentieth of the RAM"),
    }
    if curve:
        facts["read_gb_per_s"] = Fact({str(n): rate for n, rate in curve.items()}, PROBED)
        facts["core_gb_per_s"] = Fact(max(curve.values()), PROBED)
    return Device("this", cpu_name(), core_classes()[isa_class()], ram_bytes, facts)


def cpu_name() -> str:
    """The processor's name as the system gives it; a board's model in front where there is one."""
    board = _text(Path("/proc/device-tree/model")).strip("\0 \n")
    info = _text(Path("/proc/cpuinfo"))
    found = re.search(r"^(?:model name|Hardware|Processor)\s*:\s*(.+)$", info, re.M)
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return board or name


def isa_class() -> str:
    """Which class of classes.toml this machine's cores are of."""
    info = _text(Path("/proc/cpuinfo"))
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.M)
    flags = set(found[1].split()) if found else set()
    if platform.machine().lower() in ("arm64", "aarch64"):
        if "i8mm" in flags:
            return "neon-i8mm"
        return "neon-dotprod" if "asimddp" in flags or not flags else "neon"
    return "avx512-vnni" if {"avx512_vnni", "avx512f"} <= flags else "avx2"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _clock_ghz() -> float:
    most = _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")).strip()
    if most.isdigit():
        return int(most) / 1e6
    found = re.findall(r"cpu MHz\s*:\s*([\d.]+)", _text(Path("/proc/cpuinfo")))
    return max((float(mhz) for mhz in found), default=2000.0) / 1000


def _memory_limit() -> int:
    text = _text(Path("/sys/fs/cgroup/memory.max")).strip()
    return int(text) if text.isdigit() else 1 << 62


def _path() -> Path:
    return cache_folder() / "devices" / "probe.json"


def save_probe(found: Probe) -> None:
    """Keeps a probe in the cache, for commands that want `this` without waiting.

    A calibration of `this` is relative to the probe before it, and goes with it.
    """
    make_folder(_path().parent)
    _path().with_name("this.json").unlink(missing_ok=True)
    facts = {name: {"value": fact.value, "source": fact.source} for name, fact in found.device.facts.items()}
    data = {"facts": facts, "calibration": dataclasses.asdict(found.calibration), "seconds": found.seconds}
    write_json(_path(), {**data, "machine": cpu_name(), "cores": os.cpu_count()})


def kept_probe() -> Probe | None:
    """The probe in the cache, if it is of this machine."""
    if not _path().is_file():
        return None
    data = read_json(_path())
    try:
        if data["machine"] != cpu_name() or data["cores"] != os.cpu_count():
            return None
        facts = {name: Fact(row["value"], row["source"]) for name, row in data["facts"].items()}
        return Probe(
            dataclasses.replace(this_device(), facts=facts), Calibration(**data["calibration"]), data["seconds"]
        )
    except (KeyError, TypeError):
        raise InputError("is no probe of this version", where=_path(), hint=f"rm {_path()}") from None
