"""Answers from any server with the OpenAI API (vLLM, llama-server, Ollama, ...): the engine is theirs, the rules ours.

    server = Endpoint.of("http://localhost:8000/v1", parallel=16)
    run_cell(cell, folder, endpoint_generator(server))

What fails for a while (no connection, 408, 425, 429, 5xx) is asked again with growing pauses. Every answer is kept
with what the server says that it is. A key is sent where `OPENAI_API_KEY` is set.
"""

import concurrent.futures
import http.client
import json
import os
import random
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ...edge.answer.thinking import split
from ...edge.errors import EngineError, InputError
from ...edge.files.read import loads_json
from ..tasks.benchmark import Item, sample_seed
from .cells import Cell
from .runner import Generate

TRIES: Final = 6
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 60.0
ANSWER_TIMEOUT_S: Final = 600.0
MOST_ANSWER_BYTES: Final = 64 << 20
_PASSING: Final = {408, 425, 429, 500, 502, 503, 504}
_REASONS: Final = {"stop": "end", "length": "max_tokens"}


@dataclass(frozen=True)
class ServerAnswer:
    """One answer; `by` is the model, and its fingerprint if there is one, as the server names them.

    What the model thought stands apart, whether the server gives it so or as a part of the text.
    """

    text: str
    n_prompt_tokens: int
    n_tokens: int
    stop_reason: str
    by: str
    thinking: str = ""


class Endpoint:
    """A server.

    Args:
        url: up to and with "/v1".
        parallel: requests at once.
        tries: how often one request is made before it is given up.
        first_pause_s: before the second try; doubled after each.
    """

    def __init__(self, url: str, parallel: int, *, tries: int = TRIES, first_pause_s: float = FIRST_PAUSE_S) -> None:
        self.url = url
        self.parallel = parallel
        self._tries = tries
        self._first_pause_s = first_pause_s
        self._stopped = threading.Event()

    @classmethod
    def of(cls, url: str, parallel: int) -> "Endpoint":
        """A server by its address; "/v1" is added where the address has no path.

        Raises:
            InputError: it is not an http address.
        """
        try:
            parts = urllib.parse.urlsplit(url)
            # Raises for a name that DNS cannot hold.
            host = (parts.hostname or "").encode("idna")
            if parts.scheme not in ("http", "https") or not host or not url.isascii() or parts.port == 0:
                raise ValueError
        except ValueError:
            raise InputError(f"{url!r} is not an address", hint="for example http://localhost:8000/v1") from None
        return cls(url.rstrip("/") + ("" if parts.path.strip("/") else "/v1"), parallel)

    def models(self) -> list[str]:
        """The models that it lists; empty if it lists none.

        Raises:
            EngineError: nothing answers there.
        """
        try:
            listed = self._request("/models", None).get("data")
        except EngineError as error:
            if "HTTP 4" in error.message:
                return []
            raise
        rows = listed if isinstance(listed, list) else []
        return [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row]

    def ask(self, cell: Cell, item: Item) -> ServerAnswer:
        """One answer of the cell's model.

        Raises:
            EngineError: the server refuses the request, or fails too often, or answers something else.
        """
        decoding = cell.decoding
        body: dict[str, Any] = {
            "model": cell.adapter_name,
            "max_tokens": cell.max_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
        }
        if cell.stop:
            body["stop"] = list(cell.stop)
        if not decoding.greedy:
            # Some servers hold seeds in 31 bits
            body["seed"] = sample_seed(cell.seed, item.id) >> 1
        if cell.template_args and item.raw is None:
            body["chat_template_kwargs"] = dict(cell.template_args)
        if item.raw is None:
            found = self._request("/chat/completions", {**body, "messages": item.messages})
        else:
            found = self._request("/completions", {**body, "prompt": item.raw})
        try:
            choice = found["choices"][0]
            text = choice["message"]["content"] if item.raw is None else choice["text"]
            if not isinstance(text, str | None):
                raise TypeError("its text is none")
            thinking = ""
            if item.raw is None:
                message = choice["message"]
                given = message.get("reasoning_content") or message.get("reasoning")
                thinking, text = (given, text) if isinstance(given, str) else split(text or "")
            usage = found.get("usage") or {}
            by = " ".join(str(part) for part in (found.get("model"), found.get("system_fingerprint")) if part)
            return ServerAnswer(
                text or "",
                int(usage.get("prompt_tokens", 0)),
                int(usage.get("completion_tokens", 0)),
                _REASONS.get(choice.get("finish_reason"), str(choice.get("finish_reason"))),
                by or "unnamed",
                thinking,
            )
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise EngineError(f"the server's answer is not one of the OpenAI API ({error!r})", where=self.url) from None

    def stop(self) -> None:
        """Ends waiting between tries."""
        self._stopped.set()

    def _request(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        problem = ""
        for number in range(self._tries):
            pause_s: float | None = None
            try:
                request = urllib.request.Request(self.url + path, data, headers)
                with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as response:
                    found = loads_json(response.read(MOST_ANSWER_BYTES).decode("utf-8"))
                if not isinstance(found, dict):
                    raise EngineError("the server's answer is not a JSON object", where=self.url + path)
                return found
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}: {_words(error)}"
                if error.code not in _PASSING:
                    raise EngineError(f"the server refuses: {problem}", where=self.url + path) from None
                pause_s = _retry_after_s(error)
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = str(getattr(error, "reason", None) or error) or type(error).__name__
            if number + 1 < self._tries:
                own_s = self._first_pause_s * 2**number * random.uniform(0.75, 1.25)
                if self._stopped.wait(min(LONGEST_PAUSE_S, own_s if pause_s is None else pause_s)):
                    break
        raise EngineError(
            f"the server fails: {problem} (asked {self._tries} times)",
            where=self.url + path,
            hint="the same command goes on with what is missing",
        )


def _words(error: urllib.error.HTTPError) -> str:
    """What the server says of its refusal, short."""
    try:
        text = error.read(2000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    return " ".join(text.split())[:300] or str(error.reason)


def _retry_after_s(error: urllib.error.HTTPError) -> float | None:
    try:
        return max(0.0, float(error.headers.get("Retry-After", "")))
    except ValueError:
        return None


def endpoint_generator(server: Endpoint) -> Generate:
    """Answers of a server, `server.parallel` requests at once."""

    def generate(cell: Cell, items: list[Item], on_done: Callable[[int, Any], None]) -> None:
        pool = concurrent.futures.ThreadPoolExecutor(server.parallel, "ask")
        try:
            asked = {pool.submit(server.ask, cell, item): i for i, item in enumerate(items)}
            for future in concurrent.futures.as_completed(asked):
                on_done(asked[future], future.result())
        except BaseException:
            server.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    return generate
