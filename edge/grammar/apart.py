"""Whether no value keeps to two schemas at once; `oneOf` of such schemas is `anyOf`, which a grammar can do.

llguidance looks at this itself, but not through `$ref`, as in the unions that data classes are written as.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

MAX_DEPTH: Final = 6
_ALL: Final = frozenset({"null", "boolean", "number", "string", "array", "object"})


def all_apart(schemas: list[Any], definitions: Mapping[str, Any]) -> bool:
    """Whether it is sure that no two of these share a value.

    Args:
        definitions: by the `$ref` that names them.
    """
    return all(_apart(one, other, definitions, 0) for i, one in enumerate(schemas) for other in schemas[i + 1 :])


def _apart(one: Any, other: Any, definitions: Mapping[str, Any], depth: int) -> bool:
    if depth > MAX_DEPTH:
        return False
    if one is False or other is False:
        return True
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return False
    for first, second in ((one, other), (other, one)):
        # Whatever else it says: it keeps to these as well.
        if "$ref" in first and _apart(definitions.get(first["$ref"]), second, definitions, depth + 1):
            return True
        if any(_apart(part, second, definitions, depth + 1) for part in first.get("allOf", ())):
            return True
        for several in ("anyOf", "oneOf"):
            if several in first and all(_apart(part, second, definitions, depth + 1) for part in first[several]):
                return True
    if not _kinds(one) & _kinds(other):
        return True
    values, others = _values(one), _values(other)
    if values is not None and others is not None and not values & others:
        return True
    if _kinds(one) != {"object"} or _kinds(other) != {"object"}:
        return False
    named, also = one.get("properties", {}), other.get("properties", {})
    required = {*one.get("required", ()), *other.get("required", ())} & named.keys() & also.keys()
    return any(_apart(named[name], also[name], definitions, depth + 1) for name in required)


def _kinds(schema: Mapping[str, Any]) -> frozenset[str]:
    """The types that a value may have; whole numbers are numbers."""
    kinds = schema.get("type", _ALL)
    kinds = frozenset([kinds]) if isinstance(kinds, str) else frozenset(kinds)
    if "integer" in kinds:
        kinds = kinds - {"integer"} | {"number"}
    if (values := _listed(schema)) is not None:
        kinds &= {_kind(value) for value in values}
    return kinds


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    for kind, name in ((str, "string"), (int | float, "number"), (list, "array"), (Mapping, "object")):
        if isinstance(value, kind):
            return name
    return "null"


def _listed(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    found: list[Any] | None = schema.get("enum")
    return found


def _values(schema: Mapping[str, Any]) -> set[str] | None:
    """The values that are listed, such that equal ones are equal texts; None where none are."""
    listed = _listed(schema)
    return None if listed is None else {json.dumps(plain(value), sort_keys=True) for value in listed}


def plain(value: Any) -> Any:
    """The same value, with 1.0 as 1."""
    if isinstance(value, float) and value == value // 1:
        return int(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return value
