"""Proves that exported files say what PEFT says: the same prompts through torch in F32 and through llama.cpp.

    report = verify("peft/math", base="base.gguf", lora="math.gguf", hf="hf-folder")
    report.passed, report.max_logit_error

For each prompt llama.cpp continues greedily; both sides then give logits for every token of prompt and answer, so
one pass of the reference tells whether it would have chosen the same words. llama.cpp runs with an F32 KV cache and
without flash attention: what is left is the difference of the files, not of the cache.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ...edge.errors import InputError
from ...edge.gguf.adapter import AdapterInfo, check_adapter
from ...edge.gguf.base import BaseInfo
from ...edge.gguf.file import GgufFile
from ...edge.gguf.types import GgmlType
from ...edge.llama.context import Context
from ...edge.llama.model import Adapter, Model
from ...edge.llama.sampling import check_numbers
from ...edge.session.shelf import activation_start
from .difference import Difference, Logits
from .effect import Change
from .onnx import OnnxResult, OnnxSide, failures_of
from .prompts import Prompt, Rendered, render
from .reference import Reference

# A logit may differ by this much where everything is F32: the noise of another order of summing (gguf.md 1).
MAX_LOGIT_ERROR: Final = 2e-3
# Where something is quantised, its rounding moves the logits too: the bounds are on the distributions.
MAX_KL: Final = 0.02
MIN_TOP1: Final = 0.9


@dataclass(frozen=True)
class PromptResult:
    """One prompt's proof.

    Attributes:
        tokens_equal: both tokenizers give the same ids; None if there is only llama.cpp's.
        adapted, base: differences with the adapter, and of the base alone.
        change: what the adapter changes, in the reference and on llama.cpp.
        answer: llama.cpp's greedy text.
        greedy_equal: the reference would have chosen the same words.
        onnx: the same on onnxruntime; None if it was not asked.
    """

    prompt: Prompt
    n_prompt_tokens: int
    tokens_equal: bool | None
    adapted: Difference
    base: Difference
    change: Change
    answer: str
    greedy_equal: bool
    onnx: OnnxResult | None = None


@dataclass(frozen=True)
class Report:
    """All prompts' proofs against the bounds.

    Attributes:
        exact: base and adapter are F32 throughout, so single logits are bounded.
        bounds: name -> limit, those that were applied.
        failures: why it did not pass; empty when it did.
    """

    results: tuple[PromptResult, ...]
    exact: bool
    bounds: dict[str, float]
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def max_logit_error(self) -> float:
        return max(result.adapted.max_logit_error for result in self.results)

    @property
    def change(self) -> Change:
        """What the adapter changes, over all prompts."""
        return Change.of_all(result.change for result in self.results)

    @property
    def effect(self) -> float:
        """Largest change of a logit that the adapter makes."""
        return self.change.largest

    def mean_kl(self, base: bool = False) -> float:
        """Mean over all tokens of all prompts, of the adapted model or of the base alone."""
        parts = [result.base if base else result.adapted for result in self.results]
        return sum(part.mean_kl * part.n_tokens for part in parts) / sum(part.n_tokens for part in parts)

    def top1(self, base: bool = False) -> float:
        """Share over all tokens of all prompts, of the adapted model or of the base alone."""
        parts = [result.base if base else result.adapted for result in self.results]
        return sum(part.top1 * part.n_tokens for part in parts) / sum(part.n_tokens for part in parts)


def verify(
    peft_dir: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str],
    lora: str | os.PathLike[str],
    prompts: Sequence[Prompt],
    hf: str | os.PathLike[str] | None = None,
    base_gguf: str | os.PathLike[str] | None = None,
    max_tokens: int = 24,
    threads: int | None = None,
    max_logit_error: float | None = None,
    max_kl: float | None = None,
    min_top1: float | None = None,
    onnx: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
    on_prompt: Callable[[], object] = lambda: None,
) -> Report:
    """Runs the proof.

    Args:
        base, lora: the exported files.
        hf: Hugging Face folder of the reference's base; or
        base_gguf: a GGUF whose dequantised weights are the reference's base.
        max_tokens: of each answer.
        max_logit_error, max_kl, min_top1: bounds; None: those of `default_bounds`.
        onnx: the ONNX form of the base, and the adapter for it: they are proved too.
        on_prompt: called after each prompt.

    Raises:
        InputError: a file is not what it should be, or the reference cannot be loaded.
        EngineError: logits of either side are no numbers.
    """
    if (hf is None) == (base_gguf is None):
        raise InputError("give the reference's base once", hint="give --hf HF_DIR or --base-gguf base.gguf")
    if not prompts:
        raise InputError("there are no prompts")
    info = BaseInfo.open(base)
    adapter_info = check_adapter(lora, info)
    side = None if onnx is None else OnnxSide(*onnx, threads=threads)
    if side is not None and side.fingerprint != info.fingerprint:
        raise InputError("the ONNX folder was made from another base", where=onnx[0] if onnx else None)
    reference = Reference.from_hf(hf, peft_dir) if hf is not None else Reference.from_gguf(str(base_gguf), peft_dir)
    with Model.load(base) as model:
        adapter = model.load_adapter(lora)
        results = []
        for prompt in prompts:
            rendered = render(prompt, info.file, model.vocab, reference.tokenizer, adapter_info.alora_tokens)
            results.append(_prove(prompt, rendered, reference, adapter, adapter_info, max_tokens, threads, side))
            on_prompt()
    exact = _is_f32(info.file) and _is_f32(GgufFile.open(lora))
    asked = {"max_logit_error": max_logit_error, "max_kl": max_kl, "min_top1": min_top1}
    report = _judge(tuple(results), exact, same_weights=base_gguf is not None, asked=asked)
    if side is None:
        return report
    found = [result.onnx for result in results if result.onnx is not None]
    failures = failures_of(found, exact and side.exact and not any(asked.values()), report.bounds)
    return dataclasses.replace(report, failures=(*report.failures, *failures))


def _is_f32(file: GgufFile) -> bool:
    return all(info.type is GgmlType.F32 for info in file.tensors.values())


def _prove(
    prompt: Prompt,
    rendered: Rendered,
    reference: Reference,
    adapter: Adapter,
    info: AdapterInfo,
    max_tokens: int,
    threads: int | None,
    side: OnnxSide | None,
) -> PromptResult:
    model, n_prompt = adapter.model, len(rendered.ids)
    batch = min(512, n_prompt + max_tokens)
    with Context(
        model,
        n_ctx_tokens=n_prompt + max_tokens,
        n_batch_tokens=batch,
        n_outputs_max=batch,
        threads=threads,
        kv_type="f32",
        flash_attention="off",
    ) as context:
        ours, answer = _greedy(context, adapter, rendered.ids, info, max_tokens)
        ids = [*rendered.ids, *answer][: len(ours)]
        context.clear()
        context.set_adapters([])
        ours_alone = _rows(context, ids, 0)
    theirs, theirs_alone = reference.logits(ids), reference.logits(ids, adapter=False)
    for rows in (ours, ours_alone, theirs, theirs_alone):
        check_numbers(rows)
    exact = theirs, theirs_alone
    if side is not None and reference.rounds:
        # onnxruntime does not round as ggml does.
        exact = reference.logits(ids, as_ggml=False), reference.logits(ids, adapter=False, as_ggml=False)
    chosen = theirs[n_prompt - 1 :].argmax(axis=1)
    return PromptResult(
        prompt=prompt,
        n_prompt_tokens=n_prompt,
        tokens_equal=rendered.tokens_equal,
        adapted=Difference.between(theirs, ours),
        base=Difference.between(theirs_alone, ours_alone),
        change=Change.between(theirs, theirs_alone, ours, ours_alone),
        answer=model.vocab.decode(answer),
        greedy_equal=list(chosen) == list(answer),
        onnx=None if side is None else side.compare(ids, n_prompt, *exact),
    )


def _rows(context: Context, ids: list[int], position: int) -> Logits:
    context.decode(ids, position, outputs="all")
    return np.stack([context.logits(i) for i in range(len(ids))])


def _greedy(
    context: Context, adapter: Adapter, ids: list[int], info: AdapterInfo, max_tokens: int
) -> tuple[Logits, list[int]]:
    """Logits after each token of the prompt and the answer but its last, and the answer's ids."""
    start = (activation_start(ids, info.alora_tokens) if info.alora_tokens else None) or 0
    rows = []
    # An activated LoRA acts from its invocation's first token on; before it, the base alone fills the cache.
    if start:
        rows.append(_rows(context, ids[:start], 0))
    context.set_adapters([(adapter, 1.0)])
    rows.append(_rows(context, ids[start:], start))
    answer = [int(rows[-1][-1].argmax())]
    while len(answer) < max_tokens and not adapter.model.vocab.is_end(answer[-1]):
        rows.append(_rows(context, answer[-1:], len(ids) + len(answer) - 1))
        answer.append(int(rows[-1][-1].argmax()))
    return np.concatenate(rows), answer


