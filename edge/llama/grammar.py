"""Answers that keep to a grammar: GBNF texts, and JSON schemas turned into them, checked before they are used.

    grammar = schema_grammar({"type": "object", "properties": {"legs": {"type": "integer"}}})
    session.ask("How many legs has a cat?", grammar=grammar).text       # {"legs": 4}

llama.cpp's grammar engine does the work in C. It ends the process when a token is accepted that the grammar does not
allow, so every token is tried before it is accepted.
"""

import contextlib
import ctypes
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import EngineError, InputError
from .binding import NotCopied, lib, quiet_logs
from .vocab import Vocab

MAX_GRAMMAR_BYTES: Final = 1 << 20
# Constraints that the converter would leave out without a word.
NOT_KEPT: Final = frozenset(
    {
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "uniqueItems", "contains"),
        *("minProperties", "maxProperties", "patternProperties", "propertyNames", "not", "if", "then", "else"),
        *("dependentRequired", "dependentSchemas", "unevaluatedProperties", "unevaluatedItems"),
    }
)


class Grammar(NotCopied):
    """The state of a grammar while one answer is made.

    Args:
        text: GBNF with the rule `root`.
        vocab: of the model that answers.

    Raises:
        InputError: the text is no grammar; llama.cpp's own words are in `problems`.
    """

    def __init__(self, text: str, vocab: Vocab) -> None:
        llama = lib()
        self._llama = llama
        self._vocab = vocab
        encoded = text.encode("utf-8", "surrogatepass")
        if not text.strip() or b"\0" in encoded or len(encoded) > MAX_GRAMMAR_BYTES:
            raise InputError("the grammar is empty, too large or holds a NUL character")
        with _stderr() as said, quiet_logs() as log:
            self._sampler: Any = llama.llama_sampler_init_grammar(vocab.handle, encoded, b"root")
        if not self._sampler:
            said_lines = [line.strip() for line in said if line.strip()]
            words = [*said_lines[:1], *(line for line in log.errors() if "failed to parse" not in line)]
            raise InputError("the grammar is not valid GBNF", problems=words, hint="it needs a rule named root")

    def allows(self, token_id: int) -> bool:
        """Whether the answer may go on with this token, or end with it."""
        row = np.zeros(1, [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        row["id"] = token_id
        self._apply(row)
        return bool(np.isfinite(row["logit"][0]))

    def mask(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The logits, shape (n_vocab,), with minus infinity for what the grammar does not allow.

        Raises:
            EngineError: nothing in the vocabulary is allowed.
        """
        rows = np.zeros(len(logits), [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        rows["id"], rows["logit"] = np.arange(len(logits)), logits
        self._apply(rows)
        masked: npt.NDArray[np.float32] = rows["logit"].copy()
        if not np.isfinite(masked).any():
            raise EngineError(
                "no token of the vocabulary continues the grammar", hint="change the grammar or the schema"
            )
        return masked

    def accept(self, token_id: int) -> None:
        """Goes on with a token that `allows`."""
        self._vocab.check()
        self._llama.llama_sampler_accept(self._sampler, token_id)

    def _apply(self, rows: npt.NDArray[Any]) -> None:
        llama = self._llama
        self._vocab.check()
        first = ctypes.cast(rows.ctypes.data, llama.llama_token_data_p)
        array = llama.llama_token_data_array(data=first, size=len(rows), selected=-1, sorted=False)
        llama.llama_sampler_apply(self._sampler, ctypes.byref(array))

    def close(self) -> None:
        """Frees it. Calling it twice does nothing."""
        if self._sampler:
            sampler, self._sampler = self._sampler, None
            self._llama.llama_sampler_free(sampler)


def schema_grammar(schema: Mapping[str, Any]) -> str:
    """GBNF for the JSON texts that a schema allows; llama-cpp-python's converter makes it.

    Raises:
        InputError: the schema is not valid, or says something that the converter cannot do.
    """
    if lost := sorted(_not_kept(schema)):
        raise InputError(
            f"the JSON schema says {', '.join(lost)}, which no grammar is made of here",
            hint="leave it out and check the answer yourself",
        )
    try:
        return str(_converter().json_schema_to_gbnf(json.dumps(schema)))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"the JSON schema cannot be used: {reason}") from None


def _not_kept(schema: Any) -> set[str]:
    """Keywords of `NOT_KEPT` in a schema and those inside it; names of properties are no keywords."""
    if isinstance(schema, list):
        return set().union(*map(_not_kept, schema))
    if not isinstance(schema, dict):
        return set()
    found = NOT_KEPT & schema.keys()
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions") and isinstance(value, dict):
            found |= set().union(*map(_not_kept, value.values()))
        elif key not in ("const", "enum", "default", "examples"):
            found |= _not_kept(value)
    return set(found)


def read_schema(path: str | os.PathLike[str]) -> str:
    """The grammar of a file with a JSON schema; raises as `schema_grammar`, and InputError if it is no JSON."""
    try:
        schema = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not valid JSON ({error})", where=path) from None
    if not isinstance(schema, dict):
        raise InputError("a JSON schema is an object", where=path)
    try:
        return schema_grammar(schema)
    except InputError as error:
        raise InputError(error.message, where=path, hint=error.hint) from None


def read_grammar(path: str | os.PathLike[str]) -> str:
    """The text of a GBNF file; InputError if it cannot be read."""
    return _text(path)


def _text(path: str | os.PathLike[str]) -> str:
    path = Path(path)
    try:
        if path.stat().st_size > MAX_GRAMMAR_BYTES:
            raise InputError("is too large for a grammar or schema", where=path)
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path) from None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", where=path) from None


def _converter() -> ModuleType:
    """llama_cpp/llama_grammar.py by itself: the package around it imports far more than is needed."""
    name = "slm_edge._llama_grammar"
    if name not in sys.modules:
        package = importlib.util.find_spec("llama_cpp")
        if package is None or not package.submodule_search_locations:
            raise EngineError("llama-cpp-python is not installed")
        file = Path(next(iter(package.submodule_search_locations))) / "llama_grammar.py"
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise EngineError("llama-cpp-python has no JSON schema converter", where=file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


@contextlib.contextmanager
def _stderr() -> Iterator[list[str]]:
    """What C code prints to stderr meanwhile: the parser writes its reason there and nowhere else."""
    lines: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as aside:
            os.dup2(aside.fileno(), 2)
            try:
                yield lines
            finally:
                os.dup2(kept, 2)
                aside.seek(0)
                lines += aside.read().decode("utf-8", "replace").splitlines()
    finally:
        os.close(kept)
