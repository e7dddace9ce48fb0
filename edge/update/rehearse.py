"""The rehearsal of a new version in a child process, before it is used: it must load, answer, and answer rightly.

rehearse(folder)            # raises with the reason; the child's death is a reason too

For each adapter: it is loaded and tried with a few tokens, then each golden prompt of its task card is answered. A card
without any is tried with a greeting, which must get some answer. The base is mapped: who has it open shares it.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import DamagedError, DoesNotFitError, EngineError, InputError, SlmEdgeError, UnsupportedError

if TYPE_CHECKING:
    from ..answer.base import SessionBase
    from ..pack.card import TaskCard

TIMEOUT_S: Final = 900
GREETING: Final = "Hello"
GREETING_TOKENS: Final = 8
_KINDS: Final = {
    kind.__name__: kind for kind in (DamagedError, DoesNotFitError, EngineError, InputError, UnsupportedError)
}
_LAST_WORDS: Final = 600


def rehearse(folder: Path, timeout_s: float = TIMEOUT_S) -> None:
    """Loads and tries a pack in a child process.

    Raises:
        EngineError: an answer is not as its card says; the child dies, or does not end in time.
        SlmEdgeError: what loading raises: memory that does not suffice, a damaged file.
    """
    try:
        child = subprocess.run(
            [sys.executable, "-m", "slm_edge.edge.update.rehearse", str(folder.absolute())],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise EngineError(f"the rehearsal does not end within {timeout_s:.0f} s", where=folder) from None
    if child.returncode == -signal.SIGKILL:
        raise DoesNotFitError("the rehearsal was killed, most likely for want of memory", where=folder)
    try:
        told = json.loads(child.stdout)
        fault = told["fault"]
    except (ValueError, KeyError, TypeError):
        said = child.stderr.decode(errors="replace").strip()[-_LAST_WORDS:]
        ended = f"by signal {-child.returncode}" if child.returncode < 0 else f"with code {child.returncode}"
        raise EngineError(f"the rehearsal ends {ended}", where=folder, problems=[said] if said else []) from None
    if fault is not None:
        kind = _KINDS.get(told["kind"], EngineError)
        raise kind(f"the rehearsal fails: {fault}", where=folder, problems=[str(one) for one in told["problems"]])


def _try(folder: Path) -> None:
    """What the child does."""
    from ..engines import open_session
    from ..pack.pack import Pack

    pack = Pack.open(folder)
    problems: list[str] = []
    with open_session(pack, adapter=None) as session:
        for name, packed in pack.adapters.items():
            session.use(name)
            problems += [f"{name}: {problem}" for problem in _answers(session, packed.card)]
        if not pack.adapters and not session.ask(GREETING, max_tokens=GREETING_TOKENS).n_tokens:
            problems.append("the base gives no answer")
    if problems:
        raise EngineError("answers are not as the task cards say", problems=problems)


def _answers(session: "SessionBase[Any]", card: "TaskCard") -> list[str]:
    """What is wrong with the answers to a card's golden prompts."""
    if not card.golden:
        answer = session.ask(GREETING, max_tokens=GREETING_TOKENS)
        return [] if answer.n_tokens else ["there is no answer to a greeting"]
    problems = []
    for row in card.golden:
        text = session.ask(row["prompt"], temperature=0.0).text
        wanted = row.get("equals")
        if wanted is not None and text.strip() != wanted.strip():
            problems.append(f"{row['prompt'][:60]!r} gives {text.strip()[:60]!r}, not {wanted.strip()[:60]!r}")
        wanted = row.get("contains")
        if wanted is not None and wanted not in text:
            problems.append(f"{row['prompt'][:60]!r} gives {text.strip()[:60]!r}, without {wanted[:60]!r}")
        if not text.strip():
            problems.append(f"{row['prompt'][:60]!r} gives no answer")
    return problems


def main() -> None:
    """The child: prints one JSON document."""
    told: dict[str, Any] = {"fault": None}
    try:
        _try(Path(sys.argv[1]))
    except SlmEdgeError as error:
        told = {"fault": error.message, "kind": type(error).__name__, "problems": list(error.problems)}
    print(json.dumps(told))  # noqa: T201


if __name__ == "__main__":
    main()
