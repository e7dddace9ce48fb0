"""Measures a session as llama-bench does: random tokens, warm-up, repeats, all samples kept, prefill and decode apart.

with Session.open(pack) as session:
    rows = measure_case(session, "math", Plan.quick())
"""

import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...edge.gguf.base import BaseInfo
from ...edge.llama.context import Context
from ...edge.llama.model import Adapter, Model, copied_spans
from ...edge.options import CHUNK_TOKENS
from ...edge.session.session import Session


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        prompt_tokens: lengths of the prompts.
        depths: of the context where answers are decoded.
        n_tokens: decoded in each repeat.
        repeats: of everything, after one warm-up.
    """

    prompt_tokens: tuple[int, ...] = (32, 128, 512)
    depths: tuple[int, ...] = (0, 512, 1024)
    n_tokens: int = 64
    repeats: int = 5

    @classmethod
    def quick(cls) -> "Plan":
        """Under a minute on a laptop with the starter pack."""
        return cls(prompt_tokens=(32, 256), depths=(0, 512), n_tokens=24, repeats=3)

    def within(self, n_ctx_tokens: int) -> "Plan":
        """Without what the context has no room for."""
        return Plan(
            tuple(n for n in self.prompt_tokens if n < n_ctx_tokens) or (max(n_ctx_tokens // 2, 1),),
            tuple(n for n in self.depths if n + self.n_tokens < n_ctx_tokens) or (0,),
            min(self.n_tokens, n_ctx_tokens - 1),
            self.repeats,
        )


def stats(samples: Sequence[float]) -> dict[str, Any]:
    """Median, mean, sd, least and most of samples, and the samples."""
    return {
        "median": statistics.median(samples),
        "mean": statistics.fmean(samples),
        "sd": statistics.stdev(samples) if len(samples) > 1 else 0.0,
        "min": min(samples),
        "max": max(samples),
        "samples": list(samples),
    }


def load_times(base: BaseInfo, *, mmap: bool, repack: bool) -> dict[str, Any]:
    """Seconds to load the base from storage and from the page cache, as a session does.

    "Cold" is after the kernel was asked to drop the file's pages (no rights needed); None if it cannot be asked.
    """
    cold_s = None
    if hasattr(os, "posix_fadvise"):
        with base.file.path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        cold_s = _load_s(base, mmap, repack)
    return {"cold_s": cold_s, "warm_s": _load_s(base, mmap, repack)}


def _load_s(base: BaseInfo, mmap: bool, repack: bool) -> float:
    spans = copied_spans(base)
    start_s = time.perf_counter()
    Model.load(base.file.path, mmap=mmap, repack=repack, copied=spans).close()
    return time.perf_counter() - start_s


def adapter_set(session: Session, name: str | None) -> list[tuple[Adapter, float]]:
    """What the engine takes for an adapter of the session, loaded and tried where it is not yet."""
    session.use(name)
    if name is None:
        return []
    packed = session.adapters[name]
    return [(adapter, packed.card.scale) for adapter in session.model.adapters.values() if adapter.path == packed.path]


def _fill(context: Context, tokens: Sequence[int]) -> None:
    """Makes these the whole of the first sequence."""
    context.clear()
    if tokens:
        context.decode(tokens, 0, outputs="none")


def measure_case(session: Session, adapter: str | None, plan: Plan, step: Callable[[], None]) -> dict[str, Any]:
    """Prefill, decode and first-token times of the base (None) or one adapter.

    Args:
        step: called after each measurement.
    """
    start_s = time.perf_counter()
    active = adapter_set(session, adapter)
    load_s = time.perf_counter() - start_s if adapter is not None else None
    context = session.context
    context.set_adapters(active)
    rng = np.random.default_rng(0)
    n_vocab = context.n_vocab

    def random_tokens(n: int) -> list[int]:
        return [int(token) for token in rng.integers(0, n_vocab, n)]

    prefill = []
    for n in plan.prompt_tokens:
        seconds = []
        for repeat in range(plan.repeats + 1):
            tokens = random_tokens(n)
            context.clear()
            start_s = time.perf_counter()
            context.decode(tokens, 0)
            context.logits_view()
            if repeat:
                seconds.append(time.perf_counter() - start_s)
        prefill.append(
            {"n_prompt_tokens": n, "first_token_s": stats(seconds), "tokens_per_s": stats([n / s for s in seconds])}
        )
        step()
    decode = []
    for depth in plan.depths:
        before = random_tokens(depth)
        _fill(context, before)
        rates, gaps = [], []
        for repeat in range(plan.repeats + 1):
            n = plan.n_tokens if repeat else 1
            tokens = random_tokens(n)
            own = []
            for i, token in enumerate(tokens):
                start_s = time.perf_counter()
                context.decode([token], depth + i)
                context.logits_view()
                own.append(time.perf_counter() - start_s)
            if context.memory.cuttable:
                context.remove(0, depth)
            else:
                _fill(context, before)
            if repeat:
                rates.append(n / sum(own))
                gaps += own
        p50, p95, p99 = (float(value) for value in np.percentile(gaps, (50, 95, 99)))
        decode.append(
            {
                "depth_tokens": depth,
                "n_tokens": plan.n_tokens,
                "tokens_per_s": stats(rates),
                "inter_token_s": {"p50": p50, "p95": p95, "p99": p99, "samples": gaps},
            }
        )
        step()
    context.clear()
    packed = session.adapters.get(adapter) if adapter is not None else None
    pairs = (active[0][0].n_tensors or 0) // 2 if active else 0
    return {
        "adapter": adapter,
        "adapter_bytes": packed.size_bytes if packed else 0,
        "adapter_sha256": packed.sha256 if packed else None,
        "n_pairs": pairs,
        "load_s": load_s,
        "prefill": prefill,
        "decode": decode,
    }


def measure_swaps(session: Session, names: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """End-to-end requests that go from one adapter to the next and back, through the session as users do.

    Each row: seconds to the first token of a prompt that is new, and of the same prompt after coming back; of how many
    tokens it is, and how many of them the session had kept, the least of the repeats. The prompt has two whole chunks
    beyond what other prompts begin with, where the context has room: less is not kept. Without any room there are no
    rows.
    """
    rows: list[dict[str, Any]] = []
    for other, name in itertools.islice(itertools.pairwise([None, *names]), 4):
        assert name is not None
        first, back = [], []
        for repeat in range(repeats):
            session.use(name)
            prompt, n_prompt_tokens = _long_prompt(session, f"Swap {repeat}: {name} after {other or 'the base'}. ")
            if n_prompt_tokens >= session.n_ctx_tokens:
                return rows
            session.use(other).ask("Hello", max_tokens=1)
            first.append(session.use(name).ask(prompt, max_tokens=1))
            session.use(other).ask("Hello", max_tokens=1)
            back.append(session.use(name).ask(prompt, max_tokens=1))
        rows.append(
            {
                "from": other,
                "to": name,
                "n_prompt_tokens": n_prompt_tokens,
                "first_token_s": stats([answer.first_token_s for answer in first]),
                "first_kept_tokens": min(answer.n_kept_tokens for answer in first),
                "back_first_token_s": stats([answer.first_token_s for answer in back]),
                "back_kept_tokens": min(answer.n_kept_tokens for answer in back),
            }
        )
    return rows


def _long_prompt(session: Session, head: str) -> tuple[str, int]:
    """A prompt under the adapter in use, and of how many tokens it is; as short as it may be."""
    prompt, n_tokens = head, 0
    while True:
        longer = prompt + "How many legs have three cats and two birds? "
        ids, n_shared = session.rendered(longer, None, session.choice)
        if n_tokens and len(ids) >= session.n_ctx_tokens:
            return prompt, n_tokens
        prompt, n_tokens = longer, len(ids)
        if n_tokens > n_shared + 2 * CHUNK_TOKENS:
            return prompt, n_tokens


def memory_now() -> dict[str, int | None]:
    """RSS, PSS, USS and page faults of this process; None if the system does not tell."""
    from ...edge.system.machine import peak_memory_bytes
    from ...edge.system.mappings import counted_twice_bytes

    names = ("peak_rss_bytes", "rss_bytes", "pss_bytes", "uss_bytes", "major_faults", "minor_faults")
    found: dict[str, int | None] = dict.fromkeys(names)
    found["peak_rss_bytes"] = peak_memory_bytes()
    if sys.platform != "win32":
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        found["major_faults"], found["minor_faults"] = usage.ru_majflt, usage.ru_minflt
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return found
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    rss_bytes = kib["Rss"] * 1024 - counted_twice_bytes()
    found["rss_bytes"], found["pss_bytes"] = rss_bytes, kib["Pss"] * 1024
    found["uss_bytes"] = (kib["Private_Clean"] + kib["Private_Dirty"]) * 1024
    # The kernel's own peak lags by a few pages.
    found["peak_rss_bytes"] = max(found["peak_rss_bytes"] or 0, rss_bytes)
    return found


def sustain(
    session: Session, adapter: str | None, seconds: float, step: Callable[[float], None]
) -> list[dict[str, float]]:
    """Decodes without pause for so long; tokens per second of each second or so.

    Args:
        step: told how many seconds have passed since the last call.

    Returns:
        Rows of "at_s" (since the beginning), "n_tokens" and "tokens_per_s", each since the row before.
    """
    context = session.context
    context.set_adapters(adapter_set(session, adapter))
    context.clear()
    room = min(session.n_ctx_tokens, 256)
    rows: list[dict[str, float]] = []
    start_s = mark_s = time.perf_counter()
    n, at = 0, 0
    while mark_s - start_s < seconds:
        if at >= room:
            context.clear()
            at = 0
        context.decode([n % context.n_vocab], at)
        context.logits_view()
        n, at = n + 1, at + 1
        now_s = time.perf_counter()
        if now_s - mark_s >= 1:
            rows.append({"at_s": now_s - start_s, "n_tokens": n, "tokens_per_s": n / (now_s - mark_s)})
            step(now_s - mark_s)
            mark_s, n = now_s, 0
    context.clear()
    return rows