def _judge(
    results: tuple[PromptResult, ...], exact: bool, *, same_weights: bool, asked: dict[str, float | None]
) -> Report:
    report = Report(results, exact, {}, ())
    bounds = {name: limit for name, limit in asked.items() if limit is not None}
    if not bounds:
        bounds = default_bounds(report, same_weights)
    failures = []
    wrong = [repr(result.prompt.text) for result in results if result.tokens_equal is False]
    if wrong:
        failures.append(f"the two tokenizers differ on {len(wrong)} prompts, first on {wrong[0]}")
    found = {"max_logit_error": report.max_logit_error, "max_kl": report.mean_kl(), "min_top1": report.top1()}
    for name, limit in bounds.items():
        # Written so that NaN fails.
        if not (found[name] >= limit if name.startswith("min") else found[name] <= limit):
            failures.append(f"{name.replace('_', ' ')} is {found[name]:.4g}, the bound is {limit:.4g}")
    failures += report.change.failures("llama.cpp")
    return Report(results, exact, bounds, tuple(failures))


def default_bounds(report: Report, same_weights: bool) -> dict[str, float]:
    """The bounds that apply where none was asked for.

    F32 throughout: single logits. Else KL and top-1; where the reference has other weights than the base (--hf with
    a quantised base), quantising alone costs something, and the adapter may cost as much again.
    """
    if report.exact:
        return {"max_logit_error": MAX_LOGIT_ERROR}
    if same_weights:
        return {"max_kl": MAX_KL, "min_top1": MIN_TOP1}
    return {
        "max_kl": max(MAX_KL, 2 * report.mean_kl(base=True)),
        "min_top1": min(MIN_TOP1, 1 - 2 * (1 - report.top1(base=True))),
    }
