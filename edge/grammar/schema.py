"""JSON schemas as llguidance is to get them: what no grammar is made of is refused with its path, never left out.

Everything is named that a schema may say; the rest is refused, as is what llguidance would not keep in full. What only
describes is dropped. Each `$ref` is looked up here and points at a definition of its own, so that nothing of a schema
depends on where it stood.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final
from urllib.parse import unquote

from ..errors import InputError
from .apart import all_apart, plain
from .patterns import FORMATS, PatternError, same_pattern

MAX_DEPTH: Final = 50
MAX_SCHEMAS: Final = 20_000
MAX_VALUES: Final = 100_000
MAX_PROBLEMS: Final = 20
# llguidance takes time in the square of it.
MAX_PROPERTIES: Final = 2000
# Of more schemas in a `oneOf` it is not looked which exclude each other.
MAX_APART: Final = 100
MAX_COUNT: Final = (1 << 31) - 1
# Numbers beyond are not all told apart by llguidance.
MAX_NUMBER: Final = 1 << 53
MAX_DECIMALS: Final = 15
TYPES: Final = ("null", "boolean", "number", "integer", "string", "array", "object")
DESCRIBE: Final = frozenset(
    {
        *("$schema", "$comment", "$anchor", "$dynamicAnchor", "$vocabulary", "title", "description", "default"),
        *("example", "examples", "deprecated", "readOnly", "writeOnly", "contentMediaType", "contentEncoding"),
        *("contentSchema", "discriminator", "externalDocs", "xml", "$defs", "definitions"),
    }
)
# One space, or one line break with an indent, wherever JSON allows white space; more of it would be an answer's end.
WHITE_SPACE: Final = r" |\n[ \t]{0,64}"
_OLD_DRAFTS: Final = ("draft-03", "draft-04", "draft-06", "draft-07")
# What a control character may be written as without \u.
_SHORT_ESCAPES: Final = frozenset("\b\f\n\r\t")
# Their cost is known to be small, so they need no trial.
_PLAIN_SCHEMAS, _PLAIN_REFS, _PLAIN_PROPERTIES, _PLAIN_VALUES = 300, 20, 200, 1000


@dataclass
class CheckedSchema:
    """A schema that says only what can be kept.

    Attributes:
        text: JSON for llguidance.
        parts: path and content of each schema in it, the inner ones later, each whole in itself: where llguidance
            refuses the schema, they tell which is at fault.
        plain: whether it is too simple to be a burden.
    """

    text: str
    parts: list[tuple[str, dict[str, Any]]]
    plain: bool


def checked_schema(schema: Mapping[str, Any] | bool) -> CheckedSchema:
    """The schema without what only describes.

    Raises:
        InputError: it is not valid, or says something that no grammar is made of; all such places are in `problems`.
    """
    walk = _Walk(schema)
    try:
        result = walk.run()
    except RecursionError:
        raise InputError("the JSON schema nests too deeply") from None
    if walk.problems:
        raise InputError(
            "the JSON schema says what no grammar is made of here",
            problems=walk.problems[:MAX_PROBLEMS],
            hint="leave it out and check the answer yourself",
        )
    return result


@dataclass
class _Walk:
    root: Any
    problems: list[str] = field(default_factory=list)
    n_schemas: int = 0
    n_values: int = 0
    n_properties: int = 0
    costly: bool = False
    # Additional names may be spelt \u0061 where that escape is allowed, and llguidance would not see an "a" in it.
    open_names: bool = False
    texts: list[tuple[str, str]] = field(default_factory=list)
    targets: dict[str, str] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    scopes: list[str] = field(default_factory=list)
    parts: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    old_draft: bool = False

    def run(self) -> CheckedSchema:
        if isinstance(self.root, Mapping):
            draft = self.root.get("$schema", "")
            self.old_draft = isinstance(draft, str) and any(name in draft for name in _OLD_DRAFTS)
        out = self.schema(self.root, "", 0)
        definitions = {}
        while self.waiting:
            pointer = self.waiting.pop()
            definitions[self.targets[pointer]] = self.schema(self._at(pointer), pointer, 0)
        by_ref = {f"#/$defs/{name}": content for name, content in definitions.items()}
        for node in (node for _, node in self.parts if "oneOf" in node):
            if len(node["oneOf"]) <= MAX_APART and all_apart(node["oneOf"], by_ref):
                _also(node, "anyOf", node.pop("oneOf"))
        if self.targets:
            self.problems += [f"{path}: an $id within a schema that has $ref" for path in dict.fromkeys(self.scopes)]
        if self.open_names:
            for path, text in self.texts:
                if any(letter < " " or letter == "\x7f" for letter in text if letter not in _SHORT_ESCAPES):
                    self.problems.append(f"{path}: a control character, beside names that are left open")
        if out is False:
            self.problems.append("/: false allows no answer")
        guidance = {
            "whitespace_pattern": WHITE_SPACE,
            "json_allowed_escapes": 'nrbtf\\"' + ("" if self.open_names else "u"),
            "json_allow_general_unicode_escapes": not self.open_names,
        }
        shared = {"x-guidance": guidance} | ({"$defs": definitions} if definitions else {})
        whole = shared | (out if isinstance(out, dict) else {})
        plain = (
            not self.costly
            and self.n_schemas <= _PLAIN_SCHEMAS
            and self.n_properties <= _PLAIN_PROPERTIES
            and self.n_values <= _PLAIN_VALUES
            and len(self.targets) <= _PLAIN_REFS
        )
        return CheckedSchema(json.dumps(whole), [(path, shared | part) for path, part in self.parts], plain)

    def schema(self, node: Any, path: str, depth: int) -> Any:
        """The schema at a path without what only describes; problems are noted."""
        if isinstance(node, bool):
            return node
        if not isinstance(node, Mapping):
            return self._fail(path, "a schema is an object, true or false")
        self.n_schemas += 1
        if depth > MAX_DEPTH or self.n_schemas > MAX_SCHEMAS:
            raise InputError(
                f"the JSON schema is too large: more than {MAX_DEPTH} levels or {MAX_SCHEMAS} schemas",
                where=path or None,
            )
        out: dict[str, Any] = {}
        self.parts.append((path or "/", out))
        for key, value in node.items():
            at = f"{path}/{_step(key)}"
            if key in DESCRIBE or (isinstance(key, str) and key.startswith("x-")):
                continue
            if key in ("$id", "id"):
                if depth and isinstance(value, str) and not value.startswith("#"):
                    self.scopes.append(at)
                continue
            keep = _KEEP.get(key)
            if key == "format" and not any(kind in ("string", None) for kind in _kinds_of(node)):
                continue
            if keep is None:
                self._fail(at, "not possible here")
                continue
            keep(self, out, key, value, at, depth)
        if isinstance(node.get("items"), list):
            self._tuple(node, out, path, depth)
        self._names(node, out, path)
        if self.old_draft and "$ref" in out and len(out) > 1:
            self._fail(f"{path}/$ref", "in that draft nothing counts beside it; say it in an allOf")
        return out

    def _fail(self, path: str, reason: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"{path or '/'}: {reason}")

    def _names(self, node: Mapping[str, Any], out: dict[str, Any], path: str) -> None:
        """Whether an object's names are left open beside some that have their own rules."""
        own = [*out.get("properties", ()), *out.get("required", ())]
        if out.get("patternProperties") or (own and out.get("additionalProperties", True) is not False):
            self.open_names = True
        self.texts += [(f"{path}/properties/{_step(name)}", name) for name in own]
        least = out.get("minProperties", 0)
        if least <= len(set(out.get("required", ()))):
            out.pop("minProperties", None)
        elif least > 1:
            # One name may be written twice, and counts once.
            self._fail(f"{path}/minProperties", "more than 1 and more than what is required")

    def _tuple(self, node: Mapping[str, Any], out: dict[str, Any], path: str, depth: int) -> None:
        """`items` as a list with `additionalItems`, as older drafts have it."""
        out["prefixItems"] = [self.schema(item, f"{path}/items/{i}", depth + 1) for i, item in enumerate(node["items"])]
        if "additionalItems" in node:
            out["items"] = self.schema(node["additionalItems"], f"{path}/additionalItems", depth + 1)

    def _at(self, pointer: str) -> Any:
        """What a pointer points at, which was looked up before."""
        node = self.root
        for step in pointer.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            node = node[int(name)] if isinstance(node, list) else node[name]
        return node

    def ref(self, out: dict[str, Any], key: str, value: Any, at: str, depth: int) -> None:
        if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
            return self._fail(at, "only what stands in the schema itself can be named, as #/...")
        pointer = unquote(value[1:])
        if pointer not in self.targets:
            try:
                target = self._at(pointer)
            except (KeyError, IndexError, ValueError, TypeError):
                return self._fail(at, f"{value} points at nothing")
            if not isinstance(target, Mapping | bool):
                return self._fail(at, f"{value} is no schema")
            self.targets[pointer] = f"r{len(self.targets)}"
            self.waiting.append(pointer)
        out[key] = f"#/$defs/{self.targets[pointer]}"
        return None

    def one(self, out: dict[str, Any], key: str, value: Any, at: str, depth: int) -> None:
        if not isinstance(value, list):
            out[key] = self.schema(value, at, depth + 1)

    def several(self, out: dict[str, Any], key: str, value: Any, at: str, depth: int) -> None:
        if not isinstance(value, list) or not value:
            return self._fail(at, "a list of schemas")
        self.costly |= key == "allOf" or len(value) > _PLAIN_REFS
        schemas = [self.schema(item, f"{at}/{i}", depth + 1) for i, item in enumerate(value)]
        out[key] = [*out.get(key, ()), *schemas]
        return None

    def named(self, out: dict[str, Any], key: str, value: Any, at: str, depth: int) -> None:
        if not isinstance(value, Mapping):
            return self._fail(at, "schemas by name")
        self.n_properties += len(value)
        if len(value) > MAX_PROPERTIES or self.n_properties > MAX_SCHEMAS:
            raise InputError(f"the JSON schema has more than {MAX_PROPERTIES} properties", where=at)
        out[key] = {}
        for name, item in value.items():
            place, spelt = f"{at}/{_step(name)}", str(name)
            if key == "patternProperties":
                self.costly = True
                spelt = self._pattern(spelt, place)
            out[key][spelt] = self.schema(item, place, depth + 1)
        return None

    def kinds(self, out: dict[str, Any], key: str, value: Any, at: str, depth: int) -> None:
        kinds = value if isinstance(value, list) else [value]
        if not kinds or any(kind not in TYPES for kind in kinds):
            return self._fail(at, f"{json.dumps(value)[:60]} is no type; types are {', '.join(TYPES)}")
        out[key] = value
        return None

    def required(self, out: dict[str, Any], key: str, value: Any, at: str, depth: int) -> None:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            return self._fail(at, "a list of names")
        self.n_properties += len(value)
        if len(value) > MAX_PROPERTIES:
            raise InputError(f"the JSON schema requires more than {MAX_PROPERTIES} properties", where=at)
        out[key] = list(dict.fromkeys(value))
        return None

    def values(self, out: dict[str, Any], key: str, value: Any, at: str, depth: int) -> None:
        if key == "enum" and (not isinstance(value, list) or not value):
            return self._fail(at, "a list of values")
        self._value(value, at, 0)
        # Whole numbers are written as such.
        out[key] = plain(value)
        return None

    def _value(self, value: Any, at: str, depth: int) -> None:
        self.n_values += 1
        if depth > MAX_DEPTH or self.n_values > MAX_VALUES:
            raise InputError(f"the JSON schema lists values of more than {MAX_DEPTH} levels or too many", where=at)
        if isinstance(value, list):
            for i, item in enumerate(value):
                self._value(item, f"{at}/{i}", depth + 1)
        elif isinstance(value, Mapping):
            for name, item in value.items():
                self.texts.append((at, str(name)))
                self._value(item, f"{at}/{_step(name)}", depth + 1)
        elif isinstance(value, str):
            self.texts.append((at, value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            self._number(value, at)
        elif value is not None and not isinstance(value, bool):
            self._fail(at, "no JSON value")

    def _number(self, value: float, at: str) -> bool:
        if not abs(value) <= MAX_NUMBER:
            self._fail(at, f"only numbers up to {MAX_NUMBER} can be kept")
            return False
        exponent = Decimal(repr(value)).normalize().as_tuple().exponent
        if isinstance(exponent, int) and exponent < -MAX_DECIMALS:
            self._fail(at, f"only numbers of up to {MAX_DECIMALS} decimals can be kept")
            return False
        return True

    def bound(self, out: dict[str, Any], key: str, value: Any, at: str, depth: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return self._fail(at, "a number")
        if self._number(value, at):
            out[key] = value
        return None

    def count(self, out: dict[str, Any], key: str, value: Any, at: str, depth: int) -> None:
        whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
        if not whole or not 0 <= value <= MAX_COUNT:
            return self._fail(at, f"a whole number from 0 to {MAX_COUNT}")
        out[key] = int(value)
        return None

    def pattern(self, out: dict[str, Any], key: str, value: Any, at: str, depth: int) -> None:
        if not isinstance(value, str):
            return self._fail(at, "a text")
        self.costly = True
        _also(out, "pattern", self._pattern(value, at))
        return None

    def _pattern(self, pattern: str, at: str) -> str:
        try:
            return same_pattern(pattern)
        except PatternError as error:
            self._fail(at, str(error))
            return pattern

    def format(self, out: dict[str, Any], key: str, value: Any, at: str, depth: int) -> None:
        if not isinstance(value, str) or value not in FORMATS:
            return self._fail(at, f"{json.dumps(value)[:60]} is not possible; formats are {', '.join(FORMATS)}")
        ours = FORMATS[value]
        _also(out, "format" if ours is None else "pattern", ours or value)
        return None

    def not_unique(self, out: dict[str, Any], key: str, value: Any, at: str, depth: int) -> None:
        if value is not False:
            self._fail(at, "not possible here")

    def nothing(self, out: dict[str, Any], key: str, value: Any, at: str, depth: int) -> None:
        """Looked at with another keyword."""


_Keep = Callable[[_Walk, dict[str, Any], str, Any, str, int], None]
_KEEP: Final[dict[str, _Keep]] = {
    "$ref": _Walk.ref,
    "type": _Walk.kinds,
    "required": _Walk.required,
    "pattern": _Walk.pattern,
    "format": _Walk.format,
    "uniqueItems": _Walk.not_unique,
    "additionalItems": _Walk.nothing,
    **dict.fromkeys(("items", "additionalProperties"), _Walk.one),
    **dict.fromkeys(("prefixItems", "anyOf", "allOf", "oneOf"), _Walk.several),
    **dict.fromkeys(("properties", "patternProperties"), _Walk.named),
    **dict.fromkeys(("const", "enum"), _Walk.values),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _Walk.bound),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _Walk.count),
}


def _also(out: dict[str, Any], key: str, value: Any) -> None:
    """Says one more thing under a keyword that may be there already."""
    if key in out:
        out.setdefault("allOf", []).append({key: value})
    else:
        out[key] = value


def _kinds_of(node: Mapping[str, Any]) -> list[Any]:
    """The types that a schema names; None where it names none."""
    kinds = node.get("type")
    return [kind for kind in kinds if isinstance(kind, str)] if isinstance(kinds, list) else [kinds]


def _step(name: Any) -> str:
    """A name as a step of a JSON pointer, short enough for a message."""
    return str(name)[:80].replace("~", "~0").replace("/", "~1")
