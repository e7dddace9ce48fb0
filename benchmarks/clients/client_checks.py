"""Python's clients as they are, against a running server: run as a file by the Python that has them.

    python client_checks.py http://127.0.0.1:8090/v1 MODEL [--tools] [--only NAME]

Prints a line of JSON for each client: {"client", "version", "checks": {what: "ok" or why not}}. Nothing here imports
slm_edge, and nothing of a client is changed: the address and any key are all that they are told.
"""

import argparse
import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

QUESTION = "How many legs have 3 cats?"
USER = [{"role": "user", "content": QUESTION}]
MOST_TOKENS = 300
NO_KEY = "none"
PARAMETERS = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "count", "description": "Counts.", "parameters": PARAMETERS}}]
Checks = dict[str, Callable[[], Any]]


def legs() -> type:
    """What a structured answer is."""
    import pydantic

    made: type = pydantic.create_model(
        "Legs", legs=(int, pydantic.Field(ge=0, le=99)), sure=(bool, ...), __config__={"extra": "forbid"}
    )
    return made


def need(right: object, said: object = "") -> None:
    """Raises where something is not right."""
    if not right:
        raise AssertionError(f"not right: {said!r}"[:300])


def openai_client(url: str, model: str) -> Checks:
    """openai-python."""
    import openai

    client: Any = openai.OpenAI(base_url=url, api_key=NO_KEY, max_retries=0)
    create = client.chat.completions.create

    def stream() -> None:
        usage = {"include_usage": True}
        chunks = list(create(model=model, messages=USER, max_tokens=9, stream=True, stream_options=usage))
        need(chunks[-1].usage.completion_tokens and any(one.choices[0].delta.content for one in chunks[:-1]))

    def tools() -> None:
        made = create(model=model, messages=USER, tools=TOOLS, tool_choice="required", max_tokens=MOST_TOKENS)
        message = made.choices[0].message
        need(message.tool_calls and 0 <= json.loads(message.tool_calls[0].function.arguments)["n"] <= 9, made)
        said = [{"role": "tool", "tool_call_id": call.id, "content": "3"} for call in message.tool_calls]
        need(create(model=model, messages=[*USER, message, *said], tools=TOOLS, max_tokens=4).choices)

    def schema() -> None:
        parse = client.chat.completions.parse
        made = parse(model=model, messages=USER, response_format=legs(), max_tokens=MOST_TOKENS)
        need(made.choices[0].message.parsed, made)

    def responses() -> None:
        need(client.responses.create(model=model, input=QUESTION, max_output_tokens=16).output_text)
        events = list(client.responses.create(model=model, input=QUESTION, max_output_tokens=16, stream=True))
        need(events[-1].type in ("response.completed", "response.incomplete"), events[-1].type)

    def refusal() -> None:
        with contextlib.suppress(openai.NotFoundError):
            create(model="nobody", messages=USER)
            need(False, "an unknown model was answered")

    def hang_up() -> None:
        running = create(model=model, messages=USER, max_tokens=500, stream=True)
        next(iter(running))
        running.close()
        need(create(model=model, messages=USER, max_tokens=1).choices)

    return {
        "models": lambda: need(model in [one.id for one in client.models.list()]),
        "chat": lambda: need(create(model=model, messages=USER, max_tokens=9).choices[0].message.content),
        "stream": stream,
        "tools": tools,
        "schema": schema,
        "completions": lambda: need(client.completions.create(model=model, prompt="The", max_tokens=4).choices),
        "responses": responses,
        "refusal": refusal,
        "hang up": hang_up,
    }


def langchain(url: str, model: str) -> Checks:
    """langchain-openai."""
    from langchain_openai import ChatOpenAI

    options: dict[str, Any] = {"base_url": url, "api_key": NO_KEY, "max_retries": 0}
    chat = ChatOpenAI(model=model, max_tokens=MOST_TOKENS, **options)
    short = ChatOpenAI(model=model, max_tokens=9, stream_usage=True, **options)

    def stream() -> None:
        chunks = list(short.stream(QUESTION))
        need("".join(str(one.content) for one in chunks) and any(one.usage_metadata for one in chunks))

    def tools() -> None:
        made = chat.bind_tools(TOOLS, tool_choice="required").invoke(QUESTION)
        need(made.tool_calls and 0 <= made.tool_calls[0]["args"]["n"] <= 9, made)

    return {
        "chat": lambda: need(short.invoke(QUESTION).content),
        "stream": stream,
        "tools": tools,
        "schema": lambda: need(chat.with_structured_output(legs(), method="json_schema").invoke(QUESTION)),
        "responses": lambda: need(
            ChatOpenAI(model=model, max_tokens=16, use_responses_api=True, **options).invoke(QUESTION).content
        ),
    }


