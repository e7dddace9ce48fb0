"""What the endpoints share: the engine, the names of models, and how requests get into the engine.

Rendering, counting tokens and reading rules take milliseconds, a schema's trial up to seconds: they run on threads of
their own, so that other answers flow meanwhile.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec

from ..answer.settings import Settings
from ..answer.stream import Answer
from ..errors import SlmEdgeError
from ..scheduler.engine import Engine
from ..scheduler.front import Prompt
from ..scheduler.ticket import Ticket
from .catalogue import Catalogue
from .checks import refuse_unknown
from .conversation import N_SEEDS
from .faults import Fault, fault_of
from .fields import Drawn
from .reply import Call

if TYPE_CHECKING:
    from ..grammar.rules import Rules

T = TypeVar("T")
N_THREADS: Final = 4
MOST_ANSWERS: Final = 64
FINISH: Final = {"end": "stop", "stop": "stop", "max_tokens": "length", "context": "length"}


class Observer(Protocol):
    """Who counts what happens; see `serve.metrics`."""

    def admitted(self, ticket: Ticket) -> None:
        """A request was handed to the engine."""

    def piece(self, ticket: Ticket) -> None:
        """A token of it came."""

    def ended(self, ticket: Ticket, outcome: Answer | BaseException) -> None:
        """It is whole, has failed, or was cancelled."""


class Nobody:
    """An observer that counts nothing."""

    def admitted(self, ticket: Ticket) -> None:
        """Counts nothing."""

    def piece(self, ticket: Ticket) -> None:
        """Counts nothing."""

    def ended(self, ticket: Ticket, outcome: Answer | BaseException) -> None:
        """Counts nothing."""


@dataclass(frozen=True)
class Asked:
    """Requests that were admitted, and what they are to be answered as.

    Attributes:
        tickets: one for each choice.
        model: the id of what answers.
        fingerprint: of everything that decides the answer but the request.
    """

    tickets: Sequence[Ticket]
    model: str
    fingerprint: str

    def queue_ms(self) -> str:
        """How long the first one waited, for a header."""
        return f"{self.tickets[0].queue_s * 1000:.1f}"

    def facts(self, answer: Answer | None = None) -> dict[str, Any]:
        """What `slm_edge` in an answer says, of the first choice; with its numbers where it is whole."""
        ticket = self.tickets[0]
        facts: dict[str, Any] = {
            "adapter": ticket.adapter,
            "digest": None if ticket.digest is None else f"sha256:{ticket.digest}",
            "scale": ticket.scale,
        }
        if ticket.decision is not None:
            facts["router"] = ticket.decision.as_dict()
        if answer is not None:
            facts |= {
                "queue_ms": round(ticket.queue_s * 1000, 1),
                "prefill_ms": round(answer.prefill_s * 1000, 1),
                "kept_tokens": answer.n_kept_tokens,
                "tokens_per_s": answer.decode_tokens_per_s and round(answer.decode_tokens_per_s, 2),
            }
        return facts


@dataclass
class Service:
    """The engine with what clients see of it.

    Attributes:
        strict: fields that are not known are refused, not let through.
    """

    engine: Engine
    aliases: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False
    created_s: int = 0
    base_meta: Mapping[str, Any] = field(default_factory=dict)
    observer: Observer = field(default_factory=Nobody)

    def __post_init__(self) -> None:
        # What never changes of them
        self.facts = self.engine.facts()
        self.n_ctx_tokens = self.facts.n_ctx_tokens
        self._pool = ThreadPoolExecutor(N_THREADS, thread_name_prefix="slm-edge-http")
        # Of their own: who sends costly schemas waits for others who do, and nobody else.
        self._trials = ThreadPoolExecutor(1, thread_name_prefix="slm-edge-rules")

    def close(self) -> None:
        """Ends the threads; the engine stays open."""
        for pool in (self._pool, self._trials):
            pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[[], T]) -> T:
        """Does something that takes its time on a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def catalogue(self) -> Catalogue:
        """What can be asked now. It may wait for the engine's lock: not for the event loop."""
        return Catalogue(self.engine.facts(), self.aliases, self.created_s, self.base_meta)

    def note_ignored(self, call: Call, ignored: list[str], kind: type[msgspec.Struct]) -> None:
        """Names the fields that were left out in the answer's headers; Fault where the server is strict."""
        if self.strict:
            refuse_unknown(ignored, kind)
        if ignored:
            shown = ", ".join(msgspec.json.encode(name).decode().strip('"') or '""' for name in ignored[:20])
            call.headers["x-slm-ignored"] = _header(shown[:1000])

    async def submit(
        self,
        call: Call,
        request: Drawn,
        prompts: Sequence[Prompt],
        settings: Settings,
        *,
        n: int = 1,
        logprobs: int | None = None,
        system: str | None = None,
        rules: "Rules | None" = None,
        rules_place: str = "",
        **more: Any,
    ) -> Asked:
        """Hands requests in, all or none: each prompt n times.

        Args:
            rules: what the answers keep to; tried before anything else, apart from the engine.
            rules_place: the field that they come from.
            more: handed on to `Engine.submit`.

        Raises:
            Fault: what was asked cannot be done, or not now.
        """
        if n > self.engine.parallel:
            raise Fault(400, "invalid_value", f"n is {n}; {self.engine.parallel} answers are possible", param="n")
        if len(prompts) * n > MOST_ANSWERS:
            raise Fault(400, "invalid_value", f"{len(prompts) * n} answers in one request; {MOST_ANSWERS} are possible")

        whose: dict[str, Any] = {"system": system, "key": call.key, "salt": request.cache_salt or ""}

        def work() -> Asked:
            catalogue = self.catalogue()
            target = catalogue.target(request.model, request.adapter, call.may_ask)
            chosen: Settings = settings if rules is None else {**settings, "grammar": rules}
            tickets: list[Ticket] = []
            try:
                for prompt in prompts:
                    for i in range(n):
                        seed = chosen.get("seed")
                        each: Settings = {**chosen, "seed": None if seed is None else (seed + i) % N_SEEDS}
                        tickets.append(self.engine.submit(prompt, target, logprobs=logprobs, **whose, **each, **more))
                        tickets[-1].timeout_s = request.timeout_s
            except BaseException:
                for ticket in tickets:
                    ticket.cancel()
                raise
            return Asked(tickets, catalogue.id_of(tickets[0].adapter), self._fingerprint(catalogue, tickets[0]))

        if rules is not None:
            try:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._trials, self.engine.try_rules, rules)
            except SlmEdgeError as error:
                raise fault_of(error, rules_place) from None
        try:
            asked = await self.run(work)
        except SlmEdgeError as error:
            raise fault_of(error) from None
        ticket = asked.tickets[0]
        call.headers["x-slm-adapter"] = ticket.adapter or "base"
        if ticket.digest is not None:
            call.headers["x-slm-adapter-digest"] = f"sha256:{ticket.digest}"
        call.facts |= {"asked": request.model, "model": asked.model, "digest": ticket.digest}
        for one in asked.tickets:
            self.observer.admitted(one)
        return asked

    def _fingerprint(self, catalogue: Catalogue, ticket: Ticket) -> str:
        facts = catalogue.facts
        parts = (
            facts.base_fingerprint,
            ticket.digest,
            facts.engine,
            facts.n_ctx_tokens,
            facts.n_rows,
            facts.computed_by,
        )
        return f"fp_{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"


def usage_of(answers: Sequence[Answer], n: int = 1) -> dict[str, Any]:
    """Token counts as OpenAI has them; a prompt that was asked n times is counted once."""
    n_prompt = sum(answer.n_prompt_tokens for answer in answers[::n])
    n_answer = sum(answer.n_tokens for answer in answers)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_answer,
        "total_tokens": n_prompt + n_answer,
        "prompt_tokens_details": {"cached_tokens": sum(answer.n_kept_tokens for answer in answers[::n])},
    }


def _header(text: str) -> str:
    """The text as a header may have it: ASCII that can be seen, no white space around."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text).strip()


def numbers_of(answers: Sequence[Answer]) -> dict[str, Any]:
    """What the log says of answers."""
    return {
        "prompt_tokens": sum(answer.n_prompt_tokens for answer in answers),
        "answer_tokens": sum(answer.n_tokens for answer in answers),
        "kept_tokens": sum(answer.n_kept_tokens for answer in answers),
        "reason": answers[0].stop_reason if answers else None,
    }
