"""Trains the router: one linear model over named and hashed features, calibrated on sources that it did not see.

    model = train_router(own_prompts(0) + public_prompts(Path("data")))
    write_router("router.npz", model)

Sources weigh by the root of their size and classes alike, so that the model learns tasks, not the largest data set.
Confidence comes from folds that hold whole sources: what a model says of a source that it was not trained on sets the
temperature (Guo et al. 2017, arXiv 1706.04599) and the thresholds below which the base answers. One thread and
scikit-learn's lbfgs: the same prompts give the same file.
"""

import random
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...edge.router.calibration import best_temperature, expected_calibration_error
from ...edge.router.features import read_prompt
from ...edge.router.file import Background, RouterModel
from ...edge.router.hashing import N_SLOTS
from ...edge.router.words import NAMES
from .prompts import TASKS, Prompt

# Inverse strength of the L2 penalty; from 1.5 to 15 the sets that judge the router differ by less than a point.
STRENGTH: Final = 1.5
# Hashed features are that many times larger in the fit, so that the penalty holds words back less than structure.
HASHED_SCALE: Final = 2.0
# Largest gradient at which the fit ends. At 1e-3 words had hardly been learnt: 2 points less on prompts of others.
TOLERANCE: Final = 1e-4
# "None of these" is many kinds of prompts, and weighs that much more than a task.
NONE_WEIGHT: Final = 1.25
FOLDS: Final = 5
LEAST_CONFIDENCE: Final = 0.5
MOST_ASKED: Final = 0.6
# Share of "none of these" prompts, of sources unseen, that a task's threshold may let through
CAPTURED: Final = 0.025
# Data sets that a fold holds as a whole, so that the others must do for them
WHOLE: Final = ("gsm8k", "mbpp", "dolly open_qa", "dolly brainstorming")
# Sources on the same texts with requests of both kinds: in one fold, or a text's words would tell its label.
SAME_TEXTS: Final = {
    "dolly texts": (
        *("dolly closed_qa", "dolly summarization", "dolly yes or no", "dolly contexts alone"),
        *("dolly laid out", "dolly other orders", "dolly summed up"),
        "dolly pairs",
    ),
    "own texts": (
        *("passages", "yes or no", "other orders", "passages alone", "readings", "texts alone", "made of texts"),
        "summaries",
    ),
}
_BACKGROUND: Final = {None: 560, "math": 200, "code": 260, "summarize": 160}
_BACKGROUND_CHARS: Final = 600


def train_router(prompts: Sequence[Prompt], *, on_step: Callable[[str], object] = lambda _: None) -> RouterModel:
    """Fits and calibrates a router for the tasks in `router_prompts.TASKS`.

    Args:
        on_step: told of each fit that begins.

    Returns:
        The model; `about` has the counts of each source, and what the folds' models said of the prompts held out of
        them: `cross_validated_accuracy`, sources by weight and classes alike. It says little of prompts by other
        people: folds hold only the data sets of `WHOLE` as a whole, and of our own prompts one lot of each kind.
    """
    on_step("reading prompts")
    table = _table(prompts)
    labels = np.array([0 if prompt.label is None else 1 + TASKS.index(prompt.label) for prompt in prompts])
    weights = _weights(prompts, labels)
    folds = np.array([zlib.crc32(held_together(prompt).encode()) % FOLDS for prompt in prompts])
    logits = np.zeros((len(prompts), 1 + len(TASKS)))
    for fold in range(FOLDS):
        on_step(f"fold {fold + 1} of {FOLDS}")
        inside = folds != fold
        if inside.all():
            continue
        coefficients, bias = _fit(table[inside], labels[inside], weights[inside])
        logits[~inside] = table[~inside] @ coefficients.T + bias
    temperature = best_temperature(logits, labels, weights)
    shares = _softmax(logits / temperature)
    thresholds = _thresholds(shares, labels, weights)
    on_step("all prompts")
    coefficients, bias = _fit(table, labels, weights)
    model = RouterModel(
        tasks=TASKS,
        bias=bias.astype(np.float32),
        named=np.ascontiguousarray(coefficients[:, : len(NAMES)], dtype=np.float32),
        slots=np.ascontiguousarray(coefficients[:, len(NAMES) :].T, dtype=np.float32),
        temperature=temperature,
        thresholds=thresholds,
        about=_about(prompts, shares, labels, weights),
    )
    return model.with_prompts(_background(prompts))


