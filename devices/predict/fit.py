"""Will a model fit a device, and how fast will it run: one answer with its numbers, and the nearest that fits.

target = Target.of_shape(find_shape("llama-3.2-1b"), "q4_0")
answer = judge(find_device("raspberry-pi-5-4gb"), target, Wish(context_tokens=4096, adapter_rank=16))
answer.fits, answer.plan.total_bytes, answer.decode.tokens_per_s
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ...edge.errors import InputError, SlmEdgeError, UnsupportedError
from ...edge.gguf.base import check_base
from ...edge.gguf.families import FAMILIES
from ...edge.gguf.file import GgufFile
from ...edge.memory.plan import MemoryPlan, plan_memory
from ...edge.options import KvType
from ..catalogue.catalogue import GIB, Device, devices, variants
from ..catalogue.quant_mix import LABELS
from ..catalogue.shapes import ModelShape, known_shapes
from ..catalogue.table_view import table_of
from ..catalogue.workload import Workload
from .predict import NO_ADAPTER, AdapterCost, Calibration, Predictor, Speed, first_token_s

# Quantisations that are offered when the asked one does not fit, the best first.
QUANTS: Final = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k")
# `general.file_type` as llama.h's `llama_ftype` has it.
FILE_TYPES: Final = {
    **{0: "f32", 1: "f16", 32: "bf16", 2: "q4_0", 3: "q4_1", 8: "q5_0", 9: "q5_1", 7: "q8_0"},
    **{10: "q2_k", 21: "q2_k_s", 11: "q3_k_s", 12: "q3_k_m", 13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m"},
    **{16: "q5_k_s", 17: "q5_k_m", 18: "q6_k", 25: "iq4_nl", 30: "iq4_xs", 26: "iq3_s", 27: "iq3_m"},
}
LEAST_CONTEXT: Final = 512


@dataclass(frozen=True)
class Target:
    """A model as given: its tables, and its shape where it comes from a published configuration.

    Attributes:
        refusal: why this runtime does not take the file; empty if it does.
    """

    name: str
    work: Workload
    table: GgufFile
    quant: str
    architecture: str
    shape: ModelShape | None = None
    refusal: str = ""

    @property
    def proved(self) -> bool:
        """Whether the architecture has a row in the table of families; others run as their files say."""
        return self.architecture in FAMILIES

    @classmethod
    def of_shape(cls, shape: ModelShape, quant: str) -> "Target":
        """A published configuration in a quantisation of `quant_mix.LABELS`."""
        return cls(
            shape.name, Workload.of_shape(shape, quant), table_of(shape, quant), quant, shape.architecture, shape
        )

    @classmethod
    def of_file(cls, file: GgufFile, name: str | None = None) -> "Target":
        """A GGUF, or its header.

        Raises:
            UnsupportedError: its memory is not planned: its blocks are not those of Llama, Qwen and their like.
        """
        if file.get("split.count", 0) not in (0, 1):
            raise UnsupportedError(
                "is one part of a split model",
                where=file.path,
                hint="join the parts with llama-gguf-split --merge",
            )
        work = Workload.of_file(file, name)
        if "blk.0.attn_q.weight" not in file.tensors or "blk.0.ffn_gate.weight" not in file.tensors:
            raise UnsupportedError(
                f"the memory of the architecture {file.get('general.architecture')!r} is not planned here",
                where=file.path,
            )
        main = max(work.weights_by_type.items(), key=lambda row: row[1])[0]
        # A mixture is called by its own name; a third of a small model's weights may be of another type.
        quant = FILE_TYPES.get(file.get("general.file_type"), main.name.lower())
        return cls(work.name, work, file, quant, str(file.get("general.architecture")), refusal=_refusal(file))


def _refusal(file: GgufFile) -> str:
    try:
        check_base(file)
    except SlmEdgeError as error:
        return "; ".join([error.message, *error.problems[:2]])
    return ""


@dataclass(frozen=True)
class Wish:
    """What is to run. None leaves a choice open.

    Attributes:
        context_tokens: longest prompt and answer.
        prompt_tokens: of a typical prompt, for the time to first token.
        adapter_rank, adapter_bytes, n_adapters: adapters by rank on all linear matrices, or by their files' sizes.
        adapter_type: "q8_0", "f16" or "f32".
        kv_type, threads, mmap, repack: of the runtime.
        snapshots_bytes: for prefixes kept in memory.
    """

    context_tokens: int = 2048
    prompt_tokens: int = 256
    adapter_rank: int = 0
    adapter_bytes: int = 0
    n_adapters: int = 0
    adapter_type: str = "q8_0"
    kv_type: KvType | None = None
    threads: int | None = None
    mmap: bool | None = None
    repack: bool | None = None
    snapshots_bytes: int = 0


@dataclass(frozen=True)
class Verdict:
    """One setup on one device.

    Attributes:
        fits: the plan's total is within the device's usable RAM.
        context_tokens, prompt_tokens: that the numbers hold for.
        decode: at the end of a typical prompt; decode_full: with the context full.
        first_token_s, low and high: for the typical prompt.
        nearest: where it does not fit, the nearest that does; `change` says what differs from what was asked.
        sizes: each size of RAM that was looked at, in GiB, and whether it fits; empty if one was asked for.
    """

    device: Device
    target: Target
    wish: Wish
    plan: MemoryPlan
    fits: bool
    decode: Speed
    decode_full: Speed
    prefill: Speed
    first_token_s: tuple[float, float, float]
    adapter: AdapterCost
    nearest: "Verdict | None" = None
    change: str = ""
    sizes: tuple[tuple[float, bool], ...] = ()

    @property
    def obstacles(self) -> list[str]:
        """Why this runtime cannot run it there, whatever the memory; empty if it does."""
        found = [self.target.refusal] if self.target.refusal else []
        if self.device.system:
            found.append(
                f"this runtime is not for {self.device.system}: what follows is llama.cpp's on such a processor"
            )
        return found

    @property
    def joules_per_token(self) -> float | None:
        """At the wall while decoding, from the device's power under load; None if nobody measured it."""
        load = self.device.facts.get("load_w")
        return float(load.value) / self.decode.tokens_per_s if load else None


