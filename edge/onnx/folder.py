"""The ONNX form of a base: a folder with two graphs over one data file, its tokenizer, and what is known of them.

    base = OnnxBase.open("onnx-folder")
    base.lora[0].a                  # "model.layers.0.self_attn.q_proj.lora_A.weight"

What lies in it:

    slm_edge_onnx.json   this description, with the sha256 of the other files
    model.onnx           the graph with LoRA pairs as optional inputs
    base.onnx            the same without them
    model.onnx.data      the weights of both
    tokenizer.gguf       keys, vocabulary and chat template of the GGUF base, without its tensors
    genai_config.json, config.json and a tokenizer for other runtimes

Nothing in the description is believed: files are plain names, sizes and hashes are compared, numbers have bounds.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

from ..errors import DamagedError, InputError, UnsupportedError
from ..files.read import read_json, sha256_file
from ..gguf.base import BaseInfo
from ..gguf.base_keys import check_tokenizer
from ..gguf.file import GgufFile

SCHEMA: Final = 1
ONNX_FILE: Final = "slm_edge_onnx.json"
MODEL_FILE: Final = "model.onnx"
BASE_FILE: Final = "base.onnx"
DATA_FILE: Final = "model.onnx.data"
TOKENIZER_FILE: Final = "tokenizer.gguf"
NEEDED_FILES: Final = (MODEL_FILE, BASE_FILE, DATA_FILE, TOKENIZER_FILE)
FIRST_LOGIT: Final = "first_logit"
_HINT: Final = "make it again: slm-edge export onnx"


@dataclass(frozen=True)
class LoraInput:
    """One pair of LoRA inputs of the graph.

    Attributes:
        a, b: names of the inputs, (n_in, rank) and (rank, n_out); b holds PEFT's scale.
        targets: the GGUF tensors whose outputs lie side by side, `widths` wide.
    """

    a: str
    b: str
    n_in: int
    widths: tuple[int, ...]
    targets: tuple[str, ...]

    @property
    def n_out(self) -> int:
        return sum(self.widths)


@dataclass(frozen=True)
class StatedBase(BaseInfo):
    """A base that is not here as a GGUF: enough of it to check GGUF adapters against.

    Attributes:
        stated_fingerprint: what `BaseInfo.fingerprint` was of the GGUF.
    """

    stated_fingerprint: str

    @cached_property
    def fingerprint(self) -> str:
        return self.stated_fingerprint


@dataclass(frozen=True)
class OnnxBase:
    """An open folder.

    Attributes:
        fingerprint: of the base it was made from (`BaseInfo.fingerprint`); its adapters carry the same.
        dtype: of inputs, outputs and adapters: "f32" or "f16".
        weights: type -> number of matrices that are held so.
        packed: q, k, v and gate, up have one LoRA pair each.
        max_length_tokens: the longest prompt and answer.
        tokenizer: tokenizer.gguf, opened.
        source_sha256: of the GGUF that it was made from; None when it came from a checkpoint.
        files: name -> sha256.
    """

    folder: Path
    fingerprint: str
    name: str
    architecture: str
    dtype: str
    packed: bool
    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    n_ff: int
    n_vocab: int
    max_length_tokens: int
    weights: Mapping[str, int]
    lora: tuple[LoraInput, ...]
    files: Mapping[str, str]
    source_sha256: str | None
    tokenizer: GgufFile

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, verify: bool = False) -> Self:
        """Opens a folder that `slm-edge export onnx` made.

        Args:
            verify: hash the weights too; the graphs and the tokenizer always are.

        Raises:
            InputError: it is no such folder, or its description is not valid; all faults are named.
            UnsupportedError: it was written by a version that this one cannot read.
            DamagedError: files are missing or not as they were written.
        """
        folder = Path(folder)
        if not (folder / ONNX_FILE).is_file():
            reason = f"holds no {ONNX_FILE}" if folder.is_dir() else "no such folder"
            raise InputError(reason, where=folder, hint="slm-edge export onnx makes such a folder")
        data = read_json(folder / ONNX_FILE)
        values = _checked(data, folder / ONNX_FILE)
        problems = []
        for name, row in data["files"].items():
            path = folder / name
            if path.is_symlink() or not path.is_file():
                problems.append(f"{name}: missing, or a link")
            elif path.stat().st_size != row["size_bytes"]:
                problems.append(f"{name}: has {path.stat().st_size} bytes, not {row['size_bytes']}")
            elif (verify or name != DATA_FILE) and sha256_file(path) != row["sha256"]:
                problems.append(f"{name}: changed")
        if problems:
            raise DamagedError("is not as it was exported", where=folder, problems=problems, hint=_HINT)
        tokenizer = GgufFile.open(folder / TOKENIZER_FILE)
        faults: list[str] = []
        # Its hash stands in the same folder, and llama.cpp aborts on some vocabularies.
        check_tokenizer(tokenizer, faults)
        if faults:
            raise InputError("is no tokenizer that can be used", where=tokenizer.path, problems=faults, hint=_HINT)
        return cls(folder=folder, tokenizer=tokenizer, **values)

    @property
    def version_number(self) -> int:
        """The fingerprint's first 28 bits: ONNX adapter files have room for a number only."""
        return int(self.fingerprint[:7], 16)

    @property
    def n_pairs(self) -> int:
        return len(self.lora)

    def stated(self) -> StatedBase:
        """The base as `check_adapter` and the exporter of adapters want it; its tensors are those that take LoRA."""
        shapes: dict[str, tuple[int, ...]] = {
            target: (pair.n_in, width)
            for pair in self.lora
            for target, width in zip(pair.targets, pair.widths, strict=True)
        }
        return StatedBase(
            file=self.tokenizer,
            architecture=self.architecture,
            name=self.name,
            n_layers=self.n_layers,
            n_embd=self.n_embd,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            n_ff=self.n_ff,
            n_vocab=self.n_vocab,
            n_ctx_train_tokens=self.max_length_tokens,
            has_output=False,
            tensor_shapes=shapes,
            stated_fingerprint=self.fingerprint,
        )


