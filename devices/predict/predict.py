"""Predicts tokens per second and time to first token of a model on a device, with what each part costs.

    speed = Predictor(find_device("raspberry-pi-5")).decode(work, threads=2)
    speed.tokens_per_s, speed.low, speed.high
    speed.parts["weights"]                   # seconds of each token

Decode of one token (docs/measurements/forecasts.md has the errors of this model against published rows):

    t = sum over tensor types of max(bytes / rate(threads), weights x cycles / (threads x clock))
        + layers x fixed time + depth x KV bytes / (0.4 x rate) + adapter bytes / rate + pairs x fixed time
    rate(threads) = min(threads x one core's rate, read_part x measured read rate, or theory_part x theoretical rate)

Prefill of one token of n: weights of the blocks / multiply rate of their kernels + attention over n/2 / its own rate
+ values that the products read and write x cycles + layers x fixed time / batch; the head once for the whole prompt.
"""

import itertools
import math
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from ...edge.gguf.types import GgmlType
from ..catalogue.catalogue import Device
from ..catalogue.workload import Workload, size_bytes
from .constants import ADAPTER_PAIR_S, KV_PART_OF_RATE, THREAD_LOSS, Constants, fitted

Kernel = Literal["repack", "plain", "baseline"]


@dataclass(frozen=True)
class Speed:
    """A rate with its 90 % interval.

    Attributes:
        tokens_per_s: the estimate; low, high: 90 % of measured rates should lie between.
        parts: seconds per token by cause.
        known: "prior", "board" or "calibrated": what it rests on.
    """

    tokens_per_s: float
    low: float
    high: float
    parts: Mapping[str, float]
    threads: int
    known: str


@dataclass(frozen=True)
class AdapterCost:
    """An adapter's size: values in its pairs, bytes of each, number of pairs."""

    n_values: int = 0
    bytes_per_value: float = 34 / 32
    n_pairs: int = 0

    @property
    def n_bytes(self) -> float:
        return self.n_values * self.bytes_per_value


NO_ADAPTER = AdapterCost()


@dataclass(frozen=True)
class Calibration:
    """What one run on the very unit says: measured over predicted rate, prefill by kernel.

    Attributes:
        decode, prefill: factors on the rates of the uncalibrated model; None if it was not measured.
        kv_part: rate of K and V over that of weights, from decode at two depths; None if not measured.
        pair_s: fixed time of an adapter's pair; None if not measured.
        layer_s: fixed time of a layer; None if not measured.
        cycles, macs_per_cycle: of one core, by tensor type, as the device's class has them; None if not measured.
        source: the run.
    """

    decode: float | None = None
    prefill: Mapping[str, float] | None = None
    kv_part: float | None = None
    pair_s: float | None = None
    layer_s: float | None = None
    cycles: Mapping[str, float] | None = None
    macs_per_cycle: Mapping[str, float] | None = None
    source: str = ""


