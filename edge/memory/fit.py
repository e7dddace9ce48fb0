"""Fits a session into a memory budget: the best setup that stays within it, or a refusal with the numbers.

What is given up, in this order: the second layout of the weights, the faster one, KV in F16, the size of batches, half
the context again and again down to `LEAST_CTX_TOKENS`. What the user asked for by name is never given up.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, product
from typing import Any, Final

from ..errors import DoesNotFitError
from ..gguf.base import BaseInfo
from ..llama.model import cpu_features, faster_as_stored, repacked_tensors
from ..llama.states import kept_of
from ..options import BATCH_TOKENS, CHUNK_TOKENS, DEFAULT_BUDGET_BYTES, MOST_LOADED, EngineOptions
from ..system.machine import CAN_LET_GO, available_bytes, default_threads, machine_bytes, memory_limit_bytes
from ..written import human_bytes, meant_hint
from .plan import ContextSize, MemoryPlan, plan_memory

DEFAULT_CTX_TOKENS: Final = 2048
LEAST_CTX_TOKENS: Final = 512
LEAST_BATCH_TOKENS: Final = 32
# Copies of so small a part of the weights do not make tokens faster that anyone could measure.
FEW: Final = 0.1


def maps_well(plan: MemoryPlan, room_bytes: int | None = None) -> bool:
    """Whether to map the base instead of reading it; always if at most a tenth is copied.

    Pages that are copied from must wait in the page cache, or the file is read twice; if the system cannot release
    them, they would stand beside their copies for good.

    Args:
        room_bytes: for session and page cache together; None: what memory has at this moment.
    """
    if (plan.passing_bytes or plan.repacked_bytes) <= plan.weights_bytes // 10:
        return True
    if not plan.passing_bytes:
        return False
    return plan.total_bytes + plan.passing_bytes <= (available_bytes() if room_bytes is None else room_bytes)


def layouts(base: BaseInfo, repack: bool | None, both: bool | None, mmap: bool | None) -> list[tuple[bool, bool]]:
    """Ways to hold the weights, as (repack, both_layouts), the fastest first.

    Args:
        repack, both, mmap: as asked for; None leaves it open.
    """
    # A sequence goes from one layout's context to the other's and back, and is cut there.
    can_both = mmap is not False and CAN_LET_GO and ContextSize.of(base.file).cuttable
    if both and can_both:
        return [(True, True)]
    if repack is not None:
        return [(repack, False)]
    file = base.file
    slow_bytes = sum(info.size_bytes for info in faster_as_stored(file, cpu_features()))
    copies_bytes = sum(info.size_bytes for info in repacked_tensors(file, cpu_features()))
    stored_bytes = sum(info.size_bytes for info in file.tensors.values())
    if slow_bytes == copies_bytes and 0 < slow_bytes <= FEW * stored_bytes:
        # A part of the prompt's time is lost by the copies, and what a token gains cannot be measured.
        return [(False, False)]
    return [*([(True, True)] if slow_bytes and both is None and can_both else []), (True, False), (False, False)]


def plan_session(
    base: BaseInfo, options: EngineOptions, adapter_sizes_bytes: Sequence[int] = (), n_outputs: int = 1
) -> MemoryPlan:
    """The plan of a session as its options ask for it, within `ram_bytes` or else the process's own limit.

    Args:
        n_outputs: logit rows of one batch.

    Raises:
        DoesNotFitError: the base was not trained for so long a context, or there is not enough memory.
    """
    trained = base.n_ctx_train_tokens
    n_ctx_tokens = options.get("n_ctx_tokens")
    if n_ctx_tokens and n_ctx_tokens > trained:
        why = (
            f"beyond its window of {trained} llama.cpp computes something else"
            if base.window_ignored
            else f"the base was trained for {trained}"
        )
        raise DoesNotFitError(f"a context of {n_ctx_tokens} tokens is asked for; {why}", where=base.file.path)
    asked: dict[str, Any] = {
        name: options.get(name)
        for name in ("mmap", "repack", "both_layouts", "n_ctx_tokens", "kv_type", "n_batch_tokens")
    }
    budget_bytes = options.get("adapter_budget_bytes")
    # What can be loaded at once; those that are pinned stay beside one more.
    most_loaded = max(MOST_LOADED, len(options.get("pinned", ())) + 1)
    largest_bytes = sum(sorted(adapter_sizes_bytes)[-most_loaded:])
    together = list(accumulate(sorted(adapter_sizes_bytes)[:most_loaded]))
    sizes: dict[str, Any] = {
        "adapters_bytes": largest_bytes if budget_bytes is None else min(largest_bytes, budget_bytes),
        "n_adapters": sum(budget_bytes is None or n_bytes <= budget_bytes for n_bytes in together),
        "n_outputs": n_outputs,
        "n_parallel": options.get("n_parallel") or 0,
        "n_rows": options.get("n_rows") or 1,
        "n_threads": max(options.get("threads") or default_threads(), options.get("threads_batch") or 1),
        "flash_attention": options.get("flash_attention", "auto") != "off",
    }
    asked_bytes = options.get("prefix_budget_bytes")
    on_disk = options.get("prefix_cache") is not None
    beside = options.get("n_parallel") or sizes["n_rows"] > 1
    # Without adapters nothing is swapped; answers at once share their beginnings. What cannot be cut is put back.
    used = adapter_sizes_bytes or beside or on_disk or not ContextSize.of(base.file).cuttable
    budget_bytes = DEFAULT_BUDGET_BYTES if used else 0
    budget_bytes = budget_bytes if asked_bytes is None else asked_bytes
    limit_bytes = limit_of(options)
    if limit_bytes is not None:
        plan = fit(base, limit_bytes, **asked, **sizes, snapshots_bytes=asked_bytes or 0)
        # What nothing else needs; fewer kept prefixes cost time and nothing else.
        spare_bytes = limit_bytes - plan.total_bytes + plan.snapshots_bytes
        return replace(plan, snapshots_bytes=min(max(budget_bytes, plan.kv_bytes if on_disk else 0), spare_bytes))
    (repack, both), *others = layouts(base, asked.pop("repack"), asked.pop("both_layouts"), asked["mmap"])
    defaults = {
        "n_ctx_tokens": min(DEFAULT_CTX_TOKENS, trained),
        "kv_type": "f16",
        "n_batch_tokens": BATCH_TOKENS,
    }
    chosen: dict[str, Any] = {name: defaults.get(name) if value is None else value for name, value in asked.items()}
    mapped = plan_memory(base, **{**chosen, "mmap": True}, repack=repack, both_layouts=both, **sizes)
    # By what the machine has, not by what is free: the same prompt is to give the same bits tomorrow.
    if both and others and mapped.total_bytes > machine_bytes() // 2:
        repack, both = others[0]
        mapped = plan_memory(base, **{**chosen, "mmap": True}, repack=repack, **sizes)
    if chosen["mmap"] is None:
        chosen["mmap"] = both or maps_well(mapped)
    plan = mapped if chosen["mmap"] else plan_memory(base, **chosen, repack=repack, **sizes)
    # One that comes from the disk, or waits to be written, pushes others out.
    return replace(plan, snapshots_bytes=max(budget_bytes, plan.kv_bytes if on_disk else 0))


def limit_of(options: EngineOptions) -> int | None:
    """The most memory that a session may take: `ram_bytes`, or else the process's own limit."""
    return options.get("ram_bytes") or memory_limit_bytes()


