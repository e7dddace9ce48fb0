"""The untrusted side of the sandbox: runs the program and answers calls of its functions.

It is told the program and the arguments of each call, never a test or what it expects.
"""

import os
import sys
from types import ModuleType
from typing import Any

from .wire import drain, receive, send


def serve(commands: int, answers: int) -> None:
    """Runs the program of the first command, then answers calls until the pipe ends.

    Args:
        commands, answers: the pipes from and to the judge.
    """
    sys.stdin, sys.argv = open(0, encoding="utf-8", closefd=False), ["program.py"]  # noqa: SIM115
    # What is needed after untrusted code has run is bound before: an accident of the program changes nothing
    leave, take, say, empty_out = os._exit, receive, send, drain
    # A module of its own: dataclasses and pickle look a class's module up by name
    module = ModuleType("__main__")
    space = module.__dict__
    sys.modules["__main__"] = module
    stage = "program"
    try:
        _, source, names = take(commands, trusted=True)
        exec(compile(source, "<program>", "exec"), space)
        say(answers, "ready", [name for name in names if callable(space.get(name))])
        while True:
            command, *rest = take(commands, trusted=True)
            if command == "inside":
                # Tests that need the program's own classes are run here, and the word of this process is taken
                for stage, text in rest[0]:
                    exec(compile(text, f"<{stage}>", "exec"), space)
                say(answers, "passed")
                leave(0)
            stage = "test"
            say(answers, *_call(space, rest, empty_out))
    except EOFError:
        # Raised by the pipe when the judge is done, or by the program's input()
        if stage == "program":
            say(answers, "failed", "program: EOFError: nothing to read")
        leave(0)
    except BaseException as error:  # noqa: BLE001 - SystemExit of the program included
        say(answers, "failed", f"{stage}: {type(error).__name__}: {error}"[:300].replace("\n", " "))
        leave(1)


def _call(space: dict[str, Any], call: list[Any], empty_out: Any) -> tuple[Any, ...]:
    name, args, kwargs = call
    try:
        kind, value = empty_out(space[name](*args, **kwargs))
        return kind, value
    except BaseException as error:  # noqa: BLE001 - SystemExit of the program included
        return "error", type(error).__name__, str(error)[:250]
