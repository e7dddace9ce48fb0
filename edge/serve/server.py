"""The server's life: sockets first, then the model, then requests, and an end that cuts nobody off.

    code = asyncio.run(Server(setup, open_engine).run())

SIGTERM and Ctrl-C drain: what is being answered ends within the grace, what comes meanwhile is refused with 503 while
the sockets are still open. A second signal ends at once. SIGHUP reads the keys and the adapters again.
"""

import asyncio
import contextlib
import functools
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec

from ..console import json_text, note
from ..errors import InputError, SlmEdgeError
from ..files.cache import runtime_folder, store_folder
from ..files.read import sha256_file
from ..openai.openapi import document
from ..openai.reply import Call, Scope, answer_bytes
from ..openai.service import Service
from ..pack.manifest import PACK_FILE
from ..pack.pack import Pack
from ..scheduler.engine import Engine
from .admin import Kept, list_adapters, load_adapter, unload_adapter
from .app import App, Handler
from .guard import Caller, Guard, Rules
from .keys import Keys
from .listen import Listener, all_loopback, remove_socket, tcp_sockets, unix_socket, url_of
from .metrics import CONTENT_TYPE, Metrics
from .supervise import tell, tidied, watched

# What is left to do once every answer is whole: its last bytes.
_LAST_BYTES_S: Final = 5.0
_STATS_S: Final = 5.0


@dataclass
class Setup:
    """How a server is run.

    Attributes:
        hosts, port: where it listens; no hosts for a Unix socket alone.
        unix: path of a Unix socket; None for none.
        keys_path: file of keys; None: everyone who reaches it may use it.
        allowed_hosts, origins: as in `guard.Rules`.
        aliases: further names of models.
        drain_s: how long answers may take once it is to end.
        strict: fields that are not known are refused.
        json_log: one JSON line on stderr for each request.
        base_path: of the base's file.
        served: the pack's folder or the file that was asked for.
        loras: adapter files by name, where a file is served.
        metrics_names: "vllm" for its names beside ours.
        open_to_all: keys are not asked for even where others can reach it.
    """

    hosts: Sequence[str] = ("127.0.0.1",)
    port: int = 8090
    unix: Path | None = None
    keys_path: Path | None = None
    allowed_hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    drain_s: float = 30.0
    strict: bool = False
    json_log: bool = False
    base_path: Path | None = None
    served: Path | None = None
    loras: Mapping[str, Path] = field(default_factory=dict)
    metrics_names: str | None = None
    open_to_all: bool = False


