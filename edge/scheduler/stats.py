"""What an engine serves, and what it has done and has to do, as numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..pack.card import TaskCard

if TYPE_CHECKING:
    from ..memory.plan import MemoryPlan


@dataclass(frozen=True)
class AdapterFacts:
    """One adapter as it is now.

    Attributes:
        digest: sha256 of its file.
        loaded: whether it is in memory.
    """

    name: str
    digest: str
    size_bytes: int
    card: TaskCard
    loaded: bool


@dataclass(frozen=True)
class EngineFacts:
    """What an engine serves.

    Attributes:
        engine: "llama" or "onnx".
        base_name: of the base, as users know it.
        inner_name: what its file calls itself.
        computed_by: what else the last bits depend on: the library with its version, threads, how weights and keys and
            values are held.
        base_fingerprint: of the base.
        n_ctx_tokens: longest prompt and answer together.
        n_rows: answers that can be computed side by side.
        has_router: whether "auto" can be asked for.
        default_adapter: what answers where none is named: a name, "auto", or None for the base alone.
        template_arguments: what the chat template can be told, as in `ChatTemplate.argument_names`.
        thinks: the chat template knows thoughts before an answer.
    """

    engine: str
    base_name: str
    base_fingerprint: str
    n_ctx_tokens: int
    n_rows: int
    has_router: bool
    default_adapter: str | None
    adapters: tuple[AdapterFacts, ...]
    template_arguments: frozenset[str] = frozenset()
    thinks: bool = False
    inner_name: str = ""
    computed_by: str = ""


@dataclass(frozen=True)
class Stats:
    """A snapshot. Adapters go by the names that users know; "base" is the base alone.

    Attributes:
        n_rows: answers that can be computed side by side.
        running, waiting: requests by adapter.
        n_answered, n_cancelled, n_failed: requests that ended.
        prompt_tokens, answer_tokens: computed, by adapter.
        kept_tokens: of prompts, found computed, by adapter.
        work_s: seconds that the engine computed, by ("prompt", "step", "swap" or "load", adapter).
        n_swaps: changes of the adapters that compute.
        swap_s: seconds that one takes, as measured of late.
        n_parked: answers that were laid aside for others, since the start.
        n_aside: those that are aside now.
        parked_bytes: what those that are aside now hold.
        loaded_bytes: adapters in memory.
        adapter_loads: how often one was taken into memory, "loaded", or a new file was "refused", by (adapter, that).
        prefix_bytes: kept beginnings of prompts in memory.
        n_prefix_hits: requests that had a part of their prompt found computed.
        n_prefix_evictions: kept beginnings that went for want of room.
        held_tokens: whose keys and values the rows hold, those of free rows too.
        room_tokens: that they can hold.
        plan: of the memory; None if the engine plans none.
    """

    n_rows: int
    running: Mapping[str, int]
    waiting: Mapping[str, int]
    n_answered: int
    n_cancelled: int
    n_failed: int
    prompt_tokens: Mapping[str, int]
    answer_tokens: Mapping[str, int]
    kept_tokens: Mapping[str, int]
    work_s: Mapping[tuple[str, str], float]
    n_swaps: int
    swap_s: float
    n_parked: int
    n_aside: int
    parked_bytes: int
    loaded_bytes: Mapping[str, int]
    adapter_loads: Mapping[tuple[str, str], int]
    prefix_bytes: int
    n_prefix_hits: int
    n_prefix_evictions: int
    held_tokens: int
    room_tokens: int
    plan: "MemoryPlan | None"
