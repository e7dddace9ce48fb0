"""The application: a table of paths, and what each of them answers while the server loads, runs and ends."""

import asyncio
import difflib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import unquote

from ..openai.chat import chat
from ..openai.completions import complete, detokenize, tokenize
from ..openai.faults import Fault
from ..openai.reply import Call, Receive, Scope, Send, answer_json
from ..openai.responses import respond
from ..openai.service import Service
from .admin import SOCKET_ONLY
from .guard import Caller
from .listen import WIRE
from .page import page_routes
from .state import show_state

State = Literal["loading", "ready", "draining"]
Handler = Callable[[Call], Awaitable[None]]

# An engine that does not answer between two units of work for so long hangs.
_HUNG_S: Final = 30.0
_PROBE_S: Final = 1.0


@dataclass
class App:
    """The application.

    Attributes:
        state: what of its life the server is in.
        service: None while the model is loaded.
        more: further paths: path -> method -> what answers. Nothing here is asked for a body but by POST.
        admin: the same, for the admin socket and keys with the scope `admin`.
    """

    state: State = "loading"
    service: Service | None = None
    more: dict[str, dict[str, Handler]] = field(default_factory=dict)
    admin: dict[str, dict[str, Handler]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._probe: asyncio.Future[Any] | None = None
        self._probed_s = 0.0
        self._began_s = time.monotonic()
        self._routes: dict[str, dict[str, Handler]] = {
            "/health": {"GET": self._ready},
            "/health/ready": {"GET": self._ready},
            "/health/live": {"GET": self._live},
            "/v1/models": {"GET": self._models},
            "/v1/chat/completions": {"POST": self._with(chat)},
            "/v1/completions": {"POST": self._with(complete)},
            "/v1/responses": {"POST": self._with(respond)},
            "/v1/embeddings": {"POST": _embed},
            "/tokenize": {"POST": self._with(tokenize)},
            "/detokenize": {"POST": self._with(detokenize)},
            "/v1/slm/state": {"GET": self._state},
            **page_routes(),
        }

    @property
    def paths(self) -> dict[str, list[str]]:
        """Every path with its methods."""
        table = {path: [*methods] for path, methods in {**self._routes, **self.more, **self.admin}.items()}
        return {**table, "/v1/models/{model}": ["GET"]}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller: Caller = scope["slm_edge"]
        call = Call(
            caller.body,
            caller.key.name,
            caller.key.may_ask,
            receive,
            send,
            headers=caller.headers,
            facts=caller.facts,
            wire=scope.get("extensions", {}).get(WIRE),
        )
        path: str = scope["path"]
        table = self._routes.get(path) or self.more.get(path)
        if path in self.admin:
            table = self._admitted(path, caller)
        if table is None and path.startswith("/v1/models/"):
            name = unquote(path.removeprefix("/v1/models/"))
            table = {"GET": lambda call: self._model(call, name)}
        if table is None:
            raise Fault(404, "not_found", f"there is nothing at this path; {_there(path, self.paths)}")
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        handler = table.get(method)
        if handler is None:
            allowed = ", ".join(table)
            raise Fault(405, "method_not_allowed", f"this path takes {allowed}", headers={"allow": allowed})
        await handler(call)

    def _admitted(self, path: str, caller: Caller) -> dict[str, Handler]:
        if caller.trusted or (caller.key.admin and path not in SOCKET_ONLY):
            return self.admin[path]
        where = "the admin socket (slm-edge adapter)"
        where = where if path in SOCKET_ONLY else f"{where}, or a key with the scope `admin`"
        raise Fault(403, "not_allowed", f"this path needs {where}")

    def _with(self, endpoint: Callable[[Service, Call], Awaitable[None]]) -> Handler:
        async def handler(call: Call) -> None:
            await endpoint(self.open_service(), call)

        return handler

    def open_service(self) -> Service:
        """The service; Fault 503 while the server loads or ends."""
        if self.state == "draining":
            raise Fault(503, "draining", "the server is ending; it takes no more requests", wait_s=10)
        if self.service is None or self.state == "loading":
            raise Fault(503, "loading", "the server is still loading its model", wait_s=2)
        return self.service

    async def _ready(self, call: Call) -> None:
        ready = self.state == "ready"
        await answer_json(call.send, 200 if ready else 503, {"status": "ok" if ready else self.state})

    async def _live(self, call: Call) -> None:
        fault = await self.fault()
        await answer_json(call.send, 503 if fault else 200, {"status": fault or "ok"})

    async def fault(self) -> str | None:
        """What is wrong with the engine's thread, "failed" or "hung"; while a model is loaded there is none to ask."""
        if self.service is not None and self.state == "ready":
            if self._probe is None or self._probe.done():
                self._probed_s = time.monotonic()
                self._probe = asyncio.ensure_future(self.service.run(self.service.engine.stats))
            await asyncio.wait([self._probe], timeout=_PROBE_S)
            failed = self._probe.done() and self._probe.exception() is not None
            if failed or (not self._probe.done() and time.monotonic() - self._probed_s > _HUNG_S):
                return "failed" if failed else "hung"
        return None

    async def _state(self, call: Call) -> None:
        await show_state(self.open_service(), call, self.state, self._began_s)

    async def _models(self, call: Call) -> None:
        service = self.open_service()
        catalogue = await service.run(service.catalogue)
        data = [catalogue.entry(name) for name in catalogue.ids(call.may_ask)]
        await call.answer({"object": "list", "data": data})

    async def _model(self, call: Call, name: str) -> None:
        service = self.open_service()
        catalogue = await service.run(service.catalogue)
        catalogue.found(name, call.may_ask)
        await call.answer(catalogue.entry(name))


async def _embed(call: Call) -> None:
    text = "this server has models that answer, and none for embeddings; ask another one for these"
    raise Fault(400, "unsupported_endpoint", text, param="model")


def _there(path: str, paths: dict[str, list[str]]) -> str:
    """What may be meant: mostly the address was given without its /v1, or with one too many."""
    for meant in (f"/v1{path}", path.removeprefix("/v1")):
        if meant in paths and meant != path:
            return f"{meant} is there; clients of OpenAI take the address with one /v1 at its end"
    near = difflib.get_close_matches(path[:100], paths, 1)
    return f"did you mean {near[0]}? /openapi.json has all of them" if near else "/openapi.json has what there is"
