"""The untrusted side of the sandbox: runs the program and answers calls of its functions.

It is told the program and the arguments of each call, never a test or what it expects.
"""

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from .wire import WireError, receive, send


def serve(commands: int, answers: int) -> None:
    """Runs the program of the first command, then answers calls until the pipe ends.

    Args:
        commands, answers: the pipes from and to the judge.
    """
    sys.stdin, sys.argv = open(0, encoding="utf-8", closefd=False), ["program.py"]  # noqa: SIM115
    # What is needed after untrusted code has run is bound before: an accident of the program changes nothing
    leave, take, say, answer = os._exit, receive, send, _answer
    # A module of its own: dataclasses and pickle look a class's module up by name
    module = ModuleType("__main__")
    space = module.__dict__
    sys.modules["__main__"] = module
    stage = "program"
    try:
        _, source, setup, names = take(commands)
        exec(compile(source, "<program>", "exec"), space)
        stage = "setup"
        exec(compile(setup, "<setup>", "exec"), space)
        functions = [name for name in names if callable(space.get(name))]
        variables = [name for name in names if name in space and name not in functions]
        # What stays here, for the judge to hand back: first these, then objects of the program's own classes
        held = [space[name] for name in variables]
        say(answers, "ready", functions, variables)
        stage = "test"
        while True:
            _, name, args, kwargs = take(commands, held)
            answer(answers, space[name], args, kwargs, held, say)
    except EOFError:
        # Raised by the pipe when the judge is done, or by the program's input()
        if stage != "test":
            say(answers, "failed", f"{stage}: EOFError: nothing to read")
        leave(0)
    except BaseException as error:  # noqa: BLE001 - SystemExit of the program included
        say(answers, "failed", f"{stage}: {type(error).__name__}: {error}"[:300].replace("\n", " "))
        leave(1)


def _answer(
    answers: int, function: Any, args: list[Any], kwargs: dict[str, Any], held: list[Any], say: Callable[..., None]
) -> None:
    try:
        say(answers, "value", function(*args, **kwargs), held=held)
    except WireError as error:
        say(answers, "failed", f"test: {error}")
    except BaseException as error:  # noqa: BLE001 - SystemExit of the program included
        say(answers, "error", [one.__name__ for one in type(error).__mro__], str(error)[:250])
