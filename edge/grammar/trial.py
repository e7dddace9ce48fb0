"""Tries a grammar in a process of its own, where it may take no more than its share of time, memory and stack.

llguidance has limits of its own, and they do not cover all: a long chain of rules overflows its stack, some
intersections of regular expressions take minutes or gigabytes. What ends the child is a refusal here.

The child runs this very file: it needs llguidance and nothing of this package.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

CPU_S = 1
TIMEOUT_S = 6
MEMORY_BYTES = 256 << 20
# Half of a thread's usual stack: what passes here passes in any thread.
STACK_BYTES = 4 << 20


def tried(
    grammars: Sequence[str], limits: Mapping[str, int], n_tokens: int, specials: Mapping[int, str]
) -> list[str | None] | str:
    """What llguidance says against each grammar, None for nothing; or, as a text, why that could not be learnt.

    Args:
        limits: for `llguidance.LLParserLimits`.
        n_tokens, specials: size of the vocabulary, and the texts of its special tokens, which a grammar may name.
    """
    task = {
        "grammars": list(grammars),
        "limits": dict(limits),
        "n_tokens": n_tokens,
        "specials": list(specials.items()),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", __file__],
            input=json.dumps(task),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return "it takes too long to be made ready"
    except OSError as error:
        return f"it cannot be tried in a process of its own ({error.strerror})"
    with contextlib.suppress(ValueError):
        return [None if said is None else str(said) for said in json.loads(done.stdout)]
    return f"it nests too deeply, or takes more than {CPU_S} s or {MEMORY_BYTES >> 20} MiB to be made ready"


def _limit() -> None:
    import resource

    taken_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = {resource.RLIMIT_AS: taken_bytes + MEMORY_BYTES, resource.RLIMIT_CPU: CPU_S, resource.RLIMIT_CORE: 0}
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


class _Tokens:
    """A vocabulary of bytes, behind the special tokens at their own places."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, n_tokens: int, specials: list[tuple[int, str]]) -> None:
        self.tokens = [b""] * n_tokens + [bytes([byte]) for byte in range(255)] + [b"<end>"]
        for place, name in specials:
            self.tokens[place] = name.encode()
        self.eos_token_id = len(self.tokens) - 1
        self.special_token_ids = [*(place for place, _ in specials), self.eos_token_id]

    def __call__(self, text: bytes) -> list[int]:
        return []


def _child() -> None:
    """Reads a task from stdin and writes what is wrong to stdout, as JSON."""
    import threading

    import llguidance

    task = json.loads(sys.stdin.read())

    tokenizer = llguidance.LLTokenizer(_Tokens(task["n_tokens"], task["specials"]), slices=[])  # type: ignore[arg-type]
    # macOS has no such file, and does not hold to a limit on memory.
    with contextlib.suppress(OSError, ValueError):
        _limit()
    found: list[str | None] = []

    def compile_all() -> None:
        limits = llguidance.LLParserLimits(**task["limits"], verbose_errors=False)
        for lark in task["grammars"]:
            matcher = llguidance.LLMatcher(tokenizer, lark, log_level=0, limits=limits)
            if not matcher.is_error():
                matcher.compute_bitmask()
            found.append(matcher.get_error() or None)

    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=compile_all)
    thread.start()
    thread.join()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    _child()
