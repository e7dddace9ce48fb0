"""A checkpoint, or another GGUF, to one GGUF base file.

    result = export_base(Path("Llama-3.2-1B-Instruct"), Path("base.gguf"), TYPES["q4_k_m"])

The result is written aside and renamed; a float file that llama.cpp's quantiser needs lives in the same temporary
folder, so nothing of either is left behind by an error, Ctrl-C or SIGTERM.
"""

import datetime
import math
import os
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from ...edge.console import progress
from ...edge.errors import InputError
from ...edge.files.aside import require_room
from ...edge.files.atomic import atomic_file, check_new
from ...edge.files.read import open_regular
from ...edge.gguf.chat_template import ChatTemplate
from ...edge.gguf.file import GgufFile
from ...edge.gguf.types import GgmlType
from ...edge.llama.vocab import Vocab
from ..checkpoint.chat_template import KEY as CHAT_TEMPLATE_KEY
from ..checkpoint.chat_template import chat_template_keys, sampling_keys, template_notes, with_date
from ..checkpoint.checkpoint import Checkpoint
from ..files.gguf_writer import NewTensor, Value, file_size_bytes, text, uint32, write_gguf
from ..tokenizer.pretokenizer import Found, find_pretokenizer
from ..tokenizer.special_tokens import end_ids
from ..tokenizer.tokenizer import ReadTokenizer, read_tokenizer
from .gguf_source import GgufSource
from .imatrix import check_imatrix, read_imatrix
from .quantize import QuantType, find_type, quantize

