"""How `slm-edge devices fit` shows its answer: as JSON, as text, and with the arithmetic."""

from collections.abc import Sequence
from typing import Any

from ...edge.sizes import human_bytes
from .constants import KV_PART_OF_RATE
from .fit import Verdict
from .predict import Predictor, Speed

RESTS_ON = {
    "prior": "nothing measured on this board",
    "board": "measurements of other units of this board",
    "calibrated": "a run on this unit",
}


def speed_dict(speed: Speed) -> dict[str, Any]:
    """For JSON."""
    return {
        "tokens_per_s": speed.tokens_per_s,
        "low": speed.low,
        "high": speed.high,
        "interval": 0.9,
        "threads": speed.threads,
        "rests_on": speed.known,
        "seconds_per_token_by_part": dict(speed.parts),
    }


def verdict_dict(verdict: Verdict) -> dict[str, Any]:
    """For JSON."""
    first, low, high = verdict.first_token_s
    joules = verdict.joules_per_token
    load = verdict.device.facts.get("load_w")
    return {
        "device": verdict.device.id,
        "model": verdict.target.name,
        "quantisation": verdict.target.quant,
        "fits": verdict.fits,
        "memory": verdict.plan.as_dict(),
        "usable_ram_bytes": verdict.device.usable_bytes,
        "streamed_bytes_per_token": verdict.target.work.streamed_bytes,
        "prompt_tokens": min(verdict.wish.prompt_tokens, verdict.wish.context_tokens),
        "decode": speed_dict(verdict.decode),
        "decode_full_context": speed_dict(verdict.decode_full),
        "prefill": speed_dict(verdict.prefill),
        "first_token_s": {"estimate": first, "low": low, "high": high, "interval": 0.9},
        "joules_per_token": None
        if joules is None
        else {"estimate": joules, "includes": f"{load.value} W under load: {load.source}" if load else ""},
        "nearest": verdict_dict(verdict.nearest) if verdict.nearest else None,
        "change": verdict.change or None,
    }


def rate_text(speed: Speed) -> str:
    """ "12.4 [9.1, 16.9] tokens/s" """
    return f"{speed.tokens_per_s:.3g} [{speed.low:.3g}, {speed.high:.3g}] tokens/s"


def verdict_text(verdict: Verdict) -> str:
    """The whole answer as text; intervals hold 90 %."""
    plan, device, wish = verdict.plan, verdict.device, verdict.wish
    rows = [(name, getattr(plan, f"{name}_bytes")) for name in ("weights", "repacked", "kv", "compute", "outputs")]
    rows += [(name, getattr(plan, f"{name}_bytes")) for name in ("adapters", "snapshots", "process")]
    first, low, high = verdict.first_token_s
    prompt = min(wish.prompt_tokens, wish.context_tokens)
    word = "fits" if verdict.fits else "does NOT fit"
    lines = [
        f"{verdict.target.name} ({verdict.target.quant}) on {device.name}: {word}",
        f"  RAM     {human_bytes(plan.total_bytes)} of {human_bytes(device.usable_bytes)} usable",
        *(f"            {name:10s} {human_bytes(size):>10s}" for name, size in rows if size),
        f"  setup   {plan.choices.describe()}, {verdict.decode.threads} threads to decode, "
        f"{verdict.prefill.threads} for prompts",
        f"  prefill {rate_text(verdict.prefill)} (prompt of {prompt})",
        f"  first   {first:.2f} [{low:.2f}, {high:.2f}] s to the first token",
        f"  decode  {rate_text(verdict.decode)} after the prompt",
        f"          {rate_text(verdict.decode_full)} with {wish.context_tokens} tokens in the context",
    ]
    joules = verdict.joules_per_token
    if joules is not None:
        load = device.facts["load_w"]
        lines.append(f"  energy  {joules:.2g} J/token ({load.value:g} W under load; {load.source})")
    lines.append(
        f"  90 % intervals; decode rests on {RESTS_ON[verdict.decode.known]}, "
        f"prefill on {RESTS_ON[verdict.prefill.known]}"
    )
    if device.note:
        lines.append(f"  note: {device.note}")
    if not verdict.fits:
        if verdict.nearest is None:
            lines.append("nothing near fits any device of the catalogue")
        else:
            lines += [f"the nearest that fits: {verdict.change}", verdict_text(verdict.nearest)]
    return "\n".join(lines)


