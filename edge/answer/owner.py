"""Whose a session is: one thread's of one process, from when it is opened until it is closed.

    owner = Owner()
    owner.check()       # in another thread, a forked child, or once `closed` is set: EngineError

llama.cpp's objects are not locked: two threads in one of them end the process, and a forked child waits for ever for
threads that it does not have. So every call looks first.
"""

import os
import threading

from ..errors import EngineError


class Owner:
    """The thread and the process that this was made in.

    Attributes:
        closed: what it owns is freed.
    """

    __slots__ = ("_pid", "_thread", "_thread_name", "closed")

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._thread_name = threading.current_thread().name
        self._pid = os.getpid()
        self.closed = False

    @property
    def is_here(self) -> bool:
        """Whether the caller is the owner."""
        return threading.get_ident() == self._thread and os.getpid() == self._pid

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to free: it is closed, or this is a forked child, whose parent frees it."""
        return self.closed or os.getpid() != self._pid

    def check(self) -> None:
        """Raises EngineError unless the caller is the owner and nothing is closed."""
        if self.closed or threading.get_ident() != self._thread or os.getpid() != self._pid:
            raise self._refusal()

    def _refusal(self) -> EngineError:
        if os.getpid() != self._pid:
            return EngineError(
                f"the session was opened in the process {self._pid} and does not work in a process forked from it",
                hint="open a session after the fork",
            )
        if threading.get_ident() != self._thread:
            return EngineError(
                f"the session belongs to the thread {self._thread_name!r}; "
                f"{threading.current_thread().name!r} cannot use it",
                hint="open one session in each thread, or send every call to the thread that opened this one",
            )
        return EngineError("the session is closed", hint="open another one")