def fit(
    base: BaseInfo,
    ram_bytes: int,
    *,
    mmap: bool | None = None,
    repack: bool | None = None,
    both_layouts: bool | None = None,
    n_ctx_tokens: int | None = None,
    kv_type: Any = None,
    n_batch_tokens: int | None = None,
    **sizes: Any,
) -> MemoryPlan:
    """The best plan whose total is within `ram_bytes`.

    Args:
        mmap, repack, both_layouts, n_ctx_tokens, kv_type, n_batch_tokens: None leaves the choice open.
        sizes: further arguments of `plan_memory`.

    Raises:
        DoesNotFitError: there is none; the message has the least that is needed and what it is made of.
    """
    ctx = [n_ctx_tokens] if n_ctx_tokens else _contexts(base.n_ctx_train_tokens)
    batches = [n_batch_tokens] if n_batch_tokens else [BATCH_TOKENS, CHUNK_TOKENS, LEAST_BATCH_TOKENS]
    kv_types = [kv_type] if kv_type else ["f16"] + ["q8_0"] * (sizes.get("flash_attention", True) and _kv_q8(base))
    ways = layouts(base, repack, both_layouts, mmap)
    loads = [mmap] if mmap is not None else [False, True]
    least: MemoryPlan | None = None
    for n_ctx, n_batch, kv, (packed, both) in product(ctx, batches, kv_types, ways):
        setup = {
            "repack": packed,
            "both_layouts": both,
            "n_ctx_tokens": n_ctx,
            "kv_type": kv,
            "n_batch_tokens": n_batch,
        }
        plans = [plan_memory(base, mmap=load, **setup, **sizes) for load in ([True] if both else loads)]
        # Equal but for a few pages: mapped, as that is faster and shared, unless the file would be read twice.
        plan = min(
            plans,
            key=lambda plan: plan.total_bytes * (99 if plan.choices.mmap and maps_well(plan, ram_bytes) else 100),
        )
        if plan.total_bytes <= ram_bytes:
            return plan
        if least is None or plan.total_bytes < least.total_bytes:
            least = plan
    assert least is not None
    raise _refusal(base, ram_bytes, least, n_ctx_tokens, sizes)


