"""What can be set of a session, with the defaults and limits that more than one topic needs."""

import enum
import functools
import numbers
import os
import types
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypedDict, Union, get_args, get_origin, get_type_hints

from .errors import InputError


class Left(enum.Enum):
    """Marks an adapter that is not named, because None is the base alone."""

    OUT = "left out"


LeftOut = Literal[Left.OUT]
LEFT_OUT: Final = Left.OUT

KvType = Literal["f16", "f32", "q8_0"]
FlashAttention = Literal["auto", "on", "off"]
# Whether guessed tokens are computed along with the next one, see `session/speculation.py`.
Speculate = Literal["off", "exact", "fast"]
# What is kept of what was computed, see docs/prefix-cache.md
Reuse = Literal["exact", "fast"]
# How an adapter is taken up in the middle of a conversation, see `session.shelf.swap_of`.
Swap = Literal["recompute", "activated"]

# Tokens computed at once, at a prompt's beginning and later. Small enough to keep most of a shared prefix, and to
# answer Ctrl-C soon on a slow board; with 256 a long prompt is 2 to 6 % faster than with 128, as fast as at once.
CHUNK_TOKENS: Final = 128
BATCH_TOKENS: Final = 2 * CHUNK_TOKENS
# A swap costs the more the more adapters are loaded, used or not, and so does each context's memory; beyond this many,
# loading one again is cheaper than keeping it (benchmarks/proofs/swap_cost.py).
MOST_LOADED: Final = 8
# Answers at once where nothing else is said
DEFAULT_PARALLEL: Final = 8
# Tokens that speculation computes at once at most
MOST_AT_ONCE: Final = 8
# What computed prefixes may hold in memory, and in a folder
DEFAULT_BUDGET_BYTES: Final = 64 << 20
DEFAULT_DISK_BYTES: Final = 512 << 20


class EngineOptions(TypedDict, total=False):
    """How a session sets up llama.cpp.

    n_ctx_tokens: longest prompt and answer together; by default 2,048, or what the base was trained for if less.
    threads, threads_batch: for single tokens, and for prompts and batches; as in `system.load.Threads`.
    ram_bytes: the most memory that the session may take; what is left out below is then chosen to fit, or refused with
        the numbers. By default a limit of the process (control group, rlimit) is kept to.
    mmap, repack: as in `llama.model.Model.load`; by default the weights are repacked if that is faster, and mapped if
        memory has room for the whole file beside (`memory.fit.maps_well`).
    both_layouts: prompts are computed over the weights as they are stored, tokens over repacked ones (Linux, see
        `llama/two_layouts.py`); by default if that is faster and takes no more than half of the machine's memory.
    kv_type, flash_attention, n_batch_tokens: as in `llama.context.Context`; "f16" by default, and batches of one chunk.
    prefix_budget_bytes: what computed prefixes may hold in memory, 64 MiB by default; used by swaps alone.
    prefix_cache, prefix_cache_bytes: a folder where system prefixes last from one process to the next, and what it
        may hold, 512 MiB by default.
    reuse: "exact" keeps what is bit for bit what computing anew would give, and is a session's default; "fast" whatever
        was computed, answers and short beginnings too, and is an engine's.
    adapter_budget_bytes, pinned: as in `session.shelf.Shelf`.
    speculate: guess tokens from the prompt and compute them along with the next one: "off", "exact" or "fast" for all
        answers, see `session/speculation.py`; None: as each task card says.
    n_parallel: requests of `Session.submit` computed at once at most, 8 by default.
    n_rows: answers that an `Engine` computes side by side, in the session's own context, which is as much larger.
    allow_special: texts of special tokens in messages, such as <|im_end|>, become these tokens; else they are plain
        text.
    """

    n_ctx_tokens: int | None
    threads: int | None
    threads_batch: int | None
    ram_bytes: int | None
    mmap: bool | None
    repack: bool | None
    both_layouts: bool | None
    kv_type: KvType | None
    n_batch_tokens: int | None
    flash_attention: FlashAttention
    prefix_budget_bytes: int
    prefix_cache: str | os.PathLike[str] | None
    prefix_cache_bytes: int
    reuse: Reuse
    adapter_budget_bytes: int | None
    pinned: Sequence[str]
    speculate: Speculate | None
    n_parallel: int
    n_rows: int | None
    allow_special: bool


_WORDS: Final = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    Sequence: "several texts",
    Mapping: "a table of names and values",
    os.PathLike: "a path",
    types.NoneType: "None",
}


def check_given(given: Mapping[str, object], known: type, what: str, unchecked: tuple[str, ...] = ()) -> None:
    """Checks names and types of what a caller gave by keyword.

    Args:
        known: the TypedDict that has what there is.
        what: "option" or "setting", for the message.
        unchecked: classes in it that are imported for type checkers alone; any object is taken for one.

    Raises:
        InputError: there is no such name (the hint has the nearest), or a value has another type.
    """
    kinds = _kinds(known, unchecked)
    for name, value in given.items():
        if name not in kinds:
            from .written import nearest

            near = nearest(name, kinds)
            hint = f"did you mean {near}?" if near else f"there are: {', '.join(kinds)}"
            raise InputError(f"there is no {what} {name!r}", hint=hint)
        if not _fits(value, kinds[name]):
            words = " or ".join(_words(kinds[name]))
            raise InputError(f"the {what} {name} is {value!r}; it takes {words}")


@functools.cache
def _kinds(known: type, unchecked: tuple[str, ...]) -> dict[str, Any]:
    return get_type_hints(known, localns=dict.fromkeys(unchecked, object))


def _fits(value: object, kind: Any) -> bool:
    origin = get_origin(kind) or kind
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if origin is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if origin in (int, float):
        # numpy's too; a truth value is no number here.
        number = numbers.Integral if origin is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    if origin is Sequence:
        return isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)
    return isinstance(value, origin)


def _words(kind: Any) -> list[str]:
    origin = get_origin(kind) or kind
    if origin in (Union, types.UnionType):
        return [word for one in get_args(kind) for word in _words(one)]
    return [repr(one) for one in get_args(kind)] if origin is Literal else [_WORDS.get(origin, origin.__name__)]
