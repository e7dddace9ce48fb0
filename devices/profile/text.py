"""A profile as a table, as llama-bench's JSONL, and held against assertions."""

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ...edge.errors import InputError
from ...edge.written import human_bytes

_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}


def metrics(profile: Mapping[str, Any]) -> dict[str, float]:
    """What `--assert` knows: the least favourable of base and adapters, plus each by name ("math.decode_tokens_per_s").

    decode_tokens_per_s is at the least depth, prefill_tokens_per_s at the longest prompt, first_token_s there too.
    """
    found: dict[str, float] = {}
    for case in profile["cases"]:
        decode, prefill = case["decode"][0], case["prefill"][-1]
        own = {
            "decode_tokens_per_s": decode["tokens_per_s"]["median"],
            "prefill_tokens_per_s": prefill["tokens_per_s"]["median"],
            "first_token_s": prefill["first_token_s"]["median"],
            "inter_token_p99_s": decode["inter_token_s"]["p99"],
        }
        for key, value in own.items():
            found[f"{case['adapter'] or 'base'}.{key}"] = value
            worst = min if key.endswith("per_s") else max
            found[key] = worst(found.get(key, value), value)
    memory = profile["memory"]
    found |= {key: memory[key] for key in ("peak_rss_bytes", "pss_bytes", "uss_bytes") if memory[key] is not None}
    found["planned_bytes"] = memory["planned"]["total_bytes"]
    found |= {f"load_{key}": value for key, value in profile["load"].items() if value is not None}
    return found


def failed_assertions(profile: Mapping[str, Any], assertions: Sequence[str]) -> list[str]:
    """Those that do not hold, with what was measured.

    Raises:
        InputError: one cannot be read or names no metric; all faults are named.
    """
    known = metrics(profile)
    faults, failed = [], []
    for text in assertions:
        parsed = parse_assertion(text)
        if parsed is None:
            faults.append(f"{text!r} is not an assertion, for example decode_tokens_per_s>=8")
        elif parsed[0] not in known:
            faults.append(f"{parsed[0]!r} is not a metric of this profile; it has {', '.join(sorted(known))}")
        elif not _COMPARE[parsed[1]](known[parsed[0]], parsed[2]):
            failed.append(f"{text}: measured {known[parsed[0]]:.6g}")
    if faults:
        raise InputError("an assertion cannot be checked", problems=faults)
    return failed


def parse_assertion(text: str) -> tuple[str, str, float] | None:
    """ "peak_rss_bytes<=1.2e9" -> its three parts, or None."""
    found = re.fullmatch(r"\s*([\w.\-]+)\s*(>=|<=|==|>|<)\s*([-+.\deE]+)\s*", text)
    try:
        return (found[1], found[2], float(found[3])) if found else None
    except ValueError:
        return None