def _contexts(trained: int) -> list[int]:
    """2048, 1024, 512, as far as the base was trained for so much."""
    return list(_halved(min(DEFAULT_CTX_TOKENS, trained)))


def _halved(n_tokens: int) -> Iterator[int]:
    yield n_tokens
    while n_tokens // 2 >= LEAST_CTX_TOKENS:
        n_tokens //= 2
        yield n_tokens


def _kv_q8(base: BaseInfo) -> bool:
    """Whether rows of the KV cache can be cut into Q8_0's blocks of 32."""
    rows = kept_of(base.file).row_values
    return bool(rows) and all(n_values % 32 == 0 for n_values in rows)


def _refusal(
    base: BaseInfo, ram_bytes: int, least: MemoryPlan, n_ctx_tokens: int | None, sizes: dict[str, Any]
) -> DoesNotFitError:
    hints = [hint] if (hint := meant_hint(ram_bytes)) else []
    hints.append(f"at least {human_bytes(least.total_bytes)} would do")
    if n_ctx_tokens and n_ctx_tokens > LEAST_CTX_TOKENS:
        try:
            shorter = fit(base, ram_bytes, **sizes)
            hints.append(f"a context of {shorter.choices.n_ctx_tokens} tokens fits")
        except DoesNotFitError:
            pass
    if least.adapters_bytes:
        hints.append(f"the adapters take {human_bytes(least.adapters_bytes)}")
    if least.parallel_bytes:
        hints.append(f"{sizes['n_parallel']} answers at once take {human_bytes(least.parallel_bytes)}")
    if sizes.get("n_rows", 1) > 1:
        hints.append(
            f"the keys and values of {sizes['n_rows']} answers side by side take {human_bytes(least.kv_bytes)}"
        )
    if least.evictable_bytes:
        hints.append(f"{human_bytes(least.evictable_bytes)} of it is the mapped base, read again when dropped")
    return DoesNotFitError(
        f"does not fit into {human_bytes(ram_bytes)}: {least.describe()}",
        where=base.file.path,
        hint="; ".join(hints) + "; or take a smaller base or a stronger quantisation",
    )