_NUMBERS: Final = ("n_layers", "n_embd", "n_heads", "n_kv_heads", "head_size", "n_ff", "n_vocab", "max_length_tokens")
_TEXTS: Final = ("fingerprint", "name", "architecture", "dtype")


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and all(letter in "0123456789abcdef" for letter in value)


def _is_count(value: Any, most: int = 1 << 28) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _checked(data: Any, where: Path) -> dict[str, Any]:
    """The description's values; raises what is wrong with it, all at once."""
    if not isinstance(data, dict) or "schema" not in data:
        raise InputError("is not the description of an ONNX base", where=where)
    if data["schema"] != SCHEMA or isinstance(data["schema"], bool):
        raise UnsupportedError(f"has the schema version {data['schema']!r}; this slm-edge reads {SCHEMA}", where=where)
    faults = [f"{key} is {data.get(key)!r}, no count" for key in _NUMBERS if not _is_count(data.get(key))]
    faults += [f"{key} is not a text" for key in _TEXTS if not isinstance(data.get(key), str)]
    if not _is_hash(data.get("fingerprint")):
        faults.append("the fingerprint is not a sha256")
    if data.get("dtype") not in ("f32", "f16"):
        faults.append(f"dtype is {data.get('dtype')!r}, neither f32 nor f16")
    if not isinstance(data.get("packed"), bool):
        faults.append("packed is neither true nor false")
    weights, source = data.get("weights"), data.get("source_sha256")
    if not isinstance(weights, dict) or not all(_is_count(count) for count in weights.values()):
        faults.append("weights is not a table of counts")
    if source is not None and not _is_hash(source):
        faults.append("source_sha256 is not a sha256")
    files = data.get("files")
    if not isinstance(files, dict):
        raise InputError("is not valid", where=where, problems=[*faults, "files is not a table"])
    for name, row in files.items():
        plain = Path(name).name == name and name not in ("", ".", "..", ONNX_FILE) and "\\" not in name
        if not plain or not isinstance(row, dict) or not _is_hash(row.get("sha256")):
            faults.append(f"files: {name!r} is not a plain name with a sha256")
        elif not _is_count(row.get("size_bytes"), 1 << 50):
            faults.append(f"files: {name!r} has no size")
    faults += [f"files: {name} is not among them" for name in NEEDED_FILES if name not in files]
    lora = data.get("lora")
    pairs = [_pair(row, faults) for row in lora] if isinstance(lora, list) and lora else []
    if not pairs:
        faults.append("lora is not a list of pairs")
    names = [name for pair in pairs if pair for name in (pair.a, pair.b)]
    if len(set(names)) < len(names):
        faults.append("lora: two pairs have the same names")
    if faults:
        raise InputError("is not valid", where=where, problems=faults, hint=_HINT)
    values = {key: data[key] for key in (*_NUMBERS, *_TEXTS, "packed", "weights", "source_sha256")}
    hashes = {name: row["sha256"] for name, row in files.items()}
    return values | {"lora": tuple(pair for pair in pairs if pair), "files": hashes}


def _pair(row: Any, faults: list[str]) -> LoraInput | None:
    values = row if isinstance(row, dict) else {}
    a, b, n_in, widths, targets = (values.get(key) for key in ("a", "b", "n_in", "widths", "targets"))
    if (
        isinstance(a, str)
        and isinstance(b, str)
        and _is_count(n_in)
        and isinstance(widths, list)
        and isinstance(targets, list)
        and len(widths) == len(targets) > 0
        and all(map(_is_count, widths))
        and all(isinstance(target, str) for target in targets)
    ):
        return LoraInput(a, b, int(values["n_in"]), tuple(widths), tuple(targets))
    faults.append(f"lora: a row is not valid: {str(row)[:100]}")
    return None
