"""The optional arguments of a session and of an answer, once for all that pass them on."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypedDict

from .card import TaskCard
from .engine import FlashAttention, KvType
from .errors import InputError
from .sampling import Sampling


class EngineOptions(TypedDict, total=False):
    """How a session sets up llama.cpp.

    n_ctx_tokens: longest prompt and answer together; by default 2,048, or what the base was trained for if less.
    threads: by default the fast physical cores.
    mmap, repack: as in `model.Model.load`.
    kv_type, flash_attention: as in `engine.Context`.
    """

    n_ctx_tokens: int | None
    threads: int | None
    mmap: bool
    repack: bool
    kv_type: KvType
    flash_attention: FlashAttention


class Settings(TypedDict, total=False):
    """How one answer is made; what is left out or None is as the task card says.

    max_tokens: its longest length.
    temperature, top_k, top_p, min_p, seed: as in `sampling.Sampling`.
    stop: texts that end the answer, in place of the card's.
    """

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    stop: str | Sequence[str] | None


def sampling_of(card: TaskCard, settings: Settings) -> Sampling:
    """The sampling settings of an answer.

    Raises:
        InputError: values out of range.
    """
    values: dict[str, Any] = {}
    for entry in dataclasses.fields(Sampling):
        given = settings.get(entry.name)
        values[entry.name] = getattr(card, entry.name) if given is None else given
    return Sampling(**values)


def max_tokens_of(card: TaskCard, settings: Settings) -> int:
    """The longest answer, at least 1 token; InputError else."""
    max_tokens = settings.get("max_tokens")
    if max_tokens is None:
        return card.max_tokens
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}; at least 1 is possible")
    return max_tokens


def stop_of(card: TaskCard, settings: Settings) -> tuple[str, ...]:
    """The texts that end an answer."""
    stop = settings.get("stop")
    if stop is None:
        return card.stop
    return (stop,) if isinstance(stop, str) else tuple(stop)
