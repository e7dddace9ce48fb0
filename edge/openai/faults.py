"""Refusals as OpenAI's clients read them: a status, a type, a code, and the place in the request that is at fault.

    raise Fault(400, "invalid_value", "temperature is 101; 100 is the most", param="temperature")

The clients try again by themselves on 408, 409, 429 and from 500 on; what is final says so in `x-should-retry`.
"""

import math
from typing import Any, Final

from ..errors import (
    BusyError,
    ConflictError,
    DamagedError,
    DoesNotFitError,
    EngineError,
    InputError,
    SlmEdgeError,
    UnsupportedError,
)

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    504: "timeout_error",
}
# What the engine checks itself, under the name that clients know
_FIELDS: Final = ("logit_bias", "min_tokens", "ignore_eos", "continue_final_message")
# Clients of OpenAI do not try again where they are told to wait longer.
LONGEST_WAIT_S: Final = 60


class Fault(Exception):
    """A request that is answered with an error.

    Args:
        code: one word that programs compare, such as "model_not_found".
        param: path of the field at fault, as "messages[0].role".
        wait_s: when it may be tried again.
        headers: further ones of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        wait_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})
        if wait_s is not None:
            # A fraction is rounded up: trying earlier would be refused again.
            self.headers["retry-after"] = str(min(max(math.ceil(wait_s), 1), LONGEST_WAIT_S))
        elif status >= 500:
            self.headers["x-should-retry"] = "false"
        super().__init__(message)

    def as_dict(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class LateError(SlmEdgeError):
    """The answer was not whole within the request's `timeout_s`, and is given up."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the answer was not whole within {timeout_s:g} s, as the request asked")


def fault_of(error: SlmEdgeError, param: str | None = None) -> Fault:
    """What a client is told of an error of the engine. Paths and the server's own files stay out of it.

    Args:
        param: the field that the error is about, where the caller knows.
    """
    if error.where in _FIELDS:
        param = error.where
    text = " ".join([error.message, *(f"{problem}." for problem in error.problems)])
    text = f"{text}{'' if text.endswith('.') else ';'} {error.hint}" if error.hint else text
    if isinstance(error, BusyError):
        if error.wait_s is None:
            return Fault(503, "draining", error.message, wait_s=10)
        return Fault(429, "queue_full", error.message, wait_s=error.wait_s)
    if isinstance(error, LateError):
        return Fault(504, "deadline_exceeded", error.message, param="timeout_s")
    if isinstance(error, ConflictError):
        return Fault(409, "conflict", text, param=param, headers={"x-should-retry": "false"})
    if isinstance(error, DoesNotFitError):
        return Fault(400, "context_length_exceeded", text, param=param or "messages")
    if isinstance(error, UnsupportedError):
        return Fault(400, "unsupported_value", text, param=param)
    if isinstance(error, InputError):
        return Fault(400, "invalid_value", text, param=param)
    if isinstance(error, DamagedError):
        return Fault(500, "damaged", f"a file of this server is damaged: {error.message}")
    if isinstance(error, EngineError):
        return Fault(500, "engine_error", error.message)
    return Fault(500, "internal_error", error.message)
