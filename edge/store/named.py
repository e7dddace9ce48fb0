"""What lies in the store, as its user calls it: a path with a sha256 in it says nothing to people.

told(error)        # "SmolLM2-135M-Instruct.Q4_1.gguf: does not fit into 100 B: …"
"""

import re

from ..errors import InputError, SlmEdgeError
from .store import Store
from .uses import uses_of
from .version import decoded


def told(error: SlmEdgeError) -> str:
    """The error as people read it; its hint stays, since a path in it is there to be typed."""
    problems = [named(problem) for problem in error.problems]
    where = None if error.where is None else named(error.where)
    return str(SlmEdgeError(named(error.message), where=where, hint=error.hint, problems=problems))


def named(text: str) -> str:
    """The text with the names of bases, packs and models in place of their paths in the store."""
    try:
        store = Store()
    except InputError:
        # A user without a home has no store.
        return text
    inside = rf"{re.escape(str(store.folder))}/(?:blobs/sha256/([0-9a-f]{{64}})|packs/([^/\s]+)/[0-9a-f]{{64}})"

    def name(found: re.Match[str]) -> str:
        if found[1] is None:
            return decoded(found[2])
        files = (use.file_name for use in uses_of(store, found[1]) if use.file_name)
        return next(files, f"{found[1][:12]} (in the store)")

    return re.sub(inside, name, text)