class Server:
    """One server.

    Args:
        open_engine: called once, on a thread.
        ready: called once it answers, with what it says of itself.
    """

    def __init__(self, setup: Setup, open_engine: Callable[[], Engine], ready: Callable[["Server"], None]) -> None:
        self.setup = setup
        self._open_engine = open_engine
        self._ready = ready
        self.app = App(
            more={"/openapi.json": {"GET": self._document}, "/metrics": {"GET": self._metrics}},
            admin={
                "/v1/lora_adapters": {"GET": self._with_kept(list_adapters)},
                "/v1/load_lora_adapter": {"POST": self._with_kept(load_adapter)},
                "/v1/unload_lora_adapter": {"POST": self._with_kept(unload_adapter)},
                "/v1/slm/server": {"GET": self._server},
            },
        )
        self._kept: Kept | None = None
        # Adapters that came from what is served, not by hand
        self._own_adapters: tuple[str, ...] = ()
        facts = {"version": metadata.version("slm-edge")}
        self.metrics = Metrics(facts, as_vllm=setup.metrics_names == "vllm")
        self.rules = Rules(
            None if setup.keys_path is None else Keys.open(setup.keys_path),
            frozenset(name.lower() for name in setup.allowed_hosts),
            frozenset(setup.origins),
        )
        if "*" in self.rules.origins and self.rules.keys is None:
            raise InputError(
                "--cors-origin '*' lets every web page use this server",
                hint="name the pages that may, or give keys (--keys)",
            )
        self.engine: Engine | None = None
        self.addresses: list[str] = []
        self._listener: Listener | None = None
        self._admin_path: Path | None = None
        self._began_s = time.time()
        self._n_signals = 0
        self._asked_to_end = asyncio.Event()
        self._asked_to_hurry = asyncio.Event()

    async def run(self) -> None:
        """Serves until a signal ends it.

        Raises:
            SlmEdgeError: it cannot listen, or the model cannot be opened.
        """
        # A file of a crash would hold what was said.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        sockets = self._sockets()
        self.addresses = [url_of(one) for one in sockets]
        listener = self._listener = Listener(
            Guard(self.app, self.rules, done=self._done), sockets, on_unread=self.metrics.unread.inc
        )
        loop = asyncio.get_running_loop()
        with self._signals(loop):
            await listener.start()
            admin = await self._open_admin()
            try:
                async with watched(self.app.fault), tidied():
                    await self._serve(loop, listener)
            finally:
                if admin is not None:
                    await admin.stop(0.1)
                for path in (self.setup.unix, self._admin_path):
                    if path is not None:
                        remove_socket(path)

    async def _open_admin(self) -> Listener | None:
        """The admin socket; None where there can be none, which is told."""
        try:
            path = runtime_folder() / f"{os.getpid()}.sock"
            one = unix_socket(path)
        except SlmEdgeError as error:
            note(f"there is no admin socket: {error}")
            return None
        self._admin_path = path
        listener = Listener(Guard(self.app, self.rules, trusted=True), [one])
        await listener.start()
        return listener

    async def _serve(self, loop: asyncio.AbstractEventLoop, listener: Listener) -> None:
        opening: asyncio.Future[Any] = loop.run_in_executor(None, self._open_engine)
        ending: asyncio.Future[Any] = asyncio.ensure_future(self._asked_to_end.wait())
        try:
            await asyncio.wait({opening, ending}, return_when=asyncio.FIRST_COMPLETED)
            # A model that is being loaded cannot be left half loaded.
            self.engine = await opening
            service = await loop.run_in_executor(None, self._service, self.engine)
            self.app.service = service
            if not self._asked_to_end.is_set():
                self.app.state = "ready"
                self._ready(self)
                tell("READY=1")
            await ending
            await self._drain(loop)
        finally:
            ending.cancel()
            self.app.state = "draining"
            hurry = self._asked_to_hurry.is_set()
            await listener.stop(0.1 if hurry else _LAST_BYTES_S)
            if self.engine is not None:
                await loop.run_in_executor(None, self.engine.close)
            if self.app.service is not None:
                self.app.service.close()

    def _service(self, engine: Engine) -> Service:
        path = self.setup.base_path
        facts = path.stat() if path is not None and path.is_file() else None
        service = Service(
            engine,
            dict(self.setup.aliases),
            self.setup.strict,
            int(facts.st_mtime) if facts is not None else 0,
            {"size": facts.st_size} if facts is not None else {},
            self.metrics,
        )
        self._own_adapters = engine.adapters
        self.metrics.base_name = service.catalogue().base_name
        served = self.setup.served or path
        self.metrics.facts |= {"base": self.metrics.base_name, "pack": "" if served is None else served.name}
        if path is not None:
            self._kept = Kept(self.setup.served or path)
            self._kept.restore(service)
        service.catalogue().check_aliases()
        return service

    def _with_kept(self, endpoint: Callable[[Service, Kept, Call], Awaitable[None]]) -> Handler:
        async def handler(call: Call) -> None:
            service = self.app.open_service()
            assert self._kept is not None
            await endpoint(service, self._kept, call)

        return handler

    async def _server(self, call: Call) -> None:
        """Who this is, for `slm-edge ps`; in every state."""
        data = {"pid": os.getpid(), "addresses": self.addresses, "state": self.app.state, "began_s": self._began_s}
        await call.answer({**data, "version": metadata.version("slm-edge"), "served": str(self.setup.served or "")})

    async def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ends what is being answered, in time or by force."""
        assert self.engine is not None
        self.app.state = "draining"
        tell("STOPPING=1")
        draining: asyncio.Future[Any] = loop.run_in_executor(None, self.engine.drain, self.setup.drain_s)
        hurrying: asyncio.Future[Any] = asyncio.ensure_future(self._asked_to_hurry.wait())
        await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        if draining.done() and (n_cut := draining.result()):
            note(f"{n_cut} answers were cut: they were not whole after {self.setup.drain_s:g} s")

    def _sockets(self) -> list[socket.socket]:
        """All that it listens on; InputError where others could reach it without a key."""
        sockets = [one for host in self.setup.hosts for one in tcp_sockets(host, self.setup.port)]
        try:
            if self.rules.keys is None and not self.setup.open_to_all and not all_loopback(sockets):
                raise InputError(
                    f"others could use the server at {', '.join(self.setup.hosts)} without a key",
                    hint="make a key: slm-edge serve --keys keys.txt --new-key NAME; then: slm-edge serve --keys "
                    "keys.txt --host …. --insecure-no-auth does without",
                )
            if self.setup.unix is not None:
                sockets.append(unix_socket(self.setup.unix))
        except BaseException:
            for one in sockets:
                one.close()
            raise
        if not sockets:
            raise InputError("there is nothing to listen on", hint="--host 127.0.0.1, or --unix PATH")
        return sockets

    @contextlib.contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Any:
        def end() -> None:
            self._n_signals += 1
            self._asked_to_end.set()
            if self._n_signals > 1:
                self._asked_to_hurry.set()

        before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        for one in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(one, end)
        loop.add_signal_handler(signal.SIGHUP, self.reread)
        try:
            yield
        finally:
            for one, handler in before.items():
                loop.remove_signal_handler(one)
                signal.signal(one, handler)

    def as_dict(self) -> dict[str, Any]:
        """What it says of itself: where it listens, its models, whose keys it knows, its memory."""
        assert self.app.service is not None and self.engine is not None
        plan = self.engine.stats().plan
        return {
            "addresses": self.addresses,
            "models": self.app.service.catalogue().ids(lambda model: True),
            "keys": [] if self.rules.keys is None else self.rules.keys.names,
            "memory": "not planned" if plan is None else plan.describe(),
            "plan": None if plan is None else plan.as_dict(),
        }

    def reread(self) -> None:
        """Reads the keys and the adapters again; where they are not valid, those that were stay."""
        self._reread_keys()
        served = self.setup.served
        # What was pulled changes by updates, which a server follows by itself.
        if self.app.state == "ready" and served is not None and store_folder() not in served.absolute().parents:
            asyncio.get_running_loop().run_in_executor(None, self._reread_adapters)

    def _reread_adapters(self) -> None:
        """Takes the adapters of what is served as they are now; what was added or removed by hand stays so."""
        served, kept = self.setup.served, self._kept
        assert self.engine is not None and kept is not None and served is not None
        with kept.lock:
            try:
                if (served / PACK_FILE).is_file():
                    pack = Pack.open(served)
                    if pack.base.fingerprint != self.engine.facts().base_fingerprint:
                        note("the pack has another base now; restart the server to have it")
                        return
                    by_hand = {*kept.added, *kept.removed}
                    # Also where a later one is refused: what was taken until then came from the pack.
                    before, self._own_adapters = self._own_adapters, (*self._own_adapters, *pack.adapters)
                    changed = self.engine.follow(pack, before, stays=by_hand, apart=True)
                    self._own_adapters = tuple(pack.adapters)
                else:
                    changed = self._reread_files(kept)
            except (SlmEdgeError, OSError) as error:
                note(f"not every adapter was read again; what is not named stays: {error}")
            else:
                note(f"the adapters were read; changed: {', '.join(changed) or 'none'}")

    def _reread_files(self, kept: Kept) -> list[str]:
        """The same for adapter files."""
        assert self.engine is not None
        digests = {one.name: one.digest for one in self.engine.facts().adapters}
        changed = []
        for name, path in self.setup.loras.items():
            if name not in (*kept.added, *kept.removed) and digests.get(name) != sha256_file(path):
                self.engine.load(name, path, apart=True)
                changed.append(name)
        return changed

    def _reread_keys(self) -> None:
        if self.setup.keys_path is None:
            return
        try:
            self.rules.keys = Keys.open(self.setup.keys_path)
        except SlmEdgeError as error:
            note(f"the keys stay as they were: {error}")
        else:
            note(f"{len(self.rules.keys)} keys were read")

    @functools.cached_property
    def _written(self) -> bytes:
        """/openapi.json, made once: it takes longer than all else that a request can ask for without a token."""
        paths, version = self.app.paths, metadata.version("slm-edge")
        return msgspec.json.encode(document(paths, version, with_keys=self.rules.keys is not None))

    async def _document(self, call: Call) -> None:
        await answer_bytes(call.send, self._written, "application/json")

    async def _metrics(self, call: Call) -> None:
        service, stats = self.app.service, None
        if service is not None and self.app.state != "loading":
            with contextlib.suppress(TimeoutError, SlmEdgeError):
                # An engine that hangs must not take the numbers along.
                async with asyncio.timeout(_STATS_S):
                    stats = await service.run(service.engine.stats)
        self.metrics.silent_s = 0.0 if self.engine is None else self.engine.silent_s
        self.metrics.connections.set(self._n_connections())
        await answer_bytes(call.send, self.metrics.text(stats), CONTENT_TYPE)

    def _n_connections(self) -> int:
        return 0 if self._listener is None else self._listener.n_connections

    def _done(self, scope: Scope, caller: Caller) -> None:
        """One request is answered. What was asked and said is not in the log."""
        path = scope["path"]
        known = path if path in self.app.paths else "/v1/models/{model}" if path.startswith("/v1/models/") else "other"
        self.metrics.answered(known, caller.status, caller.facts.get("code"))
        if not self.setup.json_log:
            return
        row = {
            "time": round(time.time(), 3),
            "request": caller.request_id,
            "key": caller.key.name,
            "method": scope["method"],
            "path": path,
            "status": caller.status,
            "seconds": round(time.monotonic() - caller.began_s, 4),
            **caller.facts,
        }
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(json_text(row, indent=None) + "\n")
            sys.stderr.flush()
