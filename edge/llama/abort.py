"""Stops llama.cpp in the middle of a computation, from any thread.

    flag = AbortFlag()
    with stopped_by(flag, context):     # llama.cpp looks at it between two operations of the graph
        context.decode(ids, 0)          # EngineError soon after `flag.set()`

llama.cpp asks a C function for a truth value, some hundred times for each batch. A Python function would need the
interpreter's lock each time, for which it may wait milliseconds; so the C library's own `strlen` is asked how long the
text in the flag is: 0, or 1 once it is set.
"""

import contextlib
import ctypes
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .binding import lib
from .context import Context


class AbortFlag:
    """Set by whoever wants an end; never unset."""

    __slots__ = ("_also", "_text")

    def __init__(self) -> None:
        self._text = ctypes.create_string_buffer(2)
        self._also: Callable[[], object] | None = None

    def set(self) -> None:
        """Ends the computation that looks at it."""
        self._text[0] = b"\x01"
        also = self._also
        if also is not None:
            also()

    def call(self, also: Callable[[], object] | None) -> None:
        """For computations that cannot look at it: whoever sets it calls this; at once where it is set already."""
        self._also = also
        if also is not None and self.is_set:
            also()

    @property
    def is_set(self) -> bool:
        """Whether `set` was called."""
        return self._text[0] != b"\x00"

    @property
    def address(self) -> int:
        """Of the text."""
        return ctypes.addressof(self._text)


@contextlib.contextmanager
def stopped_by(flag: AbortFlag | None, context: Context) -> Iterator[None]:
    """What the context computes inside the block ends with an EngineError once the flag is set; None: as ever.

    llama.cpp keeps what it had computed of the batch until then: remove it.
    """
    handles = context.handles if flag is not None else []
    for handle in handles:
        assert flag is not None
        lib().llama_set_abort_callback(handle, _asked(), flag.address)
    try:
        yield
    finally:
        for handle in handles:
            lib().llama_set_abort_callback(handle, _nobody(), None)


@functools.cache
def _asked() -> Any:
    """The C library's strlen, in the type of llama.cpp's binding."""
    library = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
    return ctypes.cast(library.strlen, lib().ggml_abort_callback)


@functools.cache
def _nobody() -> Any:
    return lib().ggml_abort_callback()
