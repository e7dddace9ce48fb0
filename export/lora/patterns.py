r"""Which of a config's patterns names each module, by PEFT's rules.

    keys, faults = pattern_keys(["q_proj", r"layers\.[12]\..*"], ["model.layers.0.self_attn.q_proj"])
    named, faults = named_by(r".*\.[qv]_proj", ["model.layers.0.self_attn.q_proj"])

A regular expression is a stranger's program: it may backtrack without end, and from within nothing ends it. Names,
which most patterns are, are tried here; all else in a child process, which the system ends.

The child runs this very file: it needs nothing of this package.
"""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Collection
from typing import Final

CPU_S: Final = 2
TIMEOUT_S: Final = 60
MEMORY_BYTES: Final = 512 << 20
# A name tries each dot of a module's name, and never two ways from one.
_NAME: Final = re.compile(r"\^?(?:[\w.]|\\\.)*")
# Letters of all patterns times letters of all modules: the steps that names may take here, a few seconds' worth
_MOST_STEPS: Final = 1 << 30


def pattern_keys(patterns: Collection[str], modules: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """The first pattern that names each module, by PEFT's rule (`peft.utils.other.get_pattern_key`).

    A pattern is a regular expression for the end of the module's name, beginning at a dot or at the start.

    Returns:
        module -> pattern, without the modules that none names; and what is wrong with patterns, which then name
        nothing.
    """
    return _tried(patterns, modules, whole=False)


def named_by(pattern: str, modules: Collection[str]) -> tuple[set[str], list[str]]:
    """The modules whose whole name a regular expression matches, as PEFT reads one for `target_modules`.

    Returns:
        the modules, and what is wrong with the pattern, which then names nothing.
    """
    keys, faults = _tried([pattern], modules, whole=True)
    return set(keys), faults


def _tried(patterns: Collection[str], modules: Collection[str], *, whole: bool) -> tuple[dict[str, str], list[str]]:
    steps = sum(map(len, patterns)) * sum(map(len, modules))
    if steps <= _MOST_STEPS and all(_NAME.fullmatch(pattern) for pattern in patterns):
        return _matched(patterns, modules, whole)
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", __file__],
            input=json.dumps([list(patterns), list(modules), whole]),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            timeout=TIMEOUT_S,
        )
        keys, faults = json.loads(done.stdout)
    except OSError as error:
        return {}, [f"its regular expressions cannot be tried in a process of their own ({error.strerror})"]
    except (subprocess.TimeoutExpired, ValueError):
        return {}, [f"its regular expressions take more than {CPU_S} s or {MEMORY_BYTES >> 20} MiB to be tried"]
    return dict(keys), [str(fault) for fault in faults]


def _matched(patterns: Collection[str], modules: Collection[str], whole: bool) -> tuple[dict[str, str], list[str]]:
    faults: list[str] = []
    usable: dict[str, re.Pattern[str]] = {}
    for pattern in patterns:
        try:
            usable[pattern] = re.compile(pattern if whole else rf"(.*\.)?({pattern})$")
        except (re.error, OverflowError, RecursionError) as error:
            faults.append(f"{pattern!r} is not a regular expression ({error})")
    keys = {}
    for module in modules:
        found = (p for p, compiled in usable.items() if (compiled.fullmatch if whole else compiled.match)(module))
        key = next(found, None)
        if key is not None:
            keys[module] = key
    return keys, faults


def _limit() -> None:
    import resource

    for kind, most in ((resource.RLIMIT_CPU, CPU_S), (resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (most, most))


def _child() -> None:
    """Reads patterns and modules from stdin and writes `_matched` to stdout, as JSON."""
    patterns, modules, whole = json.load(sys.stdin)
    # Windows has no such limits, and a hard limit that is lower already is one too.
    with contextlib.suppress(ImportError, OSError, ValueError):
        _limit()
    json.dump(_matched(patterns, modules, whole), sys.stdout)


if __name__ == "__main__":
    _child()
