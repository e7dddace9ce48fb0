"""Which type a base should have on a device: the fastest of those that fit its memory and lose little.

    choice = choose_type(shape, find_sizes("raspberry-pi-5-4gb"), Wish(context_tokens=2048))
    choice.chosen.label, choice.why

Rates are forecasts by the kernels of each type (`predict.py`), which a probe or a profile of the unit corrects. The
loss is a published one of another model, so it orders the types and does not tell what this model will lose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ...edge.errors import DoesNotFitError
from ...edge.written import human_bytes
from ..catalogue.catalogue import Device
from ..catalogue.shapes import ModelShape
from .fit import Target, Verdict, Wish, judge_sizes
from .predict import Calibration

# Mean KL divergence to F16, without an importance matrix, of Llama 3 8B. Source: llama.cpp's tools/perplexity/README.md
# ("LLaMA 3 8b Scoreboard"); IQ4_NL and IQ4_XS are given there with one only, and are left out.
LOSS: Final = {
    "q8_0": 0.0014,
    "q6_k": 0.0055,
    "q5_k_m": 0.0108,
    "q5_k_s": 0.0166,
    "q5_1": 0.0180,
    "q5_0": 0.0222,
    "q4_k_m": 0.0313,
    "q4_k_s": 0.0431,
    "q4_1": 0.0717,
    "q4_0": 0.0719,
    "q3_k_m": 0.1019,
    "q2_k": 0.4451,
}
# Q4_K_M, the type most models are published in, loses no more than this.
MOST_LOSS: Final = 0.035
# What the forecast of one type against another cannot tell apart.
SAME_SPEED: Final = 1.05
ANSWER_TOKENS: Final = 64


@dataclass(frozen=True)
class Candidate:
    """A type on the device. `loss` is that of `LOSS`; `request_s` is the wish's prompt and 64 tokens of an answer."""

    label: str
    verdict: Verdict
    loss: float

    @property
    def request_s(self) -> float:
        return self.verdict.first_token_s[0] + ANSWER_TOKENS / self.verdict.decode.tokens_per_s

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "type": self.label,
            "file_bytes": self.verdict.target.work.file_bytes,
            "memory_bytes": self.verdict.plan.total_bytes,
            "fits": self.verdict.fits,
            "prompt_tokens_per_s": round(self.verdict.prefill.tokens_per_s, 1),
            "decode_tokens_per_s": round(self.verdict.decode.tokens_per_s, 1),
            "request_s": round(self.request_s, 3),
            "loss": self.loss,
        }


@dataclass(frozen=True)
class TypeChoice:
    """What was chosen of what, the least loss first."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    why: str

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        device = self.chosen.verdict.device
        rows = [candidate.as_dict() for candidate in self.candidates]
        return {"type": self.chosen.label, "device": device.id, "why": self.why, "candidates": rows}

    def text(self) -> str:
        """A line for each candidate, and why."""
        lines = ["type       file         memory       prompt    decode    loss"]
        for one in self.candidates:
            work, plan = one.verdict.target.work, one.verdict.plan
            fits = "" if one.verdict.fits else "  does not fit"
            lines.append(
                f"{one.label:8} {human_bytes(work.file_bytes):>10} {human_bytes(plan.total_bytes):>12} "
                f"{one.verdict.prefill.tokens_per_s:>7.0f}/s {one.verdict.decode.tokens_per_s:>7.1f}/s "
                f"{one.loss:>8.4f}{fits}"
            )
        return "\n".join([*lines, f"{self.chosen.label}: {self.why}"])


def choose_type(
    shape: ModelShape, sizes: Sequence[Device], wish: Wish, *, calibration: Calibration | None = None
) -> TypeChoice:
    """The type for a model of this shape.

    Of the types that fit and lose at most `MOST_LOSS`, the fastest for the wish's prompt and an answer of 64 tokens;
    where others are as fast within 5 %, the one of them that loses least. Where none of those fits, what loses least of
    all that fit.

    Args:
        sizes: the device in the sizes that it is sold in; the largest counts.

    Raises:
        DoesNotFitError: no type fits.
    """
    device = max(sizes, key=lambda one: one.usable_bytes)

    def candidate(label: str, loss: float) -> Candidate:
        verdict = judge_sizes([device], Target.of_shape(shape, label), wish, calibration=calibration, seek=False)
        return Candidate(label, verdict, loss)

    candidates = tuple(candidate(label, loss) for label, loss in LOSS.items())
    fitting = [one for one in candidates if one.verdict.fits]
    if not fitting:
        least = min(candidates, key=lambda one: one.verdict.plan.total_bytes)
        needed, there = human_bytes(least.verdict.plan.total_bytes), human_bytes(device.usable_bytes)
        raise DoesNotFitError(
            f"no type of {shape.name} fits {device.name}: {least.label} needs {needed}, there are {there}",
            hint="take a smaller model, a shorter context, or a device with more memory",
        )
    good = [one for one in fitting if one.loss <= MOST_LOSS]
    if not good:
        why = f"no type with a loss of at most {MOST_LOSS} fits; of those that fit it loses least"
        return TypeChoice(min(fitting, key=lambda one: one.loss), candidates, why)
    fastest = min(good, key=lambda one: one.request_s)
    equal = [one for one in good if one.request_s <= SAME_SPEED * fastest.request_s]
    chosen = min(equal, key=lambda one: one.loss)
    asked = f"{chosen.verdict.prefill.tokens_per_s:.0f} prompt and {chosen.verdict.decode.tokens_per_s:.1f} decode"
    why = f"the fastest that fits and loses at most {MOST_LOSS}: {asked} tokens/s forecast"
    if chosen is not fastest:
        why = f"as fast as {fastest.label} within 5 %, and it loses less: {asked} tokens/s forecast"
    return TypeChoice(chosen, candidates, why)