class Predictor:
    """The model for one device.

    Args:
        device: of the catalogue or probed.
        constants: the fitted ones by default.
        calibration: of a run on this very unit.
    """

    def __init__(
        self, device: Device, constants: Constants | None = None, calibration: Calibration | None = None
    ) -> None:
        self.device = device
        self.constants = constants or fitted()
        self.calibration = calibration
        known = calibration or Calibration()
        self.layer_s = self.constants.layer_s if known.layer_s is None else known.layer_s
        self._cycles_measured, self._macs_measured = known.cycles, known.macs_per_cycle
        self.board = self.constants.boards.get(device.like or _board_id(device.id))

    def stream_gb_per_s(self, threads: int) -> float:
        """GB/s of weights that so many threads can stream, before any board's or run's own scale."""
        device = self.device
        core = device.number("core_gb_per_s", device.cores.core_gb_per_s)
        curve = device.read_curve()
        if curve:
            return min(threads * core, self.constants.read_part * _between(curve, threads))
        limit = self.constants.theory_part * device.number("theoretical_gb_per_s")
        if "stream_triad_gb_per_s" in device.facts:
            # STREAM counts what is read and written; decode reached 0.68 to 0.78 of a sweep on the i7-12700H.
            limit = min(limit, 0.73 * device.number("stream_triad_gb_per_s"))
        return min(threads * core, limit)

    def _decode_scale(self) -> tuple[float, str]:
        if self.calibration is not None and self.calibration.decode is not None:
            return self.calibration.decode, "calibrated"
        if self.board is not None and self.board.n_rows:
            return self.board.decode_scale, "board"
        return 1.0, "prior"

    def decode(
        self,
        work: Workload,
        *,
        threads: int | None = None,
        depth_tokens: float = 0,
        kv_type: str = "f16",
        adapter: AdapterCost = NO_ADAPTER,
    ) -> Speed:
        """Tokens per second of an answer at a depth of the context.

        Args:
            threads: None: the number with the best rate.
            depth_tokens: tokens in the cache.
        """
        if threads is None:
            threads = self.best_threads(work)
        scale, known = self._decode_scale()
        parts = self._decode_parts(work, threads, depth_tokens, kv_type, adapter, scale)
        return _speed(parts, threads, known, self._half("decode", known, work, depth_tokens))

    def _half(self, what: str, known: str, work: Workload, depth_tokens: float = 0) -> float:
        """The interval's log half-width; wider where bytes were guessed or the depth's slope was not measured."""
        half = self.constants.half(what, known)
        if not work.sure:
            half = math.hypot(half, 0.25)
        if depth_tokens and (self.calibration is None or self.calibration.kv_part is None):
            slope = work.context_bytes(depth_tokens) / (KV_PART_OF_RATE * max(work.streamed_bytes, 1))
            # The published slopes lie within a factor of 2.5 of the one taken.
            half = math.hypot(half, 0.9 * slope / (1 + slope))
        return half

    def _decode_parts(
        self, work: Workload, threads: int, depth: float, kv_type: str, adapter: AdapterCost, scale: float
    ) -> dict[str, float]:
        rate = self.stream_gb_per_s(threads) * 1e9
        hertz = threads * self.device.number("clock_ghz") * 1e9
        kv_part, pair_s = KV_PART_OF_RATE, ADAPTER_PAIR_S
        if self.calibration is not None:
            kv_part = self.calibration.kv_part or kv_part
            pair_s = self.calibration.pair_s or pair_s
        parts = {
            "weights": sum(
                max(size_bytes(n, kind) / rate, n * self._cycles(kind) / hertz)
                for kind, n in work.weights_by_type.items()
            ),
            "layers": work.n_layers * self.layer_s,
            "context": work.context_bytes(depth, kv_type) / (kv_part * rate),
            "adapter": adapter.n_bytes / rate,
        }
        parts = {name: seconds / scale for name, seconds in parts.items()}
        parts["adapter"] += adapter.n_pairs * pair_s
        return parts

    def _cycles(self, kind: GgmlType) -> float:
        table = self.device.cores.decode_cycles_per_weight
        return _measured_or(self._cycles_measured, table, kind)

    def best_threads(self, work: Workload) -> int:
        """Threads with the best decode rate; the fewest of equals."""

        def seconds(threads: int) -> float:
            return sum(self._decode_parts(work, threads, 0, "f16", NO_ADAPTER, 1.0).values())

        return min(range(1, self.device.n_cores + 1), key=lambda n: (round(seconds(n) * 1000, 2), n))

    def macs_per_cycle(
        self,
        kind: GgmlType,
        kernel: Kernel = "repack",
        *,
        laid_out: Collection[str] | None = None,
        as_built: bool = False,
    ) -> float:
        """One core's multiplications per cycle with a prompt's tokens, by type and kernel, before a board's scale.

        What was measured on the unit itself counts where the type meets the same kernel as it did then: any type
        `as_built`, in a model that the build lays out as it likes.

        Args:
            laid_out: types that the build lays out anew, for the kernel "repack"; None: those of this llama.cpp.
        """
        cores, name = self.device.cores, kind.name.lower()
        as_measured = kernel == "repack" or (kernel == "plain" and name not in cores.repacked)
        if self._macs_measured and (as_built or as_measured):
            return _measured_or(self._macs_measured, cores.macs_per_cycle(cores.repacked), kind)
        anew = cores.repacked if laid_out is None else laid_out
        built = cores.macs_per_cycle(anew if kernel == "repack" else ())
        per_cycle = built["plain"] * cores.baseline_part if kernel == "baseline" else built.get(name, built["plain"])
        return per_cycle * self.constants.classes.get(cores.name, 1.0)

    def macs_per_s(self, kind: GgmlType, threads: int, kernel: Kernel = "repack", *, as_built: bool = False) -> float:
        """The same of so many threads together, per second."""
        return self.macs_per_cycle(kind, kernel, as_built=as_built) * self.prompt_hertz(threads)

    def prompt_hertz(self, threads: int) -> float:
        """Cycles per second of so many threads on a prompt, together: each slows the others down a little."""
        alone = threads * self.device.number("clock_ghz") * 1e9
        return alone / (1 + self.device.number("thread_loss", THREAD_LOSS) * (threads - 1))

    def kernel_of(self, work: Workload, laid_out: Collection[str] | None = None) -> Kernel:
        """The kernel that most of the weights meet, here or where these types are laid out anew."""
        anew = self.device.cores.repacked if laid_out is None else laid_out
        repacked = sum(n for kind, n in work.weights_by_type.items() if kind.name.lower() in anew)
        return "repack" if 2 * repacked >= work.n_weights else "plain"

    def prefill(
        self,
        work: Workload,
        *,
        n_prompt_tokens: int = 512,
        threads: int | None = None,
        kernel: Kernel | None = None,
        laid_out: Collection[str] | None = None,
        adapter: AdapterCost = NO_ADAPTER,
    ) -> Speed:
        """Tokens per second of a prompt.

        Args:
            n_prompt_tokens: of the prompt; long prompts are slower for their attention, short ones for the head.
            threads: None: all big cores.
            kernel: None: that of this project's llama.cpp.
            laid_out: types that the build lays out anew; None: those of this llama.cpp.
        """
        threads = threads or self.device.n_cores
        as_built = kernel is None
        kernel = kernel or self.kernel_of(work)
        layout: Kernel = "repack" if kernel != "baseline" and (as_built or laid_out is not None) else kernel
        scale, known = self._prefill_scale(kernel)
        n_all = max(work.n_weights, 1)
        hertz = self.prompt_hertz(threads)
        mean_s = (
            sum(
                n / n_all / self.macs_per_cycle(kind, layout, laid_out=laid_out, as_built=as_built)
                for kind, n in work.weights_by_type.items()
            )
            / hertz
        )
        # Each query meets half of the prompt, K and V both.
        attention = work.n_layers * n_prompt_tokens * work.n_embd
        cores = self.device.cores
        memory_per_s = self.stream_gb_per_s(threads) * 1e9
        n_activations = sum(n_in + n_out for n_in, n_out in work.lora_shapes)
        parts = {
            "weights": work.block_weights * mean_s / scale,
            "attention": attention / cores.attention_macs_per_cycle / hertz / scale,
            "activations": n_activations * cores.activation_cycles / hertz / scale,
            "adapter": adapter.n_values * 2 * mean_s / scale,
            "head": work.head_bytes / memory_per_s / n_prompt_tokens,
            "layers": work.n_layers * self.layer_s / min(n_prompt_tokens, 512),
        }
        # However short the prompt, the weights are streamed once.
        once_s = work.streamed_bytes / memory_per_s / n_prompt_tokens
        if sum(parts.values()) < once_s:
            parts["streaming"] = once_s - sum(parts.values())
        return _speed(parts, threads, known, self._half("prefill", known, work))

    def _prefill_scale(self, kernel: str) -> tuple[float, str]:
        run = self.calibration.prefill if self.calibration is not None else None
        if run and kernel in run:
            return run[kernel], "calibrated"
        if run:
            return next(iter(run.values())), "board"
        if self.board is not None and kernel in self.board.prefill_scale:
            return self.board.prefill_scale[kernel], "board"
        return 1.0, "prior"


