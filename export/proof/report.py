"""A proof's report as a table for people and as data for machines."""

import math
import tempfile
from pathlib import Path
from typing import Any

from ...edge.errors import InputError
from ...edge.files.atomic import write_json
from ...edge.files.read import sha256_file
from ...edge.onnx.folder import ONNX_FILE
from ...edge.onnx.in_pack import ONNX_FOLDER, adapter_file
from ...edge.pack.pack import Pack, find_adapter
from ...edge.pack.write import add_files
from .difference import Difference
from .onnx import OnnxResult
from .verify import Report


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _difference(found: Difference) -> dict[str, Any]:
    return {
        "max_logit_error": _number(found.max_logit_error),
        "mean_kl_nats": _number(found.mean_kl),
        "top1": found.top1,
        "n_tokens": found.n_tokens,
    }


def _onnx(found: OnnxResult) -> dict[str, Any]:
    return {
        "adapter": _difference(found.adapted),
        "base_alone": _difference(found.base),
        "greedy_equal": found.greedy_equal,
    }


def as_data(report: Report) -> dict[str, Any]:
    """The report as JSON values; numbers that are not finite become null."""
    change = report.change
    return {
        "passed": report.passed,
        "failures": list(report.failures),
        "bounds": report.bounds,
        "exact": report.exact,
        "max_logit_error": _number(report.max_logit_error),
        "mean_kl_nats": _number(report.mean_kl()),
        "top1": report.top1(),
        "base_alone": {"mean_kl_nats": _number(report.mean_kl(base=True)), "top1": report.top1(base=True)},
        "effect": _number(report.effect),
        "effect_error": _number(change.error),
        "effect_rounding": _number(change.rounding),
        "effect_strength": _number(change.strength),
        "n_greedy_equal": sum(result.greedy_equal for result in report.results),
        "prompts": [
            {
                "prompt": result.prompt.text,
                "system": result.prompt.system,
                "n_prompt_tokens": result.n_prompt_tokens,
                "tokens_equal": result.tokens_equal,
                "adapter": _difference(result.adapted),
                "base_alone": _difference(result.base),
                "effect": _number(result.change.largest),
                "greedy_equal": result.greedy_equal,
                "answer": result.answer,
                "onnx": None if result.onnx is None else _onnx(result.onnx),
            }
            for result in report.results
        ],
    }


def as_text(report: Report) -> str:
    """A table, one line a prompt, and the verdict."""
    from rich.cells import cell_len, set_cell_size

    change = report.change

    tokens = {True: "equal", False: "DIFFER", None: "-"}
    lines = [
        f"{'prompt':<28} {'tokens':>7} {'ids':>7} {'max|dlogit|':>11} "
        f"{'KL':>9} {'top-1':>6} {'greedy':>7} {'effect':>8}"
    ]
    for result in report.results:
        effect = f"{result.change.largest:>8.2g}"
        shown = " ".join(result.prompt.text.split())
        shown = shown if cell_len(shown) <= 28 else set_cell_size(shown, 27) + "…"
        found = result.adapted
        greedy = "equal" if result.greedy_equal else "differs"
        lines.append(
            f"{set_cell_size(shown, 28)} {found.n_tokens:>7} {tokens[result.tokens_equal]:>7} "
            f"{found.max_logit_error:>11.2e} {found.mean_kl:>9.1e} {found.top1:>6.1%} {greedy:>7} {effect}"
        )
    lines += _onnx_lines(report)
    equal = sum(result.greedy_equal for result in report.results)
    lines += [
        "",
        f"adapter     max|dlogit| {report.max_logit_error:.2e}, mean KL {report.mean_kl():.2e}, "
        f"top-1 {report.top1():.1%}, greedy text equal {equal} of {len(report.results)}",
        f"base alone  mean KL {report.mean_kl(base=True):.2e}, top-1 {report.top1(base=True):.1%}; "
        f"the adapter moves logits by up to {report.effect:.2g}",
        f"effect      {change.error:.1%} of what the adapter changes comes out otherwise on llama.cpp "
        f"(the base's own rounding: {change.rounding:.1%}); it acts with {change.strength:.1%} of its strength",
        "bounds      " + ", ".join(f"{name.replace('_', ' ')} {limit:.4g}" for name, limit in report.bounds.items()),
    ]
    lines += [f"FAILED: {failure}" for failure in report.failures] or ["passed"]
    return "\n".join(lines)


def _onnx_lines(report: Report) -> list[str]:
    """The ONNX column, below the GGUF's; nothing if it was not asked."""
    rows = [result.onnx for result in report.results if result.onnx is not None]
    if not rows:
        return []
    lines = ["", f"{'on onnxruntime':<44} {'max|dlogit|':>11} {'KL':>9} {'top-1':>6} {'greedy':>7} {'base |dl|':>9}"]
    for number, found in enumerate(rows, 1):
        ours = found.adapted
        lines.append(
            f"prompt {number:<20} {ours.n_tokens:>16} {ours.max_logit_error:>11.2e} {ours.mean_kl:>9.1e} "
            f"{ours.top1:>6.1%} {'equal' if found.greedy_equal else 'differs':>7} {found.base.max_logit_error:>9.1e}"
        )
    return lines


def keep_report(
    folder: Path, name: str, base: Path, lora: Path, onnx: tuple[Path, Path] | None, data: dict[str, Any]
) -> None:
    """Writes a report into a pack, as parity/NAME.json, with the sha256 of what was proved.

    Args:
        base, lora, onnx: the files of the proof: GGUF base and adapter, folder and adapter of the ONNX form.

    Raises:
        InputError: the pack has no such adapter, or the files proved are not the pack's.
    """
    pack = Pack.open(folder)
    packed = find_adapter(pack.adapters, name)
    proved = {"base": (base, pack.base.sha256), "gguf": (lora, packed.sha256)}
    if onnx is not None:
        files = pack.manifest.files
        proved["onnx_base"] = (onnx[0] / ONNX_FILE, files.get(f"{ONNX_FOLDER}/{ONNX_FILE}", ""))
        proved["onnx"] = (onnx[1], files.get(adapter_file(name), ""))
    stated = {kind: sha256_file(path) for kind, (path, _) in proved.items()}
    other = [f"{path}" for kind, (path, sha256) in proved.items() if stated[kind] != sha256]
    if other:
        raise InputError(f"what was proved is not the pack's base and adapter {name!r}", where=folder, problems=other)
    with tempfile.TemporaryDirectory(prefix="slm-edge-") as place:
        path = Path(place) / "report.json"
        write_json(path, {"sha256": stated, "base_fingerprint": pack.base.fingerprint, **data})
        add_files(folder, {f"parity/{name}.json": path})