def explanation(verdict: Verdict, predictor: Predictor) -> str:
    """The arithmetic behind a verdict."""
    work, decode, prefill = verdict.target.work, verdict.decode, verdict.prefill
    device, constants = verdict.device, predictor.constants
    rate = predictor.stream_gb_per_s(decode.threads)
    lines = ["", "how it is computed", f"  weights of one token: {work.streamed_bytes / 1e6:.1f} MB"]
    for kind, n in sorted(work.weights_by_type.items(), key=lambda row: -row[1]):
        lines.append(f"    {kind.name:8s} {n / 1e6:10.1f} million weights")
    curve = device.read_curve()
    if curve:
        fact = device.facts["read_gb_per_s"]
        lines.append(f"  memory: {constants.read_part:.3f} x the measured read rate {curve} GB/s ({fact.source})")
    else:
        fact = device.facts["theoretical_gb_per_s"]
        lines.append(f"  memory: {constants.theory_part:.3f} x {fact.value:g} GB/s ({fact.source})")
    core = device.number("core_gb_per_s", device.cores.core_gb_per_s)
    lines.append(f"    and at most {core:g} GB/s for each core: {rate:.2f} GB/s at {decode.threads} threads")
    if predictor.calibration is not None and predictor.calibration.decode is not None:
        lines.append(f"  x {predictor.calibration.decode:.3f}, from {predictor.calibration.source}")
    elif predictor.board is not None and predictor.board.n_rows:
        lines.append(f"  x {predictor.board.decode_scale:.3f}, from {predictor.board.n_rows} rows of this board")
    lines.append("  one token of the answer, ms: " + _parts(decode))
    lines.append(
        f"    context: {verdict.wish.prompt_tokens} x {work.kv_bytes_per_token(verdict.plan.choices.kv_type):.0f} "
        f"bytes at {KV_PART_OF_RATE} x the rate unless calibrated"
    )
    lines.append(f"    layers: {work.n_layers} x {predictor.layer_s * 1e6:.0f} microseconds")
    lines.append(f"  kernels for prompts: {predictor.kernel_of(work) if verdict.plan.choices.repack else 'plain'}")
    for kind, n in sorted(work.weights_by_type.items(), key=lambda row: -row[1]):
        kernel = "repack" if verdict.plan.choices.repack else "plain"
        per_s = predictor.macs_per_s(kind, prefill.threads, kernel)  # type: ignore[arg-type]
        lines.append(f"    {kind.name:8s} {per_s / 1e9:7.1f} GMAC/s at {prefill.threads} threads ({n / 1e6:.0f} M)")
    lines.append(f"    rates: {device.cores.source}")
    lines.append("  one token of the prompt, ms: " + _parts(prefill))
    lines.append("  first token = prompt / prefill rate + one token of the answer")
    return "\n".join(lines)


def _parts(speed: Speed) -> str:
    return " + ".join(f"{name} {seconds * 1000:.3g}" for name, seconds in speed.parts.items() if seconds)


def table_text(verdicts: Sequence[Verdict]) -> str:
    """A line for each device."""
    rows = [("device", "fits", "RAM", "usable", "prefill/s", "first token", "decode/s")]
    for verdict in verdicts:
        first, low, high = verdict.first_token_s
        decode, prefill = verdict.decode, verdict.prefill
        rows.append(
            (
                verdict.device.id,
                "yes" if verdict.fits else "no",
                human_bytes(verdict.plan.total_bytes),
                human_bytes(verdict.device.usable_bytes),
                f"{prefill.tokens_per_s:.3g} [{prefill.low:.3g}, {prefill.high:.3g}]",
                f"{first:.2g} [{low:.2g}, {high:.2g}] s",
                f"{decode.tokens_per_s:.3g} [{decode.low:.3g}, {decode.high:.3g}]",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
