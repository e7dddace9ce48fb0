"""What one types to name a model or a pack, here or elsewhere.

parse("starter")                                    # the pack that comes with slm-edge
parse("hf:org/tiny-GGUF:Q4_K_M")                    # as hf.co/org/tiny-GGUF:Q4_K_M and https://huggingface.co/…
parse("hf:org/pack@v2"), parse("hf:org/tiny/b.gguf")
parse("https://host/pack.json")
parse("my-pack"), parse("model.gguf")               # a folder or file, else the name of something pulled
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from ..errors import InputError
from ..files.web import hub_endpoint

Kind = Literal["starter", "folder", "file", "hub", "address", "name"]
PACK_FILE: Final = "pack.json"
_PART: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB: Final = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?P<file>(?:/[A-Za-z0-9_][A-Za-z0-9_.+=,~() -]*)+)?"
    r"(?::(?P<quant>[A-Za-z0-9][A-Za-z0-9_.-]*))?(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]*))?"
)
_PREFIXES: Final = ("hf://", "hf:", "hf.co/", "huggingface.co/", "www.huggingface.co/", "hub:")
_HOSTS: Final = ("huggingface.co", "www.huggingface.co", "hf.co")
# The places of a file in a repository, as its pages are addressed
_VIEWS: Final = ("resolve", "blob", "tree", "raw")
HELP: Final = (
    "a reference is: starter, a pack's folder, a GGUF file, hf:OWNER/REPO[:QUANT or /FILE][@REVISION], "
    "https://…/pack.json, or the name of something pulled (slm-edge list)"
)


@dataclass(frozen=True)
class Reference:
    """One reference.

    Attributes:
        text: in the form that is kept and shown.
        repo, file, quant, revision: of a place on the hub.
    """

    kind: Kind
    text: str
    repo: str = ""
    file: str | None = None
    quant: str | None = None
    revision: str | None = None

    @property
    def is_elsewhere(self) -> bool:
        """Whether it has to be fetched."""
        return self.kind in ("hub", "address")


def parse(text: str) -> Reference:
    """What a text names. Files and folders are looked for on the disk; names are not looked up.

    Raises:
        InputError: it reads as a place elsewhere, but none that there can be.
    """
    path = Path(text)
    if text == "starter" and not path.exists():
        return Reference("starter", text)
    if not text or "\0" in text:
        raise InputError(f"{text!r} is no reference", hint=HELP)
    if "://" in text and not text.startswith("hf://"):
        return _address(text)
    for prefix in _PREFIXES:
        if text.startswith(prefix) and not path.exists():
            return _hub(text.removeprefix(prefix), text)
    if path.is_dir():
        return Reference("folder", text)
    if path.is_file() or text.lower().endswith(".gguf"):
        return Reference("file", text)
    return Reference("name", text)


def hub_text(repo: str, file: str | None, quant: str | None, revision: str | None) -> str:
    """A place on the hub as it is kept."""
    where = f"{repo}/{file}" if file else f"{repo}:{quant}" if quant else repo
    return f"hf:{where}@{revision}" if revision else f"hf:{where}"


def _hub(place: str, text: str) -> Reference:
    found = _HUB.fullmatch(place.strip("/"))
    if found is None or ".." in place:
        raise InputError(f"{text!r} is no place on the hub", hint="hf:OWNER/REPO, with :QUANT or /FILE, and @REVISION")
    file = found["file"].removeprefix("/") if found["file"] else None
    quant = found["quant"]
    # Ollama's name for "whichever it is"
    quant = None if quant is not None and quant.lower() == "latest" else quant
    if file and quant:
        raise InputError(f"{text!r} names a file and a quantisation", hint="leave one of them out")
    return Reference(
        "hub", hub_text(found["repo"], file, quant, found["revision"]), found["repo"], file, quant, found["revision"]
    )


def _address(text: str) -> Reference:
    """An address: of a page of the hub, or of a pack.json on any server."""
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
    except ValueError as error:
        raise InputError(f"{text!r} is no address ({error})", hint=HELP) from None
    if parts.scheme not in ("http", "https") or not host:
        raise InputError(f"{text!r} is not an https address", hint=HELP)
    endpoint = hub_endpoint()
    if host in _HOSTS or text.startswith(f"{endpoint}/"):
        path = parts.path if host in _HOSTS else text.removeprefix(endpoint).partition("?")[0]
        return _page(unquote(path).strip("/"), text)
    if parts.username or parts.password:
        raise InputError(
            f"the address of {host} has a name and a password in it", hint="they would be kept; leave them out"
        )
    if parts.query or parts.fragment:
        raise InputError(f"the address of {host} has more than a path", hint="it would be kept; leave it out")
    if not parts.path.endswith(f"/{PACK_FILE}"):
        raise InputError(
            f"{text!r} is not the address of a pack",
            hint="a pack is fetched by its https://…/pack.json; a GGUF file: download it, then slm-edge run FILE.gguf",
        )
    return Reference("address", text)


def _page(path: str, text: str) -> Reference:
    """A page of a repository: itself, or of one of its files at a revision."""
    parts = path.split("/")
    if parts[0] in ("datasets", "spaces"):
        raise InputError(f"{text!r} is no model", hint=HELP)
    repo = "/".join(parts[:2])
    if len(parts) > 3 and parts[2] in _VIEWS:
        file = "/".join(parts[4:]) or None
        revision = None if parts[3] == "main" else parts[3]
        return _hub(f"{repo}{f'/{file}' if file else ''}{f'@{revision}' if revision else ''}", text)
    if len(parts) > 3 or (len(parts) == 3 and parts[2] not in _VIEWS):
        raise InputError(f"{text!r} is no page of a model or one of its files", hint=HELP)
    return _hub(repo, text)