BYTES_OF: Final = {"q8_0": 34 / 32, "f16": 2.0, "bf16": 2.0, "f32": 4.0}


def adapter_of(work: Workload, wish: Wish) -> AdapterCost:
    """The adapter in use, from a rank or from a file's size.

    Raises:
        InputError: a rank is given for a model whose matrices are not known.
    """
    n_pairs = len(work.lora_shapes)
    if wish.adapter_rank:
        if not n_pairs:
            raise InputError(f"the matrices of {work.name} are not known, so an adapter's size is not either")
        return AdapterCost(work.lora_weights(wish.adapter_rank), BYTES_OF[wish.adapter_type], n_pairs)
    if wish.adapter_bytes and wish.n_adapters:
        each = wish.adapter_bytes / wish.n_adapters
        return AdapterCost(round(each / BYTES_OF[wish.adapter_type]), BYTES_OF[wish.adapter_type], n_pairs)
    return NO_ADAPTER


def judge(
    device: Device, target: Target, wish: Wish, *, calibration: Calibration | None = None, seek: bool = True
) -> Verdict:
    """The best setup within the wish, and where none fits, the nearest that does.

    Args:
        calibration: of a run on this very unit.
        seek: look for the nearest that fits.
    """
    predictor = Predictor(device, calibration=calibration)
    options = [_verdict(predictor, target, option) for option in _options(wish)]
    fitting = [option for option in options if option.fits]
    if fitting:
        return max(fitting, key=_worth)
    least = min(options, key=lambda option: option.plan.total_bytes)
    if not seek:
        return least
    nearest = _nearest(predictor, target, wish) or _other_model(predictor, target, wish)
    nearest = nearest or _other_device(device, target, wish)
    change = _difference(least, nearest) if nearest else ""
    return replace(least, nearest=nearest, change=change)


def judge_sizes(
    sizes: Sequence[Device], target: Target, wish: Wish, *, calibration: Calibration | None = None, seek: bool = True
) -> Verdict:
    """As `judge`, on the smallest of a device's sizes that fits; where none does, on the largest."""
    if len(sizes) == 1:
        return judge(sizes[0], target, wish, calibration=calibration, seek=seek)
    each = [judge(size, target, wish, calibration=calibration, seek=False) for size in sizes]
    fits = tuple((size.ram_bytes / GIB, verdict.fits) for size, verdict in zip(sizes, each, strict=True))
    fitting = [verdict for verdict in each if verdict.fits]
    chosen = fitting[0] if fitting else judge(sizes[-1], target, wish, calibration=calibration, seek=seek)
    return replace(chosen, sizes=fits)


def _options(wish: Wish) -> Iterator[Wish]:
    """Every load mode that the wish leaves open, with the KV type asked for (F16 unless said)."""
    for mmap, repack in itertools.product((False, True), (True, False)):
        if wish.mmap not in (None, mmap) or wish.repack not in (None, repack):
            continue
        yield replace(wish, mmap=mmap, repack=repack, kv_type=wish.kv_type or "f16")


def _worth(verdict: Verdict) -> tuple[float, ...]:
    """Speed first; among equals the setup with less memory."""
    request_s = verdict.first_token_s[0] + 64 / verdict.decode.tokens_per_s
    return (-round(request_s, 2), -verdict.plan.total_bytes)


