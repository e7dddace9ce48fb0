"""An engine: one thread that owns a session and answers requests from any thread or event loop.

    with Engine.open("my-pack", parallel=4) as engine:
        engine.submit("How many legs have 3 cats?", "math").result().text       # from any thread
        for text in engine.submit("Write a loop.", "code"):
            print(text, end="", flush=True)

    answer = await engine.ask("How many legs have 3 cats?", "math")             # in an event loop
    async for text in engine.stream("Write a loop.", "code"):
        ...

What `submit` refuses it refuses at once and on the caller's thread: a prompt, a setting or a name that cannot be used,
rules that cannot be kept, or more work than the engine gets done in time (`BusyError`).
"""

import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, Unpack, get_args

from ..answer.base import SessionBase
from ..answer.settings import AdapterName, Settings
from ..answer.stream import Answer
from ..errors import InputError
from ..gguf.chat_template import Turn
from ..options import LEFT_OUT, EngineOptions, Left, LeftOut, Reuse
from ..pack.card import TaskCard
from .front import Prompt, Tools
from .host import Host
from .pace import Pace
from .stats import EngineFacts, Stats
from .ticket import Ticket

if TYPE_CHECKING:
    from ..grammar.rules import Rules
    from ..pack.pack import Pack

DEFAULT_ROWS: Final = 4
DEFAULT_MAX_WAIT_S: Final = 60.0
# What computes, by the engine's name
_LIBRARIES: Final = {"llama": "llama-cpp-python", "onnx": "onnxruntime"}


