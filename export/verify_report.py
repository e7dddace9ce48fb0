"""A proof's report as a table for people and as data for machines."""

import math
from typing import Any

from .verify import Difference, Report


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _difference(found: Difference) -> dict[str, Any]:
    return {
        "max_logit_error": _number(found.max_logit_error),
        "mean_kl_nats": _number(found.mean_kl),
        "top1": found.top1,
        "n_tokens": found.n_tokens,
    }


def as_data(report: Report) -> dict[str, Any]:
    """The report as JSON values; numbers that are not finite become null."""
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
        "n_greedy_equal": sum(result.greedy_equal for result in report.results),
        "prompts": [
            {
                "prompt": result.prompt.text,
                "system": result.prompt.system,
                "n_prompt_tokens": result.n_prompt_tokens,
                "tokens_equal": result.tokens_equal,
                "adapter": _difference(result.adapted),
                "base_alone": _difference(result.base),
                "effect": _number(result.effect),
                "greedy_equal": result.greedy_equal,
                "answer": result.answer,
            }
            for result in report.results
        ],
    }


def as_text(report: Report) -> str:
    """A table, one line a prompt, and the verdict."""
    from rich.cells import cell_len, set_cell_size

    tokens = {True: "equal", False: "DIFFER", None: "-"}
    lines = [
        f"{'prompt':<28} {'tokens':>7} {'ids':>7} {'max|dlogit|':>11} "
        f"{'KL':>9} {'top-1':>6} {'greedy':>7} {'effect':>8}"
    ]
    for result in report.results:
        shown = " ".join(result.prompt.text.split())
        shown = shown if cell_len(shown) <= 28 else set_cell_size(shown, 27) + "…"
        found = result.adapted
        greedy = "equal" if result.greedy_equal else "differs"
        lines.append(
            f"{set_cell_size(shown, 28)} {found.n_tokens:>7} {tokens[result.tokens_equal]:>7} "
            f"{found.max_logit_error:>11.2e} {found.mean_kl:>9.1e} {found.top1:>6.1%} {greedy:>7} {result.effect:>8.2g}"
        )
    equal = sum(result.greedy_equal for result in report.results)
    lines += [
        "",
        f"adapter     max|dlogit| {report.max_logit_error:.2e}, mean KL {report.mean_kl():.2e}, "
        f"top-1 {report.top1():.1%}, greedy text equal {equal} of {len(report.results)}",
        f"base alone  mean KL {report.mean_kl(base=True):.2e}, top-1 {report.top1(base=True):.1%}; "
        f"the adapter moves logits by up to {report.effect:.2g}",
        "bounds      " + ", ".join(f"{name.replace('_', ' ')} {limit:.4g}" for name, limit in report.bounds.items()),
    ]
    lines += [f"FAILED: {failure}" for failure in report.failures] or ["passed"]
    return "\n".join(lines)
