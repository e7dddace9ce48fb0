"""A checkpoint's tokenizer as GGUF keys.

    tokenizer = read_tokenizer(folder, n_vocab=49152, config=raw_config)
    tokenizer.keys["tokenizer.ggml.model"]        # "gpt2" (byte-level BPE) or "llama" (SentencePiece BPE)

Read from tokenizer.json, else from a SentencePiece tokenizer.model. Which pre-tokenizer llama.cpp must use is found
by `pretokenizer.py`, by trying.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...edge.errors import InputError, UnsupportedError
from ...edge.files.read import read_json
from ...edge.gguf.file import ValueType
from ..files.gguf_writer import Value, array, boolean, text, uint32
from .sentencepiece_model import SentencePieceModel
from .special_tokens import added_tokens, adds_by_default, special_ids

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE: Final = "▁"
_BYTE_TOKEN: Final = re.compile(r"<0x[0-9A-F]{2}>")
# llama.cpp treats such texts as control tokens, whatever the checkpoint says
_LOOKS_LIKE_CONTROL: Final = re.compile(r"<\|.+\|>")
# for tokens that no merge makes; llama.cpp merges the highest score first
_NEVER_MERGED_SCORE: Final = -1e9

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class ReadTokenizer:
    """What was read.

    Attributes:
        kind: llama.cpp's `tokenizer.ggml.model`.
        keys: all GGUF keys but `tokenizer.ggml.pre`.
        encode: the reference: Hugging Face's (or SentencePiece's) own token ids of a text, nothing added.
        parses_special: `encode` turns the texts of added tokens into those tokens.
        ignores_merges: a whole word that is a token is taken as it is.
        composes: the reference first composes the text to Unicode NFC, which llama.cpp does not.
        behind: a special token; the two are compared behind it, since the reference puts a space before a text that
            begins with none, and llama.cpp would do so behind each of them.
        spaced_once: the reference puts a space before a text unless one is there, llama.cpp always does: texts that
            begin with one are not compared.
        pattern: the expression that splits text into words, "" if there is none.
        tokens: texts as stored, one per id.
        added: texts of the added tokens.
    """

    kind: str
    keys: dict[str, Value]
    encode: Encode
    parses_special: bool
    ignores_merges: bool
    composes: bool
    tokens: list[str]
    added: list[str]
    behind: str = ""
    spaced_once: bool = False
    pattern: str = ""


def read_tokenizer(folder: Path, n_vocab: int, config: dict[str, Any]) -> ReadTokenizer:
    """Reads the tokenizer of a checkpoint.

    Args:
        n_vocab: rows of the embedding; ids without a token become `[PADi]`.
        config: config.json, for the special ids that the tokenizer's own files don't name.

    Raises:
        InputError: there is none, or it does not fit the embedding.
        UnsupportedError: a kind that llama.cpp has no exact counterpart for.
    """
    if (folder / "tokenizer.json").exists():
        read = _from_json(folder, n_vocab, config)
    elif (folder / "tokenizer.model").exists():
        read = _from_sentencepiece(folder, n_vocab, config)
    else:
        raise InputError(
            "there is no tokenizer.json and no tokenizer.model",
            where=folder,
            hint="save the tokenizer beside the model: AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER)",
        )
    missing = {f"<0x{byte:02X}>" for byte in range(256)} - set(read.tokens)
    if read.kind == "llama" and missing:
        # llama.cpp ends the process at the first such byte of a text.
        raise UnsupportedError(
            f"the tokenizer has no token for {len(missing)} of the 256 bytes, such as {min(missing)}",
            where=folder,
            hint="save it again from the original model: some releases of transformers save an empty vocabulary",
        )
    return read


def _types_of(part: Any) -> set[str]:
    """Every "type" inside a part of tokenizer.json."""
    return {step["type"] for step in _parts(part) if isinstance(step.get("type"), str)}


def _from_json(folder: Path, n_vocab: int, config: dict[str, Any]) -> ReadTokenizer:
    path = folder / "tokenizer.json"
    data = read_json(path)
    try:
        model = data["model"]
        vocab: dict[str, int] = model["vocab"]
        merges = [" ".join(_escaped(part) for part in _pair(merge)) for merge in model["merges"]]
    except (KeyError, TypeError, ValueError):
        kind = data.get("model", {}).get("type", "unknown") if isinstance(data, dict) else "unknown"
        raise UnsupportedError(f"a tokenizer of the kind {kind!r}; BPE is supported", where=path) from None
    steps = _types_of([data.get("pre_tokenizer"), data.get("decoder")])
    if "ByteLevel" in steps:
        kind = "gpt2"
    elif model.get("byte_fallback"):
        kind = "llama"
    else:
        raise UnsupportedError("a BPE that is neither byte-level nor falls back to bytes", where=path)
    added = added_tokens(folder, data)
    tokens, types = _table(folder, n_vocab, vocab, added, spaces=kind == "llama")
    keys: dict[str, Value] = {
        "tokenizer.ggml.model": text(kind),
        "tokenizer.ggml.tokens": array(ValueType.STRING, tokens),
    }
    if kind == "llama":
        scores = _scores(folder, tokens, merges)
        for index, token in enumerate(tokens):
            if types[index] == NORMAL and _BYTE_TOKEN.fullmatch(token):
                types[index] = BYTE
        unknown = model.get("unk_token")
        if unknown in vocab:
            types[vocab[unknown]] = UNKNOWN
        keys["tokenizer.ggml.scores"] = array(ValueType.FLOAT32, scores)
    keys["tokenizer.ggml.token_type"] = array(ValueType.INT32, types)
    if kind == "gpt2":
        keys["tokenizer.ggml.merges"] = array(ValueType.STRING, merges)
    else:
        keys["tokenizer.ggml.add_space_prefix"] = boolean(_adds_space(data))
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(path))
    # Left by a training script; transformers sets them anew with each call.
    reference.no_padding()
    reference.no_truncation()
    keys |= special_ids(
        folder, config, {token["content"]: token["id"] for token in added} | vocab, model.get("unk_token")
    )
    keys |= adds_by_default(
        folder, keys, lambda line: list(reference.encode(line).ids), has_processor=bool(data.get("post_processor"))
    )
    bos = keys.get("tokenizer.ggml.bos_token_id")
    return ReadTokenizer(
        kind=kind,
        keys=keys,
        encode=lambda line: list(reference.encode(line, add_special_tokens=False).ids),
        parses_special=True,
        ignores_merges=bool(model.get("ignore_merges")),
        composes="NFC" in _types_of(data.get("normalizer")),
        tokens=tokens,
        added=[token["content"] for token in added],
        behind=tokens[int(bos.value)] if bos is not None and _metaspace_scheme(data) == "first" else "",
        spaced_once=_metaspace_scheme(data) == "always",
        pattern=_pattern(data.get("pre_tokenizer")),
    )


def _from_sentencepiece(folder: Path, n_vocab: int, config: dict[str, Any]) -> ReadTokenizer:
    path = folder / "tokenizer.model"
    model = SentencePieceModel.open(path)
    added = [token for token in added_tokens(folder, {}) if token["id"] >= len(model.pieces)]
    vocab: dict[str, int] = {}
    for index, piece in enumerate(model.pieces):
        vocab.setdefault(piece.text, index)
    tokens, types = _table(folder, n_vocab, vocab, added, spaces=True)
    scores = [_NEVER_MERGED_SCORE] * n_vocab
    for index, piece in enumerate(model.pieces):
        tokens[index], types[index], scores[index] = piece.text, piece.type, piece.score
    keys: dict[str, Value] = {
        "tokenizer.ggml.model": text("llama"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, tokens),
        "tokenizer.ggml.scores": array(ValueType.FLOAT32, scores),
        "tokenizer.ggml.token_type": array(ValueType.INT32, types),
    }
    from sentencepiece import SentencePieceProcessor

    reference = SentencePieceProcessor(model_file=str(path))
    # SentencePiece puts its space before the whole text alone, llama.cpp would behind each of these pieces too.
    behind = next((piece.text for piece in model.pieces if piece.type == USER_DEFINED and model.add_space_prefix), "")
    keys["tokenizer.ggml.add_space_prefix"] = boolean(model.add_space_prefix and not behind)
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    own = {
        f"tokenizer.ggml.{name}_token_id": uint32(model.ids[short])
        for name, short in names.items()
        if 0 <= model.ids[short] < len(model.pieces)
    }
    keys |= own | special_ids(folder, config, {token["content"]: token["id"] for token in added} | vocab, None)
    keys |= adds_by_default(folder, keys, lambda line: list(reference.encode(line)), has_processor=False)
    return ReadTokenizer(
        kind="llama",
        keys=keys,
        encode=lambda line: list(reference.encode(line))[bool(behind) :],
        parses_special=False,
        ignores_merges=False,
        composes=False,
        tokens=tokens,
        added=[token["content"] for token in added],
        behind=behind,
    )


def _pair(merge: Any) -> list[str]:
    parts = merge if isinstance(merge, list) else merge.split(" ")
    if len(parts) != 2:
        raise ValueError("a merge has two parts")
    return [str(part) for part in parts]


def _escaped(part: str) -> str:
    # llama.cpp separates the two parts at a space; one inside a part is written as GPT-2's letter for the space byte.
    return part.replace(" ", "Ġ")


def _table(
    folder: Path, n_vocab: int, vocab: dict[str, int], added: list[dict[str, Any]], *, spaces: bool
) -> tuple[list[str], list[int]]:
    largest = max([*vocab.values(), *(token["id"] for token in added)], default=-1)
    if largest >= n_vocab:
        outside = [t for t, i in vocab.items() if i >= n_vocab] + [t["content"] for t in added if t["id"] >= n_vocab]
        raise InputError(
            f"the tokenizer has ids up to {largest}, the embedding only {n_vocab} rows",
            where=folder,
            problems=[f"no row for {token!r}" for token in outside[:10]],
            hint="resize the embedding before saving, or take the tokenizer that belongs to the model",
        )
    tokens = [f"[PAD{index}]" for index in range(n_vocab)]
    types = [UNUSED] * n_vocab
    for token, index in vocab.items():
        tokens[index], types[index] = token, NORMAL
    for entry in added:
        content = entry["content"]
        control = entry.get("special") or _LOOKS_LIKE_CONTROL.fullmatch(content)
        tokens[entry["id"]] = content if control or not spaces else content.replace(SPACE, " ")
        types[entry["id"]] = CONTROL if control else USER_DEFINED
    return tokens, types


def _scores(folder: Path, tokens: list[str], merges: list[str]) -> list[float]:
    """SentencePiece scores: of tokenizer.model where it is the same vocabulary, else the merges' order as scores.

    A merge listed earlier is done first; llama.cpp does first what scores higher.
    """
    path = folder / "tokenizer.model"
    if path.exists():
        pieces = SentencePieceModel.open(path).pieces
        if len(pieces) <= len(tokens) and all(
            piece.text == token for piece, token in zip(pieces, tokens, strict=False)
        ):
            own = [piece.score for piece in pieces]
            return own + [_NEVER_MERGED_SCORE] * (len(tokens) - len(own))
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [-float(ranks[token]) if token in ranks else _NEVER_MERGED_SCORE for token in tokens]


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """Every object inside a part of tokenizer.json."""
    if isinstance(part, dict):
        yield part
        part = list(part.values())
    if isinstance(part, list):
        for entry in part:
            yield from _parts(entry)


def _metaspace_scheme(data: dict[str, Any]) -> str | None:
    """Where Metaspace puts a space: "always" (before each part between special tokens), "first" (before the whole text
    alone) or "never"; None if there is no Metaspace."""
    steps = _parts([data.get("normalizer"), data.get("pre_tokenizer")])
    found = next((step for step in steps if step.get("type") == "Metaspace"), None)
    return None if found is None else str(found.get("prepend_scheme", "always"))


def _adds_space(data: dict[str, Any]) -> bool:
    """Whether a space is put before each text between special tokens, as llama.cpp does it."""
    steps = _parts([data.get("normalizer"), data.get("pre_tokenizer")])
    return _metaspace_scheme(data) == "always" or any(step.get("type") == "Prepend" for step in steps)


def _pattern(pre_tokenizer: Any) -> str:
    """The first regular expression by which text is split."""
    patterns = [step.get("pattern") for step in _parts(pre_tokenizer) if step.get("type") == "Split"]
    return next((str(found["Regex"]) for found in patterns if isinstance(found, dict) and "Regex" in found), "")
