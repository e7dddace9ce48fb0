"""/openapi.json: the paths and their types, made from what the code decodes and tests hold answers against."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from . import answers, fields

_ERRORS: Final = ("400", "401", "403", "404", "408", "413", "415", "429", "500", "503", "504")


@dataclass(frozen=True)
class Row:
    """One path: what it says of itself, what it takes, what it answers; None for a text."""

    says: str
    takes: type[msgspec.Struct] | None
    answers: type[msgspec.Struct] | None
    streams: bool = False


ROWS: Final[Mapping[str, Row]] = {
    "/v1/models": Row("The models that may be asked.", None, answers.ModelsAnswer),
    "/v1/models/{model}": Row("One model.", None, answers.ModelRow),
    "/v1/chat/completions": Row("Answers a conversation.", fields.ChatRequest, answers.ChatAnswer, True),
    "/v1/completions": Row("Goes on with a text.", fields.CompletionRequest, answers.CompletionAnswer, True),
    "/v1/responses": Row("Answers a conversation, as items.", fields.ResponsesRequest, answers.ResponseAnswer, True),
    "/tokenize": Row("Tokens of a text or a conversation.", fields.TokenizeRequest, answers.TokensAnswer),
    "/detokenize": Row("The text of tokens.", fields.DetokenizeRequest, answers.TextAnswer),
    "/health": Row("Whether requests are taken.", None, answers.HealthAnswer),
    "/health/ready": Row("Whether requests are taken.", None, answers.HealthAnswer),
    "/health/live": Row("Whether the engine works.", None, answers.HealthAnswer),
    "/metrics": Row("Numbers for Prometheus.", None, None),
    "/openapi.json": Row("This document.", None, None),
}


def document(paths: Mapping[str, list[str]], version: str, *, with_keys: bool) -> dict[str, Any]:
    """The document of an application.

    Args:
        paths: its paths with their methods; those without a row have no place in it.
        with_keys: whether a key is needed.
    """
    kinds = [kind for row in ROWS.values() for kind in (row.takes, row.answers) if kind is not None]
    kinds.append(answers.ErrorAnswer)
    refs, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    of = dict(zip(kinds, refs, strict=True))
    listed: dict[str, Any] = {}
    for path, methods in paths.items():
        row = ROWS.get(path)
        if row is not None:
            listed[path] = {method.lower(): _operation(path, method, row, of) for method in methods}
    data: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "slm-edge", "version": version, "description": "One base, many adapters, many clients."},
        "paths": listed,
        "components": {"schemas": schemas},
    }
    if with_keys:
        data["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        data["security"] = [{"key": []}]
    return data


def _operation(path: str, method: str, row: Row, of: Mapping[type, Any]) -> dict[str, Any]:
    kind = "text/plain" if path == "/metrics" else "application/json"
    content: dict[str, Any] = {kind: {"schema": {} if row.answers is None else of[row.answers]}}
    if row.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"description": "An error.", "content": {"application/json": {"schema": of[answers.ErrorAnswer]}}}
    made: dict[str, Any] = {
        "summary": row.says,
        "operationId": f"{method.lower()}{re.sub('[^a-z]+', '_', path)}".rstrip("_"),
        "responses": {"200": {"description": "The answer.", "content": content}, **dict.fromkeys(_ERRORS, error)},
    }
    if path.startswith("/health"):
        made["security"] = []
        made["responses"]["503"] = {"description": "Not now.", "content": content}
    if row.takes is not None:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": of[row.takes]}}}
    if "{model}" in path:
        made["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    return made
