"""From what one typed to a pack's folder or a model's file: here, pulled before, or fetched now.

located("hf:org/tiny-GGUF:Q4_K_M").path
located("my-pack").path, located("starter").path
"""

from dataclasses import dataclass
from pathlib import Path

from ..console import note
from ..errors import InputError
from ..hub.reference import Reference, parse
from ..store.store import Store
from ..store.version import Version
from ..written import nearest
from .pack import starter_folder


@dataclass(frozen=True)
class Located:
    """Where a reference leads.

    Attributes:
        path: a pack's folder, or a GGUF file.
        version: what the store knows of it; None for what lies elsewhere.
    """

    path: Path
    version: Version | None = None


def located(text: str) -> Located:
    """Where a reference leads. What was pulled is used as it is here; what was not is fetched.

    Raises:
        InputError: it is no reference, or nothing has that name.
        SlmEdgeError: it could not be fetched.
    """
    reference = parse(text)
    if reference.kind == "starter":
        return Located(starter_folder())
    if reference.kind in ("folder", "file"):
        return Located(Path(text))
    found = pulled(reference)
    if found is not None:
        return found
    if not reference.is_elsewhere:
        raise unknown_name(text)
    from .fetch import fetch

    note(f"{reference.text} is not here yet; it is fetched")
    # Its base comes when it is opened, as that of every pack.
    fetched = fetch(reference, with_base=False)
    return Located(fetched.path, fetched.version)


def pulled(reference: Reference) -> Located | None:
    """What was pulled by this name or from this place; None if nothing was."""
    store = Store()
    if reference.kind == "name":
        names = [reference.text]
    elif reference.kind == "hub":
        where = reference.text.removeprefix("hf:")
        names = [f"hf.co/{where}", *(name for name in store.names() if name.lower() == f"hf.co/{where}".lower())]
    else:
        names = []
    for name in names:
        if found := store.find(name):
            return _of(*found)
    if reference.is_elsewhere:
        for name in store.names():
            found = store.find(name)
            if found is not None and found[0].origin.reference == reference.text:
                return _of(*found)
    return None


def _of(version: Version, folder: Path) -> Located:
    return Located(folder / version.main if version.main else folder, version)


def unknown_name(text: str, fetching: bool = False) -> InputError:
    """The error for a name that is no file, no folder, and nothing that was pulled; `fetching`: it was to be pulled."""
    if text.startswith(("/", ".", "~")):
        return InputError("no such folder or file", where=text)
    names = ["starter", *Store().names()]
    near = nearest(text, names)
    if near is not None:
        hint = f"did you mean {near}? slm-edge list shows what is here"
    elif text.count("/") == 1 and " " not in text:
        hint = f"did you mean hf.co/{text}? slm-edge pull fetches it from the hub"
    else:
        hint = (
            "slm-edge pull hf.co/OWNER/REPO fetches a model of the hub; there is no list of short names"
            if fetching
            else 'slm-edge run FILE.gguf "Hello" takes a model that you have, hf.co/OWNER/REPO one of the hub; '
            "a prompt goes in quotes, or after -p"
        )
    what = "no address of the hub or of a server" if fetching else "no GGUF file, no pack's folder"
    return InputError(f"{text[:200]!r} is {what}, and nothing that was pulled", hint=hint)