class Engine:
    """Requests of many callers over one session. Made by `open` or `of_session`; close it, or use it as a context.

    Every method may be called from any thread. None of them waits for the engine's thread but `result`, reading a
    ticket, `load`, `unload`, `stats`, `drain` and `close`.

    Args:
        open_session: called once, on the engine's own thread.
        parallel: answers computed side by side; each takes one KV cache.
        max_wait_s: a request that would begin later than this is refused.
        reuse: "fast" keeps whatever was computed, also answers and short beginnings; "exact" keeps what is bit for bit
            what computing anew would give.
        default_adapter: what answers where none is named; left out: what the session has in use.
        base_name: of the base, as users know it; None: what its file calls itself.

    Raises:
        SlmEdgeError: what opening the session raises.
    """

    def __init__(
        self,
        open_session: Callable[[], SessionBase[Any]],
        *,
        parallel: int = DEFAULT_ROWS,
        max_wait_s: float = DEFAULT_MAX_WAIT_S,
        reuse: Reuse = "fast",
        default_adapter: str | LeftOut | None = LEFT_OUT,
        base_name: str | None = None,
    ) -> None:
        if parallel < 1:
            raise InputError(f"parallel is {parallel}; it must be at least 1")
        if not max_wait_s > 0:
            raise InputError(f"max_wait_s is {max_wait_s}; it must be more than 0")
        self.parallel = parallel
        self.max_wait_s = max_wait_s
        if reuse not in get_args(Reuse):
            raise InputError(f"reuse is {reuse!r}; it must be one of {', '.join(get_args(Reuse))}")
        self._base_name = base_name
        self._host = Host(open_session, parallel, max_wait_s=max_wait_s, fast=reuse == "fast")
        self._computed_by = _computed_by(self._host.session)
        self.default_adapter = self._host.session.adapter if isinstance(default_adapter, Left) else default_adapter

    @classmethod
    def open(
        cls,
        pack: "Pack | str | os.PathLike[str] | None" = None,
        *,
        engine: str = "llama",
        parallel: int = DEFAULT_ROWS,
        max_wait_s: float = DEFAULT_MAX_WAIT_S,
        allow_pull: bool = False,
        base_name: str | None = None,
        **options: Unpack[EngineOptions],
    ) -> Self:
        """Opens a pack for requests.

        Args:
            pack: a folder, or what `Pack.open` gave; None for the starter pack.
            engine, allow_pull, options: as in `engines.open_session`, but that `reuse` is "fast" by default; errors
                too.
            parallel, max_wait_s: see the class.
            base_name: of the base, as users know it; None: its file's in the pack.
        """
        from ..engines import open_session
        from ..pack.pack import Pack

        opened = pack if isinstance(pack, Pack) else Pack.open(pack)
        default = opened.default_adapter
        options["n_rows"] = parallel
        return cls(
            lambda: open_session(opened, engine, allow_pull=allow_pull, **options),
            parallel=parallel,
            max_wait_s=max_wait_s,
            reuse=options.get("reuse", "fast"),
            default_adapter=default if default == "auto" or default in opened.adapters else None,
            base_name=base_name or opened.base.file_name.removesuffix(".gguf"),
        )

    @classmethod
    def of_session(
        cls,
        open_session: Callable[[], SessionBase[Any]],
        *,
        parallel: int = DEFAULT_ROWS,
        max_wait_s: float = DEFAULT_MAX_WAIT_S,
        reuse: Reuse = "fast",
        base_name: str | None = None,
    ) -> Self:
        """An engine over any session; it is opened, used and closed on the engine's thread alone."""
        return cls(open_session, parallel=parallel, max_wait_s=max_wait_s, reuse=reuse, base_name=base_name)

    # Requests

    def submit(
        self,
        prompt: Prompt,
        adapter: AdapterName | LeftOut = LEFT_OUT,
        *,
        system: str | None = None,
        key: str = "",
        salt: str = "",
        logprobs: int | None = None,
        tools: Tools | None = None,
        **settings: Unpack[Settings],
    ) -> Ticket:
        """Hands a request in; its answer is read from the ticket.

        Args:
            prompt: a user message's text, a conversation, or token ids, which are taken as they are.
            adapter: a name, several with their scales, None or "none" for the base alone, "auto" for what the router
                chooses; left out: the pack's default. It is bound to the file that the name stands for now.
            system: a system message; None: the conversation's own, else the task card's; "" for none.
            key: whose request it is; keys share the engine's time fairly, and nothing that they say.
            salt: what was computed for a prompt serves those of the same salt alone.
            logprobs: tell each token's log-probability, and those of so many likeliest ones (0 to 20).
            tools: what the model may call; its chat template writes them. None is called here.
            settings: see `settings.Settings`; what is left out is as the task card says.

        Raises:
            InputError, UnsupportedError: the prompt, a name or a setting cannot be used.
            DoesNotFitError: the prompt leaves no room in the context.
            BusyError: it would have to wait longer than `max_wait_s`, or the engine is ending.
            EngineError: the engine is closed, or has failed.
        """
        return self._host.submit(
            prompt,
            self._named(adapter),
            system=system,
            key=key,
            salt=salt,
            n_top=logprobs,
            settings=settings,
            tools=tools,
        )

    async def ask(
        self,
        prompt: Prompt,
        adapter: AdapterName | LeftOut = LEFT_OUT,
        *,
        system: str | None = None,
        key: str = "",
        **settings: Unpack[Settings],
    ) -> Answer:
        """The whole answer, in an event loop; arguments and errors as `submit`. A cancelled task cancels it."""
        return await self.submit(prompt, adapter, system=system, key=key, **settings)

    async def stream(
        self,
        prompt: Prompt,
        adapter: AdapterName | LeftOut = LEFT_OUT,
        *,
        system: str | None = None,
        key: str = "",
        **settings: Unpack[Settings],
    ) -> AsyncIterator[str]:
        """Pieces of text as they are final, in an event loop; arguments and errors as `submit`."""
        async for text in self.submit(prompt, adapter, system=system, key=key, **settings):
            yield text

    # Tokens

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text; with `special` texts such as <|im_end|> become these; errors as `Vocab.encode`."""
        return self._host.front.encode(text, special)

    def detokenize(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids; raises InputError for one that there is not."""
        return self._host.front.decode(ids, special)

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token, special ones by their texts; raises InputError for one that there is not."""
        return self._host.front.token_bytes(ids)

    def try_rules(self, rules: "Rules") -> None:
        """Reads rules and tries them, which takes up to seconds; raises InputError where they cannot be kept.

        `submit` does so too, while others wait for it.
        """
        self._host.front.try_rules(rules)

    @property
    def chat_template(self) -> str:
        """The base's chat template, jinja2."""
        return self._host.session.template.source

    def prompt_tokens(
        self,
        prompt: Prompt,
        adapter: AdapterName | LeftOut = LEFT_OUT,
        *,
        system: str | None = None,
        template_args: Mapping[str, Any] | None = None,
        turn: Turn = "new",
    ) -> list[int]:
        """Token ids of a prompt, through the chat template; arguments, settings and errors as `submit`.

        Args:
            turn: how the conversation ends, see `gguf.chat_template.Turn`.
        """
        bound, _ = self._host.bound(prompt, self._named(adapter))
        return self._host.front.rendered(prompt, system, bound.choice.card, None, template_args, turn).ids

    def count(self, prompt: Prompt, adapter: AdapterName | LeftOut = LEFT_OUT, *, system: str | None = None) -> int:
        """How many tokens a prompt is, through the chat template; arguments and errors as `submit`."""
        return len(self.prompt_tokens(prompt, adapter, system=system))

    # Adapters

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that can be asked for now."""
        return self._host.names

    def facts(self) -> EngineFacts:
        """What is served now."""
        session = self._host.session
        return EngineFacts(
            session.engine_name,
            self._base_name or session.base.name,
            session.base.fingerprint,
            session.n_ctx_tokens,
            self.parallel,
            self._host.front.router is not None,
            self.default_adapter,
            self._host.adapter_facts(),
            session.template.argument_names,
            session.template.thinking_form is not None,
            session.base.name,
            self._computed_by,
        )

    def load(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        card: TaskCard | None = None,
        expect_digest: str | None = None,
        apart: bool = False,
    ) -> str:
        """Gives a name to an adapter's file, in place of what it stood for; answers in the making keep theirs.

        The file is checked, loaded and tried between two steps, before the name stands for it; it must stay as it is.

        Args:
            card: how answers are made; None: what the file's metadata says.
            expect_digest: the sha256 that the name must stand for until now, "" for a new name; None: any.
            apart: try it in a child process first, which may die of it in place of this one; takes a second or more,
                once for a file.

        Returns:
            The file's sha256.

        Raises:
            ConflictError: the name stands for something else.
            InputError, DamagedError, DoesNotFitError, EngineError: as `Session.use`.
        """
        return self._host.load(name, Path(path), card, expect_digest, apart=apart)

    def try_apart(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        card: TaskCard | None = None,
        expect_digest: str | None = None,
    ) -> None:
        """What `load` does first with `apart`, and then need not do again; arguments and errors as there."""
        self._host.try_apart(name, Path(path), card, expect_digest)

    def unload(self, name: str, *, expect_digest: str | None = None) -> None:
        """Takes a name away; answers in the making are made to their end.

        Raises:
            ConflictError: it stands for another sha256 than `expect_digest`.
            InputError: there is no such adapter.
        """
        self._host.call(lambda: self._host.unload(name, expect_digest))

    def follow(
        self, pack: "Pack", before: Collection[str], *, stays: Collection[str] = (), apart: bool = False
    ) -> list[str]:
        """Serves a pack's adapters as they are now: new and changed ones first, then the default, then what is gone.

        Args:
            pack: over the same base.
            before: names that came from the pack until now; others were loaded by hand, and stay.
            stays: names that are left as they are, whatever the pack has.
            apart: as in `load`.

        Returns:
            The names that stand for something else now, or for nothing.

        Raises:
            SlmEdgeError: as `load`; what comes behind it is as it was.
        """
        served = {one.name: one for one in self._host.adapter_facts()}
        found = self._host.session.adapters_in(pack)
        changed = []
        for name, packed in found.items():
            now = served.get(name)
            if name not in stays and (now is None or (now.digest, now.card) != (packed.sha256, packed.card)):
                self.load(name, packed.path, card=packed.card, apart=apart)
                changed.append(name)
        default = pack.default_adapter
        self.default_adapter = default if default == "auto" or default in self.adapters else None
        for name in sorted(served.keys() - found.keys()):
            if name in before and name not in stays:
                self.unload(name)
                changed.append(name)
        return changed

    # The end, and numbers

    def stats(self) -> Stats:
        """What was done and is to do, taken between two units of work."""
        return self._host.call(self._host.stats)

    @property
    def silent_s(self) -> float:
        """Seconds since the engine's thread last ended a unit of work, while it has any; for a watchdog."""
        return self._host.silent_s

    def pace(self) -> Pace:
        """How fast it computes, as measured so far; may be read at any time."""
        return self._host.pace

    def drain(self, timeout_s: float | None = None) -> int:
        """Takes no more requests and waits for those that there are; what is not done in time is cancelled.

        Returns:
            How many were cancelled.
        """
        return self._host.drain(timeout_s)

    def close(self) -> None:
        """Cancels what is not done and frees everything. Calling it twice does nothing."""
        self._host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _named(self, adapter: AdapterName | LeftOut) -> AdapterName:
        return self.default_adapter if isinstance(adapter, Left) else adapter


def _computed_by(session: SessionBase[Any]) -> str:
    """As `EngineFacts.computed_by`."""
    library = _LIBRARIES[session.engine_name]
    setup = "" if session.plan is None else f", {session.plan.choices.describe()}"
    return f"{library} {metadata.version(library)}, {session.threads} threads{setup}"