def table(profile: Mapping[str, Any]) -> str:
    """A readable table."""
    setup, memory, load = profile["setup"], profile["memory"], profile["load"]
    cold = "not available" if load["cold_s"] is None else f"{load['cold_s']:.2f} s"
    threads = f"{setup['threads']} thread" + "s" * (setup["threads"] > 1)
    lines = [
        f"{profile['model']['name']} on {profile['machine']['device']}, {threads}, "
        f"{setup['n_ctx_tokens']} tokens of context",
        f"  load    {cold} cold, {load['warm_s']:.2f} s warm",
    ]
    for case in profile["cases"]:
        lines.append(
            f"  {case['adapter'] or 'base'}" + (f" (loaded in {case['load_s']:.3f} s)" if case["load_s"] else "")
        )
        for row in case["prefill"]:
            first, rate = row["first_token_s"], row["tokens_per_s"]
            lines.append(
                f"    prompt {row['n_prompt_tokens']:5d}   {rate['median']:8.1f} ± {rate['sd']:.1f} tokens/s   "
                f"first token {first['median']:.3f} s"
            )
        for row in case["decode"]:
            rate, gap = row["tokens_per_s"], row["inter_token_s"]
            lines.append(
                f"    depth  {row['depth_tokens']:5d}   {rate['median']:8.1f} ± {rate['sd']:.1f} tokens/s   between "
                f"tokens {gap['p50'] * 1000:.1f} / {gap['p95'] * 1000:.1f} / {gap['p99'] * 1000:.1f} ms (p50/95/99)"
            )
    for row in profile["swaps"]:
        lines.append(
            f"  swap {row['from'] or 'base'} -> {row['to']}: first token {row['first_token_s']['median']:.3f} s, "
            f"back {row['back_first_token_s']['median']:.3f} s "
            f"({row['back_kept_tokens']} of {row['n_prompt_tokens']} tokens restored)"
        )

    def shown(key: str) -> str:
        return "not available" if memory[key] is None else human_bytes(memory[key])

    lines.append(
        f"  memory  peak RSS {shown('peak_rss_bytes')} (planned {human_bytes(memory['planned']['total_bytes'])}), "
        f"PSS {shown('pss_bytes')}, USS {shown('uss_bytes')}, {memory['major_faults']} major faults"
    )
    missing = []
    for label, key in (("temperature", "temperature_c"), ("power", "power_w"), ("throttling", "throttled")):
        before, after = (profile["sensors"][when].get(key) for when in ("before", "after"))
        if before is None:
            missing.append(label)
        else:
            lines.append(f"  {label:12s}{_reading(before)} -> {_reading(after)}")
    energy = profile["sensors"]["energy_j"]
    if energy:
        lines.append(f"  energy      {_reading(energy)} J over the whole profile")
    else:
        missing.append("energy")
    if missing:
        lines.append(f"  not read here: {', '.join(missing)}")
    if profile.get("sustained"):
        rates = [row["tokens_per_s"] for row in profile["sustained"]["rows"]]
        lines.append(
            f"  sustained   {rates[0]:.1f} tokens/s at first, {rates[-1]:.1f} at the end, least {min(rates):.1f}"
        )
        used = profile["sustained"]["energy"] or ()
        lines += [f"    {row['joules_per_token']:.3g} J/token, {row['sensor']}: {row['includes']}" for row in used]
        lines += [] if used else ["    J/token not available"]
    lines += [f"  note: {text}" for text in profile["notes"]]
    return "\n".join(lines)


def _reading(value: Any) -> str:
    if isinstance(value, dict):
        return f"{max(value.values()):.1f} ({max(value, key=lambda key: value[key])})" if value else "none"
    return hex(value) if isinstance(value, int) else str(value)


def jsonl(profile: Mapping[str, Any]) -> str:
    """One line per test with llama-bench's fields; those without a meaning here are left out."""
    machine, setup, model = profile["machine"], profile["setup"], profile["model"]
    lines = []
    for case in profile["cases"]:
        tests = [(row["n_prompt_tokens"], 0, 0, row["tokens_per_s"]) for row in case["prefill"]]
        tests += [(0, row["n_tokens"], row["depth_tokens"], row["tokens_per_s"]) for row in case["decode"]]
        for n_prompt, n_gen, depth, rate in tests:
            seconds = [(n_prompt or n_gen) / sample for sample in rate["samples"]]
            mean = sum(seconds) / len(seconds)
            sd = (sum((s - mean) ** 2 for s in seconds) / max(len(seconds) - 1, 1)) ** 0.5
            row = {
                "build_commit": machine["llama_cpp_python"],
                "cpu_info": machine["device"],
                "backends": "CPU",
                "model_filename": model["file"],
                "model_type": model["name"],
                "model_size": model["work"]["file_bytes"],
                "model_n_params": model["n_params"],
                "n_batch": setup["n_batch_tokens"],
                "n_ubatch": setup["n_batch_tokens"],
                "n_threads": setup.get("threads_batch", setup["threads"]) if n_prompt else setup["threads"],
                "type_k": setup["kv_type"],
                "type_v": setup["kv_type"],
                "n_gpu_layers": 0,
                "use_mmap": setup["mmap"],
                "repack": setup["repack"],
                "n_prompt": n_prompt,
                "n_gen": n_gen,
                "n_depth": depth,
                "test_time": profile["created"],
                "avg_ns": round(mean * 1e9),
                "stddev_ns": round(sd * 1e9),
                "avg_ts": rate["mean"],
                "stddev_ts": rate["sd"],
                "samples_ns": [round(s * 1e9) for s in seconds],
                "samples_ts": rate["samples"],
                "adapter": case["adapter"],
            }
            lines.append(json.dumps(row, ensure_ascii=False))
    return "\n".join(lines)
