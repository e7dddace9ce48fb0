"""The second context, where several answers are computed at once, within what memory the session's plan leaves."""

from collections.abc import Callable

from ..errors import DoesNotFitError
from ..gguf.base import BaseInfo
from ..llama.context import Context
from ..memory.plan import ContextSize, MemoryPlan
from ..options import FlashAttention
from ..prefix.cache import PrefixCache
from ..written import human_bytes
from .rows import LlamaRows


def own_rows(own: Context, cache: PrefixCache, n_rows: int) -> Callable[[int, int], LlamaRows]:
    """The sequences of a session's own context, which was made for them; the session makes no answers by itself then.

    The rows raise DoesNotFitError where more or longer ones are asked for than there are.
    """

    def rows(n_sequences: int, n_tokens: int) -> LlamaRows:
        if n_sequences > n_rows or n_tokens > own.n_ctx_seq_tokens:
            raise DoesNotFitError(
                f"{n_sequences} answers of {n_tokens} tokens side by side; the session has room for "
                f"{n_rows} of {own.n_ctx_seq_tokens}"
            )
        return LlamaRows(own, cache, owned=False)

    return rows


def parallel_rows(
    own: Context,
    base: BaseInfo,
    plan: MemoryPlan,
    cache: PrefixCache,
    *,
    limit_bytes: int | None,
    flash_attention: FlashAttention,
) -> Callable[[int, int], LlamaRows]:
    """Makes contexts for so many sequences of so many tokens each, as `own` is; for `batcher.Batcher`.

    Args:
        plan: of the session, in memory beside it.
        cache: its kept prefixes are evicted if they must be.
        limit_bytes: the most that all may take; DoesNotFitError, with the numbers, where it has no room.
    """
    chosen = plan.choices

    def new_rows(n_sequences: int, n_tokens: int) -> LlamaRows:
        n_batch_tokens = max(chosen.n_batch_tokens, n_sequences)
        if limit_bytes is not None:
            parts = ContextSize.of(base.file).bytes(
                n_tokens,
                n_batch_tokens=n_batch_tokens,
                n_outputs=n_sequences,
                n_seq=n_sequences,
                kv_type=chosen.kv_type,
                n_threads=max(own.threads, own.threads_batch),
                flash_attention=flash_attention != "off",
                both_layouts=chosen.both_layouts,
            )
            taken_bytes = plan.total_bytes - plan.parallel_bytes - plan.snapshots_bytes
            left_bytes = limit_bytes - taken_bytes - sum(parts)
            if left_bytes < 0:
                raise DoesNotFitError(
                    f"{n_sequences} answers of {n_tokens} tokens at once need {human_bytes(sum(parts))}; "
                    f"{human_bytes(limit_bytes)} are allowed, {human_bytes(taken_bytes)} of them taken",
                    hint="ask for shorter answers, or keep fewer adapters in memory",
                )
            cache.shrink(left_bytes)
        context = own.beside(
            n_ctx_tokens=n_sequences * n_tokens,
            n_batch_tokens=n_batch_tokens,
            n_seq_max=n_sequences,
            threads=own.pace.given[0],
            threads_batch=own.pace.given[1],
            kv_type=chosen.kv_type,
            flash_attention=flash_attention,
        )
        return LlamaRows(context, cache)

    return new_rows