def _verdict(predictor: Predictor, target: Target, wish: Wish) -> Verdict:
    device, work = predictor.device, target.work
    adapter = adapter_of(work, wish)
    n_adapters = wish.n_adapters or (1 if wish.adapter_rank else 0)
    plan = plan_memory(
        target.table,
        n_ctx_tokens=wish.context_tokens,
        kv_type=wish.kv_type or "f16",
        mmap=bool(wish.mmap),
        repack=bool(wish.repack),
        adapters_bytes=wish.adapter_bytes or round(adapter.n_bytes) * n_adapters,
        n_adapters=n_adapters,
        snapshots_bytes=wish.snapshots_bytes,
        n_threads=wish.threads or device.n_cores,
        features=device.cores.features,
        # The boards of the table run Linux
        lets_go=True,
    )
    kv_type = wish.kv_type or "f16"
    threads = min(wish.threads, device.n_cores) if wish.threads else None
    prompt = min(wish.prompt_tokens, wish.context_tokens)
    decode = predictor.decode(work, threads=threads, depth_tokens=prompt, kv_type=kv_type, adapter=adapter)
    full = predictor.decode(work, threads=threads, depth_tokens=wish.context_tokens, kv_type=kv_type, adapter=adapter)
    kernel = None if wish.repack else "plain"
    prefill = predictor.prefill(
        work,
        n_prompt_tokens=prompt,
        threads=threads,
        kernel=kernel,  # type: ignore[arg-type]
        adapter=adapter,
    )
    fits = plan.total_bytes <= device.usable_bytes
    first = first_token_s(prefill, decode, prompt)
    return Verdict(device, target, wish, plan, fits, decode, full, prefill, first, adapter)


def _nearest(predictor: Predictor, target: Target, wish: Wish) -> Verdict | None:
    """The first that fits of: KV in q8_0, stored layout, half the context again and again, a smaller quantisation."""
    quants = [target]
    if target.shape is not None:
        size = target.work.file_bytes
        smaller = [Target.of_shape(target.shape, quant) for quant in QUANTS if quant in LABELS]
        quants += [other for other in smaller if other.work.file_bytes < size]
    contexts = [wish.context_tokens]
    while contexts[-1] // 2 >= LEAST_CONTEXT:
        contexts.append(contexts[-1] // 2)
    open_wish = replace(wish, mmap=None, repack=None)
    # A quarter of the context costs more than a step down in quantisation.
    order = sorted(
        itertools.product(range(len(quants)), range(len(contexts)), (0, 1)),
        key=lambda at: (at[0] * 1.5 + at[1] + at[2] * 0.5, at),
    )
    for at_quant, at_context, at_kv in order:
        changed = replace(open_wish, context_tokens=contexts[at_context], kv_type=("f16", "q8_0")[at_kv])
        options = [_verdict(predictor, quants[at_quant], option) for option in _options(changed)]
        fitting = [option for option in options if option.fits]
        if fitting:
            return max(fitting, key=_worth)
    return None


def _other_model(predictor: Predictor, target: Target, wish: Wish) -> Verdict | None:
    """The largest model of the table that fits as asked; only where the target is of the table itself."""
    if target.shape is None:
        return None
    for shape in sorted(known_shapes().values(), key=lambda shape: -shape.n_params):
        if shape.architecture not in FAMILIES:
            continue
        if shape.n_params < target.shape.n_params and wish.context_tokens <= shape.n_ctx_train_tokens:
            other = judge(predictor.device, Target.of_shape(shape, target.quant), wish, seek=False)
            if other.fits:
                return other
    return None


def _other_device(device: Device, target: Target, wish: Wish) -> Verdict | None:
    """The same board with more RAM, else the device with the least RAM on which it fits."""
    others = sorted((v for d in devices().values() for v in variants(d)), key=lambda d: (d.ram_bytes, d.id))
    board = device.id.rpartition("-")[0]
    for other in sorted(others, key=lambda d: not d.id.startswith(board)):
        verdict = judge(other, target, wish, seek=False)
        if verdict.fits:
            return verdict
    return None


def _difference(asked: Verdict, found: Verdict) -> str:
    pairs: list[tuple[str, Any, Any]] = [
        ("the device", asked.device.id, found.device.id),
        ("the model", asked.target.name, found.target.name),
        ("quantisation", asked.target.quant, found.target.quant),
        ("context", asked.wish.context_tokens, found.wish.context_tokens),
        ("KV", asked.plan.choices.kv_type, found.plan.choices.kv_type),
    ]
    return ", ".join(f"{what} {new} for {old}" for what, old, new in pairs if old != new) or "another load mode"
