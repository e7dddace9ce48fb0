"""How `slm-edge devices fit` shows its answer: as JSON, as text, and with the arithmetic."""

from collections.abc import Sequence
from typing import Any

from ...edge.written import human_bytes
from ..catalogue.workload import Workload
from .constants import KV_PART_OF_RATE
from .fit import Target, Verdict
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
    known = not verdict.device.unprobed
    return {
        "device": verdict.device.id,
        "model": verdict.target.name,
        "quantisation": verdict.target.quant,
        "fits": verdict.fits,
        "runs": not verdict.obstacles,
        "obstacles": verdict.obstacles,
        "proved": verdict.target.proved,
        "sizes": [{"ram_gib": size, "fits": fits} for size, fits in verdict.sizes],
        "unprobed": verdict.device.unprobed,
        "memory": verdict.plan.as_dict(),
        "usable_ram_bytes": verdict.device.usable_bytes,
        "streamed_bytes_per_token": verdict.target.work.streamed_bytes,
        "prompt_tokens": min(verdict.wish.prompt_tokens, verdict.wish.context_tokens),
        "decode": speed_dict(verdict.decode) if known else None,
        "decode_full_context": speed_dict(verdict.decode_full) if known else None,
        "prefill": speed_dict(verdict.prefill) if known else None,
        "first_token_s": {"estimate": first, "low": low, "high": high, "interval": 0.9} if known else None,
        "joules_per_token": None
        if joules is None
        else {"estimate": joules, "includes": f"{load.value} W under load: {load.source}" if load else ""},
        "nearest": verdict_dict(verdict.nearest) if verdict.nearest else None,
        "change": verdict.change or None,
    }


def number_text(value: float) -> str:
    """Three digits that count, whole numbers from 100 on: "0.71", "12.4", "3960"."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def rate_text(speed: Speed) -> str:
    """ "12.4 [9.1, 16.9] tokens/s" """
    return f"{number_text(speed.tokens_per_s)} [{number_text(speed.low)}, {number_text(speed.high)}] tokens/s"


def _threads(n: int) -> str:
    return f"{n} thread{'s' if n != 1 else ''}"


def sizes_text(sizes: Sequence[tuple[float, bool]]) -> str:
    """ "1 GB is too little; 2, 4, 8, 16 GB fit" """
    short = [f"{size:g}" for size, fits in sizes if not fits]
    enough = [f"{size:g}" for size, fits in sizes if fits]
    parts = [f"{', '.join(short)} GB {'are' if len(short) > 1 else 'is'} too little"] if short else []
    parts += [f"{', '.join(enough)} GB {'fit' if len(enough) > 1 else 'fits'}"] if enough else []
    return "; ".join(parts)


def verdict_text(verdict: Verdict) -> str:
    """The whole answer as text; intervals hold 90 %."""
    plan, device = verdict.plan, verdict.device
    rows = [(name, getattr(plan, f"{name}_bytes")) for name in ("weights", "repacked", "kv", "compute", "outputs")]
    rows += [(name, getattr(plan, f"{name}_bytes")) for name in ("adapters", "snapshots", "process")]
    word = "fits" if verdict.fits else "does NOT fit"
    if verdict.fits and verdict.obstacles:
        word = "fits, but this runtime cannot run it"
    lines = [
        f"{verdict.target.name} ({verdict.target.quant}) on {device.name}: {word}",
        *(f"  cannot run: {obstacle}" for obstacle in verdict.obstacles),
        *([f"  sizes   {sizes_text(verdict.sizes)}"] if verdict.sizes else []),
        f"  RAM     {human_bytes(plan.total_bytes)} of {human_bytes(device.usable_bytes)} usable",
        *(f"            {name:10s} {human_bytes(size):>10s}" for name, size in rows if size),
        *_speed_lines(verdict),
    ]
    if device.note:
        lines.append(f"  note: {device.note}")
    if not (verdict.target.proved or verdict.target.refusal):
        lines.append(f"  note: {_unproved(verdict.target)}")
    if not verdict.fits:
        if verdict.nearest is None:
            lines.append("nothing near fits any device of the catalogue")
        else:
            lines += [f"the nearest that fits: {verdict.change}", verdict_text(verdict.nearest)]
    return "\n".join(lines)


def _speed_lines(verdict: Verdict) -> list[str]:
    plan, device, wish = verdict.plan, verdict.device, verdict.wish
    if device.unprobed:
        again = "Try again when it is quiet."
        return [f"  setup   {plan.choices.describe()}", f"  rates   not forecast: {device.unprobed}. {again}"]
    first, low, high = verdict.first_token_s
    prompt = min(wish.prompt_tokens, wish.context_tokens)
    lines = [
        f"  setup   {plan.choices.describe()}, {_threads(verdict.decode.threads)} to decode, "
        f"{verdict.prefill.threads} for prompts",
        f"  prefill {rate_text(verdict.prefill)} (prompt of {prompt})",
        f"  first   {first:.2f} [{low:.2f}, {high:.2f}] s to the first token",
        f"  decode  {rate_text(verdict.decode)} after the prompt",
        f"          {rate_text(verdict.decode_full)} with {wish.context_tokens} tokens in the context",
    ]
    joules = verdict.joules_per_token
    if joules is not None:
        load = device.facts["load_w"]
        lines.append(f"  energy  {joules:.2g} J/token, if it draws {load.value:g} W under load (source: {load.source})")
    lines.append(
        f"  90 % intervals; decode rests on {RESTS_ON[verdict.decode.known]}, "
        f"prefill on {RESTS_ON[verdict.prefill.known]}"
    )
    return lines


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
        f"    context: {verdict.wish.prompt_tokens} x {work.kv_bytes_per_token(verdict.plan.choices.kv_type):.0f} bytes"
        f"{_window(work)} at {KV_PART_OF_RATE} x the rate unless calibrated"
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


def _unproved(target: Target) -> str:
    return (
        f"{target.name} is of the architecture {target.architecture}, which was not proved here: it runs as its file "
        "says, after a trial in a process of its own; its memory may be planned too high"
    )


def _window(work: Workload) -> str:
    """What layers with a window spare, in words."""
    if not work.kv_values_in_window:
        return ""
    part = work.kv_values_in_window / work.kv_values_per_token
    return f", {part:.0%} of them for the last {work.window_tokens} tokens only,"


def _parts(speed: Speed) -> str:
    return " + ".join(f"{name} {seconds * 1000:.3g}" for name, seconds in speed.parts.items() if seconds)


def table_text(verdicts: Sequence[Verdict]) -> str:
    """A line for each device, in the smallest size that fits; rates without their intervals, which --json has."""
    rows = [("device", "fits", "RAM", "usable", "prefill/s", "first token", "decode/s")]
    for verdict in verdicts:
        rows.append(
            (
                verdict.device.id,
                ("yes" if verdict.fits else "no") + ("*" if verdict.device.system else ""),
                human_bytes(verdict.plan.total_bytes),
                human_bytes(verdict.device.usable_bytes),
                number_text(verdict.prefill.tokens_per_s),
                f"{number_text(verdict.first_token_s[0])} s",
                f"{number_text(verdict.decode.tokens_per_s)}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if any(verdict.device.system for verdict in verdicts):
        lines.append("* this runtime is not for Android and iOS: what llama.cpp does on such a processor")
    if verdicts and verdicts[0].target.refusal:
        lines.append(f"cannot run: {verdicts[0].target.refusal}")
    elif verdicts and not verdicts[0].target.proved:
        lines.append(_unproved(verdicts[0].target))
    return "\n".join(lines)