def llama_index(url: str, model: str) -> Checks:
    """llama-index's OpenAILike."""
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    options: dict[str, Any] = {"api_base": url, "api_key": NO_KEY, "is_chat_model": True, "max_retries": 0}
    chat = OpenAILike(model=model, max_tokens=9, **options)
    asked = [ChatMessage(role="user", content=QUESTION)]
    return {
        "chat": lambda: need(chat.chat(asked).message.content),
        "stream": lambda: need("".join(one.delta or "" for one in chat.stream_chat(asked))),
        "completions": lambda: need(
            OpenAILike(model=model, max_tokens=4, **{**options, "is_chat_model": False}).complete("The").text
        ),
    }


def litellm_client(url: str, model: str) -> Checks:
    """litellm's SDK."""
    import litellm

    options: dict[str, Any] = {"model": f"openai/{model}", "api_base": url, "api_key": NO_KEY, "num_retries": 0}

    def ask(**more: Any) -> Any:
        return litellm.completion(messages=USER, **options, **{"max_tokens": 9, **more})

    def tools() -> None:
        made = ask(tools=TOOLS, tool_choice="required", max_tokens=MOST_TOKENS).choices[0].message
        need(made.tool_calls and 0 <= json.loads(made.tool_calls[0].function.arguments)["n"] <= 9, made)

    def schema() -> None:
        text = ask(response_format=legs(), max_tokens=MOST_TOKENS).choices[0].message.content
        need(0 <= json.loads(text)["legs"] <= 99, text)

    def refusal() -> None:
        with contextlib.suppress(litellm.NotFoundError):
            litellm.completion(**{**options, "model": "openai/nobody"}, messages=USER)
            need(False, "an unknown model was answered")

    return {
        "chat": lambda: need(ask().choices[0].message.content),
        "stream": lambda: need("".join(one.choices[0].delta.content or "" for one in ask(stream=True))),
        "tools": tools,
        "schema": schema,
        "refusal": refusal,
    }


def instructor_client(url: str, model: str) -> Checks:
    """instructor, over openai-python, in the two ways that it has for such servers."""
    import instructor
    import openai

    def made(mode: Any) -> None:
        client = instructor.from_openai(openai.OpenAI(base_url=url, api_key=NO_KEY, max_retries=0), mode=mode)
        found = client.chat.completions.create(
            model=model, messages=USER, response_model=legs(), max_tokens=MOST_TOKENS, max_retries=0
        )
        need(0 <= found.legs <= 99, found)

    return {
        "schema": lambda: made(instructor.Mode.JSON_SCHEMA),
        "tools": lambda: made(instructor.Mode.TOOLS),
    }


def pydantic_ai(url: str, model: str) -> Checks:
    """pydantic-ai's agents."""
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    chat = OpenAIChatModel(model, provider=OpenAIProvider(base_url=url, api_key=NO_KEY))
    short: Any = {"max_tokens": 9}
    long: Any = {"max_tokens": MOST_TOKENS}

    async def stream() -> str:
        async with Agent(chat, model_settings=short).run_stream(QUESTION) as running:
            return "".join([piece async for piece in running.stream_text(delta=True)])

    return {
        "chat": lambda: need(Agent(chat, model_settings=short).run_sync(QUESTION).output),
        "stream": lambda: need(asyncio.run(stream())),
        "schema": lambda: need(
            Agent(chat, output_type=NativeOutput(legs()), model_settings=long).run_sync(QUESTION).output
        ),
        "tools": lambda: need(Agent(chat, output_type=legs(), model_settings=long).run_sync(QUESTION).output),
    }


CLIENTS: dict[str, tuple[str, Callable[[str, str], Checks]]] = {
    "openai-python": ("openai", openai_client),
    "langchain-openai": ("langchain-openai", langchain),
    "llama-index": ("llama-index-llms-openai-like", llama_index),
    "litellm": ("litellm", litellm_client),
    "instructor": ("instructor", instructor_client),
    "pydantic-ai": ("pydantic-ai", pydantic_ai),
}


def rows(url: str, model: str, with_tools: bool, only: list[str]) -> Iterator[dict[str, Any]]:
    """What each client found."""
    for name, (package, make) in CLIENTS.items():
        if only and name not in only:
            continue
        found: dict[str, str] = {}
        try:
            checks = make(url, model)
            about = version(package)
        except ImportError as error:
            yield {"client": name, "version": None, "checks": {"import": f"{error}"[:300]}}
            continue
        for what, check in checks.items():
            if what == "tools" and not with_tools:
                found[what] = "the model's template has none"
                continue
            try:
                check()
                found[what] = "ok"
            except Exception as error:  # noqa: BLE001 whatever a client raises is what is to be known
                found[what] = f"{type(error).__name__}: {error}"[:400]
        yield {"client": name, "version": about, "checks": found}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--tools", action="store_true")
    parser.add_argument("--only", action="append", default=[], choices=sorted(CLIENTS))
    given = parser.parse_args()
    # litellm asks the network for its table of prices otherwise; pydantic-ai's and langchain's tracing stay off
    os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "*", "LANGSMITH_TRACING": "false"}
    for row in rows(given.url, given.model, given.tools, given.only):
        print(json.dumps(row), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
