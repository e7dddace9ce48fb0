"""Log-likelihoods of given endings after their context, many at once, the context computed once for its endings.

Whole texts are tokenised, as an ending's first letters may change how the context ends. What all endings of an item
share is decoded once and its KV cells are then shared by one sequence for each ending; the endings of several items go
through the model in one batch.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from ...edge.answer.base import SessionBase
from ...edge.errors import DoesNotFitError
from ...edge.llama.binding import lib
from ...edge.llama.context import Context
from ...edge.llama.sampling import check_numbers
from ..tasks.benchmark import Item

if TYPE_CHECKING:
    from ...edge.llama.vocab import Vocab
    from ...edge.onnx.session import OnnxSession
    from ...edge.session.session import Session

# Logits of so many tokens are held at once: at 4 bytes x vocabulary each, 50 MB for 49,152
_BATCH_TOKENS = 256
# All sequences share one room and each token looks over all of it, so a large one would cost more than it saves
_ROOM_TOKENS = 768


@dataclass(frozen=True)
class _Tokens:
    """An item in tokens: each whole text, where its ending begins, and how many tokens all texts share."""

    item: Item
    texts: list[list[int]]
    context: int
    common: int

    @property
    def start(self) -> int:
        """The first token that is decoded for each ending by itself; the one before predicts it."""
        return min(self.context, self.common)

    @property
    def n_cells(self) -> int:
        return self.start + sum(len(text) - self.start for text in self.texts)


@dataclass(frozen=True)
class Likelihoods:
    """What the runner writes of an item: `text` is JSON with sums and means over tokens, in nats, for each ending."""

    text: str
    n_prompt_tokens: int
    n_tokens: int
    stop_reason: str = "end"


def _tokens_of(vocab: "Vocab", item: Item) -> _Tokens:
    assert item.raw is not None
    encode = vocab.encode
    context = len(encode(item.raw, special=False, add_bos=True))
    texts = [encode(f"{item.raw} {ending}", special=False, add_bos=True) for ending in item.endings]
    # At least one token of each is left to be scored, and one in front to predict it
    most = min(map(len, texts)) - 1
    common = next((i for i in range(most) if len({text[i] for text in texts}) > 1), most)
    return _Tokens(item, texts, min(context, most), common)


def log_softmax_at(logits: npt.NDArray[np.float32], token_ids: Sequence[int]) -> list[float]:
    """log p of some tokens after one place: logits of shape (vocabulary,) -> a value in nats for each token id.

    One place at a time: a row fits the processor's cache, and a batch of them took ten times as long.

    Raises:
        EngineError: the logits are no numbers.
    """
    check_numbers(logits)
    most = logits.max()
    total = np.log(np.exp(logits - most).sum(dtype=np.float64))
    return [float(logits[token]) - float(most) - float(total) for token in token_ids]


def _waiting(session: SessionBase[Any], items: Sequence[Item]) -> list[_Tokens]:
    waiting = [_tokens_of(session.vocab, item) for item in items]
    longest = max((max(map(len, one.texts)) for one in waiting), default=0)
    if longest > session.longest_tokens:
        raise DoesNotFitError(f"an item has {longest} tokens; the base holds {session.longest_tokens}")
    return waiting


def score_endings(
    session: SessionBase[Any], adapter: str | None, items: Sequence[Item], on_done: Callable[[int, Any], None]
) -> None:
    """Computes the likelihoods of each item's endings under an adapter (None: the base); reports each by its index.

    Raises:
        DoesNotFitError: an item is longer than the base's context.
    """
    if session.engine_name == "onnx":
        _score_on_onnx(cast("OnnxSession", session), adapter, items, on_done)
    else:
        _score_on_llama(cast("Session", session), adapter, items, on_done)


def _score_on_onnx(
    session: "OnnxSession", adapter: str | None, items: Sequence[Item], on_done: Callable[[int, Any], None]
) -> None:
    """One ending after the other behind its item's beginning, which is computed once."""
    choice = session.choice_of(adapter)
    for index, one in enumerate(_waiting(session, items)):
        context = one.texts[0][: one.start]
        session.lane.begin(context, session.sections(choice, context))
        found = [[value] for value in log_softmax_at(session.engine.row, [text[one.start] for text in one.texts])]
        for values, text in zip(found, one.texts, strict=True):
            # The last token predicts nothing that is asked for
            if ending := text[one.start : -1]:
                rows = session.lane.look_ahead(ending)
                for row, token in zip(rows, text[one.start + 1 :], strict=True):
                    values += log_softmax_at(row, [token])
        on_done(index, _likelihoods(one, found))