def first_token_s(prefill: Speed, decode: Speed, n_prompt_tokens: int) -> tuple[float, float, float]:
    """Time to first token with its interval: n / prefill + 1 / decode (LocalScore's 16 CPU rows agree within 1.7 %)."""
    estimate = n_prompt_tokens / prefill.tokens_per_s + 1 / decode.tokens_per_s
    low = n_prompt_tokens / prefill.high + 1 / decode.high
    return estimate, low, n_prompt_tokens / prefill.low + 1 / decode.low


def _speed(parts: Mapping[str, float], threads: int, known: str, half: float) -> Speed:
    rate = 1 / sum(parts.values())
    return Speed(rate, rate * math.exp(-half), rate * math.exp(half), parts, threads, known)


def _measured_or(measured: Mapping[str, float] | None, table: Mapping[str, float], kind: GgmlType) -> float:
    """A type's rate as measured, else the class's, times what was measured over it in the types that both have."""
    name = kind.name.lower()
    if not measured:
        return table.get(name, table["plain"])
    if name in measured:
        return measured[name]
    parts = [rate / table.get(other, table["plain"]) for other, rate in measured.items()]
    return table.get(name, table["plain"]) * statistics.median(parts)


def _between(curve: Mapping[int, float], threads: int) -> float:
    """A measured curve at a number of threads: linear between its points, held at its ends."""
    points = sorted(curve.items())
    if threads <= points[0][0]:
        return points[0][1]
    for (n0, rate0), (n1, rate1) in itertools.pairwise(points):
        if threads <= n1:
            return rate0 + (rate1 - rate0) * (threads - n0) / (n1 - n0)
    return points[-1][1]


def _board_id(device_id: str) -> str:
    head, _, tail = device_id.rpartition("-")
    return head if tail[:-2].replace(".", "").isdigit() and tail[-2:] in ("gb", "mb") else device_id