def _table(prompts: Sequence[Prompt]) -> Any:
    """A sparse matrix [n_prompts, len(NAMES) + N_SLOTS]."""
    from scipy import sparse

    read = [read_prompt(prompt.text) for prompt in prompts]
    ends = np.cumsum([0] + [len(features.slots) for features in read])
    values = np.concatenate([features.values for features in read])
    slots = np.concatenate([features.slots for features in read])
    hashed = sparse.csr_matrix((values, slots, ends), shape=(len(read), N_SLOTS))
    named = sparse.csr_matrix(np.stack([features.named for features in read]))
    return sparse.hstack([named, hashed]).tocsr().astype(np.float64)


def held_together(prompt: Prompt) -> str:
    """What goes into one fold: a public data set, the prompts of one lot of patterns or passages, else a prompt."""
    source = prompt.source.partition(",")[0]
    for name, same in SAME_TEXTS.items():
        if _family(source) in same:
            return f"{name} {source[-1]}" if source[-1].isdigit() else name
    return source if source[-1].isdigit() or source in WHOLE else prompt.text.lower()


def _family(source: str) -> str:
    """A source without its number and wear."""
    return source.partition(",")[0].rstrip("0123456789 ")


def _weights(prompts: Sequence[Prompt], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    sizes: dict[str, int] = {}
    for prompt in prompts:
        sizes[prompt.source.partition(",")[0]] = sizes.get(prompt.source.partition(",")[0], 0) + 1
    weights = np.array([sizes[prompt.source.partition(",")[0]] ** -0.5 for prompt in prompts])
    for label in range(1 + len(TASKS)):
        weights[labels == label] /= weights[labels == label].sum() or 1.0
    weights[labels == 0] *= NONE_WEIGHT
    even: NDArray[np.float64] = weights / weights.mean()
    return even


def _fit(table: Any, labels: NDArray[np.int64], weights: NDArray[np.float64]) -> tuple[Any, Any]:
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

    scale = np.ones(table.shape[1])
    scale[len(NAMES) :] = HASHED_SCALE
    model = LogisticRegression(C=STRENGTH, max_iter=400, tol=TOLERANCE)
    model.fit((table @ sparse.diags(scale)).tocsr(), labels, sample_weight=weights)
    # A class that has no prompts gets no weights and is never chosen.
    coefficients = np.zeros((1 + len(TASKS), table.shape[1]))
    bias = np.full(1 + len(TASKS), -30.0)
    coefficients[model.classes_], bias[model.classes_] = model.coef_ * scale, model.intercept_
    return coefficients, bias


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    parts = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = parts / parts.sum(axis=1, keepdims=True)
    return shares


def _thresholds(
    shares: NDArray[np.float64], labels: NDArray[np.int64], weights: NDArray[np.float64]
) -> dict[str, float]:
    """The least confidence, from 0.5 up, with which at most `CAPTURED` of the prompts of no task are taken."""
    none = labels == 0
    found = {}
    for number, task in enumerate(TASKS, 1):
        taken = none & (shares.argmax(axis=1) == number)
        order = np.argsort(-shares[:, number])
        order = order[taken[order]]
        part = np.cumsum(weights[order]) / weights[none].sum()
        over = np.flatnonzero(part > CAPTURED)
        least = float(shares[order[over[0]], number]) if len(over) else LEAST_CONFIDENCE
        found[task] = round(min(max(least, LEAST_CONFIDENCE), MOST_ASKED), 3)
    return found


def _about(
    prompts: Sequence[Prompt], shares: NDArray[np.float64], labels: NDArray[np.int64], weights: NDArray[np.float64]
) -> dict[str, Any]:
    right = shares.argmax(axis=1) == labels
    families: dict[str, list[bool]] = {}
    for prompt, good in zip(prompts, right.tolist(), strict=True):
        families.setdefault(_family(prompt.source), []).append(good)
    return {
        "n_prompts": len(prompts),
        "cross_validated_accuracy": round(float(np.average(right, weights=weights)), 4),
        "cross_validated_calibration_error": round(expected_calibration_error(shares.max(axis=1), right, weights), 4),
        "sources": {
            name: {"n": len(good), "accuracy_when_held_out": round(sum(good) / len(good), 4)}
            for name, good in sorted(families.items())
        },
    }


def _background(prompts: Sequence[Prompt]) -> Background:
    """Own prompts only: public texts have their own licences and stay where they are."""
    draw = random.Random(0)
    chosen: list[tuple[str, str | None]] = []
    for label, n in _BACKGROUND.items():
        texts = sorted(
            {
                prompt.text
                for prompt in prompts
                if prompt.label == label and prompt.is_own and len(prompt.text) <= _BACKGROUND_CHARS
            }
        )
        chosen += [(text, label) for text in draw.sample(texts, min(n, len(texts)))]
    return Background(tuple(chosen))