def _score_on_llama(
    session: "Session", adapter: str | None, items: Sequence[Item], on_done: Callable[[int, Any], None]
) -> None:
    """The endings of several items in one batch."""
    choice = session.choice_of(adapter)
    waiting = _waiting(session, items)
    room = max(_ROOM_TOKENS, max((one.n_cells for one in waiting), default=0))
    endings = max((len(one.texts) for one in waiting), default=1)
    n_sequences = min(256, endings * 8)
    with Context(
        session.model,
        n_ctx_tokens=room,
        n_batch_tokens=max(_BATCH_TOKENS, n_sequences),
        n_seq_max=n_sequences,
        n_outputs_max=max(_BATCH_TOKENS, n_sequences),
        threads=session.context.threads,
        kv_type=session.options.get("kv_type") or "f16",
        flash_attention=session.options.get("flash_attention", "auto"),
        kv_unified=True,
    ) as context:
        if waiting:
            context.set_adapters(session.sections(choice, waiting[0].texts[0])[-1].adapters)
        at = 0
        while at < len(waiting):
            block: list[_Tokens] = []
            for one in waiting[at:]:
                full = sum(other.n_cells for other in block) + one.n_cells > room
                if block and (full or (len(block) + 1) * endings > n_sequences):
                    break
                block.append(one)
            for offset, found in enumerate(_score_block(context, block)):
                on_done(at + offset, found)
            at += len(block)


def _score_block(context: Context, block: Sequence[_Tokens]) -> list[Likelihoods]:
    llama = lib()
    memory = llama.llama_get_memory(context.handle)
    context.clear()
    # By ending: log p of each token from `start` on
    found: list[list[list[float]]] = []
    rows: list[tuple[int, int, int, list[float], int]] = []
    sequence = 0
    for one in block:
        start = one.start
        context.decode(one.texts[0][:start], 0, sequence=sequence, outputs="last")
        first = log_softmax_at(context.logits_view(-1), [text[start] for text in one.texts])
        found.append([])
        for number, text in enumerate(one.texts):
            if number:
                llama.llama_memory_seq_cp(memory, sequence, sequence + number, -1, -1)
            values = [first[number]]
            found[-1].append(values)
            # The last token predicts nothing that is asked for
            rows += [(text[i], i, sequence + number, values, text[i + 1]) for i in range(start, len(text) - 1)]
        sequence += len(one.texts)
    size = context.n_batch_tokens
    for begin in range(0, len(rows), size):
        part = rows[begin : begin + size]
        context.decode_step([row[0] for row in part], [row[1] for row in part], [row[2] for row in part])
        for i, row in enumerate(part):
            row[3].extend(log_softmax_at(context.logits_view(i), [row[4]]))
    return [_likelihoods(one, values) for one, values in zip(block, found, strict=True)]


def _likelihoods(one: _Tokens, values: list[list[float]]) -> Likelihoods:
    sums = [sum(of[one.context - one.start :]) for of in values]
    rest = [of[one.common - one.start :] for of in values]
    means = [sum(of) / len(of) for of in rest]
    text = json.dumps({"sums": [round(v, 6) for v in sums], "token_means": [round(v, 6) for v in means]})
    return Likelihoods(text, one.start, sum(len(of) for of in values))
