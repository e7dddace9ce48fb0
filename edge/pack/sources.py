"""Where a pack's base can be had: a PyPI wheel, a file on a hub, an address or a path.

parse_source("hub:Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q4_k_m.gguf")
"""

from pathlib import Path
from typing import Any, Final

from ..errors import InputError

# What each kind of source must and may say.
SOURCE_KEYS: Final[dict[str, tuple[set[str], set[str]]]] = {
    "pypi-wheel": ({"package", "version", "member"}, set()),
    "hub": ({"repo", "file"}, {"revision"}),
    "url": ({"url"}, set()),
    "path": ({"path"}, set()),
}


def check_source(source: Any) -> list[str]:
    """What is wrong with one source of a base."""
    kind = source.get("kind") if isinstance(source, dict) else None
    if not isinstance(kind, str) or kind not in SOURCE_KEYS:
        return [f"a source is of the kind {kind!r}; {', '.join(SOURCE_KEYS)} are known"]
    faults: list[str] = []
    required, optional = SOURCE_KEYS[kind]
    has_keys(source, f"the {kind} source", required | {"kind"}, faults, optional)
    for key, value in source.items():
        # A text that begins with "-" would be an option on pip's command line.
        if not isinstance(value, str) or not value or value.startswith("-") or "\0" in value:
            faults.append(f"the {kind} source's {key} is {value!r}")
    if kind == "url" and not str(source.get("url")).startswith(("https://", "http://")):
        faults.append(f"{source.get('url')!r} is not an http address")
    return faults


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
        source = {"kind": "path", "path": str(Path(rest).expanduser().absolute())}
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