QUANTIZATION_VERSION: Final = 2
# what llama.cpp's quantiser is given: the type that holds the checkpoint's own numbers exactly
_FLOAT_NAMES: Final = {GgmlType.F32: "f32", GgmlType.F16: "f16", GgmlType.BF16: "bf16"}
_LICENCE: Final = re.compile(r"^license:\s*([^\s#]+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Options:
    """What the user chose.

    Attributes:
        output_weight: a tied head becomes a tensor of its own, as adapters on the embedding or the head need it.
        chat_template: a jinja file instead of the checkpoint's own.
        date: the day that the chat template writes in place of today.
        pre_tokenizer: llama.cpp's name, instead of the one found by trying.
        allow_requantize: take a GGUF that is already quantised below 8 bits.
        force: replace an existing file.
    """

    output_weight: bool = False
    chat_template: Path | None = None
    date: datetime.date | None = None
    pre_tokenizer: str | None = None
    imatrix: Path | None = None
    name: str | None = None
    threads: int | None = None
    allow_requantize: bool = False
    force: bool = False


@dataclass
class Result:
    """What was made.

    Attributes:
        types: ggml type -> how many tensors have it.
        intermediate: type of the float file between, None if there was none.
        pre_tokenizer: llama.cpp's name; None for SentencePiece tokenizers and for a GGUF source.
        n_texts_compared: texts on which llama.cpp's token ids equal the checkpoint's.
    """

    path: str
    type: str
    architecture: str
    size_bytes: int
    n_parameters: int
    types: dict[str, int]
    seconds_s: float
    intermediate: str | None = None
    pre_tokenizer: str | None = None
    n_texts_compared: int | None = None
    chat_template: bool = False
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def export_base(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    type: QuantType | str | None,
    options: Options = Options(),
) -> Result:
    """Writes one GGUF base.

    Args:
        source: a folder with config.json, safetensors and tokenizer, or a GGUF file.
        type: such as "q4_k_m"; None keeps the tensors of a GGUF source as they are.

    Raises:
        InputError, UnsupportedError, DamagedError: something about the source, all reasons together.
        DoesNotFitError: the disk is too full, with the numbers.
        EngineError: llama.cpp's quantiser failed.
    """
    began = time.monotonic()
    source, dest = Path(source), Path(dest)
    type = find_type(type) if isinstance(type, str) else type
    if not source.exists():
        raise InputError("no such file or folder", where=source)
    check_new(dest, options.force)
    if dest.exists() and dest.samefile(source):
        raise InputError("is the source itself", where=dest, hint="write to another file")
    if type is not None and type.needs_imatrix and options.imatrix is None:
        raise InputError(f"{type.name} needs an importance matrix", hint="give one: --imatrix FILE")
    if options.imatrix is not None and (type is None or type.direct is not None):
        raise InputError(
            f"an importance matrix has no use with {'kept tensors' if type is None else type.name}",
            where=options.imatrix,
        )
    if source.is_dir() and type is None:
        raise InputError("`keep` is for GGUF sources; name a type", where=source)
    with atomic_file(dest) as aside:
        if source.is_dir() and type is not None:
            result = _from_checkpoint(source, aside, type, options)
        else:
            result = _from_gguf(source, aside, type, options)
        result.notes += template_notes(GgufFile.open(aside))
    result.path = str(dest)
    result.seconds_s = round(time.monotonic() - began, 2)
    return result


def _from_checkpoint(source: Path, aside: Path, type: QuantType, options: Options) -> Result:
    with Checkpoint.open(source) as checkpoint:
        config = checkpoint.config
        notes = list(config.notes)
        if options.output_weight and not config.tied:
            notes.append("the head is not tied: it is a tensor of its own anyway")
        direct = checkpoint.float_type if type.direct is None else type.direct
        between = None if type.direct is not None else _FLOAT_NAMES[direct]
        tensors = checkpoint.tensors(direct, output_weight=options.output_weight)
        keys = _general_keys(source, options, config.family.architecture, tensors)
        keys |= config.keys() | {"general.file_type": uint32(type.ftype)}
        keys["general.quantization_version"] = uint32(QUANTIZATION_VERSION)
        tokenizer = read_tokenizer(source, config.n_vocab, config.raw)
        found = find_pretokenizer(tokenizer, config.family.architecture, options.pre_tokenizer)
        notes += _tokenizer_notes(found, tokenizer)
        keys |= tokenizer.keys | found.keys() | chat_template_keys(source, options.chat_template, options.date)
        # The reference tokenizer holds hundreds of megabytes for a large vocabulary.
        del tokenizer
        float_file = aside.with_name("float.gguf") if between else aside
        float_bytes = file_size_bytes(keys, tensors)
        check_disk(aside, float_bytes + (int(n_parameters(tensors) * type.bits / 8) if between else 0))
        keys |= _missing_ends(float_file, keys, end_ids(source, config.raw), notes)
        with progress(f"writing {_FLOAT_NAMES.get(direct, type.name)}", float_bytes, "bytes") as advance:
            write_gguf(float_file, keys, tensors, advance)
        checkpoint.raise_faults()
        if between:
            quantize_file(float_file, aside, type, options, notes)
        result = result_of(aside, type.name, notes)
        result.intermediate = between
        result.pre_tokenizer = found.name
        result.n_texts_compared = found.n_texts - len(found.differences)
        return result


def _from_gguf(source: Path, aside: Path, type: QuantType | None, options: Options) -> Result:
    if options.pre_tokenizer is not None:
        raise InputError("--pre-tokenizer is for checkpoints; a GGUF has one already", where=source)
    base = GgufSource.open(source)
    notes = base.check_type(type, options.allow_requantize)
    changes = chat_template_keys(None, options.chat_template, options.date)
    if options.date is not None and not changes:
        changes[CHAT_TEMPLATE_KEY] = text(with_date(ChatTemplate.of(base.file).source, options.date, source))
    if options.name is not None:
        changes["general.name"] = text(options.name)
    tensors = base.tensors(output_weight=options.output_weight)
    rewritten = bool(changes) or len(tensors) > len(base.file.tensors)
    keys = base.keys(changes)
    size_bytes = file_size_bytes(keys, tensors)
    if type is None:
        check_disk(aside, size_bytes)
        with progress("writing", size_bytes, "bytes") as advance:
            write_gguf(aside, keys, tensors, advance)
    else:
        result_bytes = int(n_parameters(tensors) * type.bits / 8)
        check_disk(aside, result_bytes + (size_bytes if rewritten else 0))
        given = aside.with_name("changed.gguf") if rewritten else source
        if rewritten:
            write_gguf(given, keys, tensors)
        quantize_file(given, aside, type, options, notes)
    return result_of(aside, type.name if type else "keep", notes)


def _general_keys(source: Path, options: Options, architecture: str, tensors: list[NewTensor]) -> dict[str, Value]:
    keys = {"general.architecture": text(architecture), "general.type": text("model")}
    keys |= sampling_keys(source)
    keys["general.name"] = text(options.name or source.resolve().name)
    n_values = n_parameters(tensors)
    keys["general.size_label"] = text(
        f"{n_values / 1e9:.1f}B" if n_values >= 1e9 else f"{n_values / 1e6:.{0 if n_values >= 1e7 else 1}f}M"
    )
    card = source / "README.md"
    if card.is_file():
        with open_regular(card) as stream:
            head = stream.read(4000).decode("utf-8", errors="replace")
        head = head.partition("\n---")[0]
        licence = _LICENCE.search(head) if head.startswith("---") else None
        if licence:
            keys["general.license"] = text(licence[1].strip("\"'"))
    return keys


def n_parameters(tensors: list[NewTensor]) -> int:
    """Values of all tensors together."""
    return sum(math.prod(tensor.shape) for tensor in tensors)


def _tokenizer_notes(found: Found, tokenizer: ReadTokenizer) -> list[str]:
    notes = []
    if found.differences:
        shown = "; ".join(str(difference) for difference in found.differences[:3])
        counts = f"{len(found.differences)} of {found.n_texts}"
        notes.append(f"{found.name or 'llama.cpp'!r} tokenizes {counts} texts differently: {shown}")
    if tokenizer.behind:
        notes.append(
            f"the checkpoint's tokenizer puts a space before a text that begins with no special token such as "
            f"{tokenizer.behind!r}, llama.cpp will not; a chat template begins with one"
        )
    if tokenizer.spaced_once:
        notes.append(
            "before a text that begins with a space llama.cpp puts another, the checkpoint's tokenizer does not "
            "(transformers 5 saved it so); chat templates seldom begin with one"
        )
    if tokenizer.composes:
        notes.append("the tokenizer composes text to Unicode NFC first, llama.cpp does not: give it composed text")
    return notes


def _missing_ends(path: Path, keys: dict[str, Value], ends: list[int], notes: list[str]) -> dict[str, Value]:
    """Keys that make llama.cpp end an answer at every token at which the checkpoint's own configuration ends it."""
    write_gguf(path, keys, [])
    with Vocab.open(path) as vocab:
        missing = [index for index in ends if index < vocab.n_tokens and not vocab.is_end(index)]
    path.unlink()
    slots = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    if len(missing) > len(slots):
        notes.append(f"llama.cpp will not stop at the tokens {missing[len(slots) :]}: it has no key for so many")
    return {slot: uint32(index) for slot, index in zip(slots, missing, strict=False)}


def check_disk(aside: Path, needed_bytes: int) -> None:
    """Raises DoesNotFitError if the disk has less room than that."""
    require_room(aside.parent.parent, needed_bytes, "for a while")


def quantize_file(given: Path, dest: Path, type: QuantType, options: Options, notes: list[str]) -> None:
    """Quantises one GGUF into another by llama.cpp, with progress; what the user should know is added to `notes`."""
    file = GgufFile.open(given)
    if options.imatrix is not None:
        silent = check_imatrix(read_imatrix(options.imatrix), file.tensors)
        if silent:
            notes.append(f"the importance matrix says nothing about {len(silent)} matrices, such as {silent[0]}")
    total_bytes = sum(info.size_bytes for info in file.tensors.values())
    with progress(f"quantising to {type.name}", total_bytes, "bytes") as advance:
        last = ""

        def on_tensor(done: int, total: int, name: str) -> None:
            nonlocal last
            advance(file.tensors[last].size_bytes if last in file.tensors else 0, text=f"{done + 1}/{total} {name}")
            last = name

        quantize(
            given,
            dest,
            type,
            threads=options.threads,
            imatrix=options.imatrix,
            # Whether this is wise was decided before (GgufSource.check_type).
            allow_requantize=True,
            on_tensor=on_tensor,
        )


def result_of(aside: Path, type_name: str, notes: list[str]) -> Result:
    """What the file that was written holds; its path and time are the caller's to set."""
    file = GgufFile.open(aside)
    types = Counter(info.type.name for info in file.tensors.values())
    return Result(
        path=str(aside),
        type=type_name,
        architecture=str(file.get("general.architecture")),
        size_bytes=file.size_bytes,
        n_parameters=sum(info.n_values for info in file.tensors.values()),
        types=dict(types.most_common()),
        seconds_s=0.0,
        chat_template=CHAT_TEMPLATE_KEY in file.metadata,
        notes=notes,
    )
