"""A Hugging Face checkpoint folder as a list of GGUF tensors, streamed block by block from its safetensors files.

    with Checkpoint.open(folder) as checkpoint:
        write_gguf(path, keys, checkpoint.tensors(GgmlType.Q8_0))
        checkpoint.raise_faults()

Rules (those of llama.cpp's converter): matrices take the wanted type, vectors stay F32; a row that is no multiple of
Q8_0's block becomes F16. Norms, biases and rope factors are therefore the same in every type.
"""

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...edge.errors import DamagedError, InputError, UnsupportedError
from ...edge.files.read import is_text, read_table
from ...edge.gguf.hf_form import interleave_rows
from ...edge.gguf.types import GgmlType
from ..files.encode import Q8_0_BLOCK_VALUES, encode_rows
from ..files.gguf_writer import Chunk, NewTensor
from ..files.safetensors import READABLE, SafetensorsFile, StoredTensor
from ..files.tensor_names import other_sense, plain_name
from .config import ModelConfig

INDEX_FILE: Final = "model.safetensors.index.json"
SINGLE_FILE: Final = "model.safetensors"
# buffers that older transformers saved; nothing is learnt in them
IGNORED_ENDINGS: Final = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
THREADS: Final = 2


class Checkpoint:
    """An open checkpoint.

    Attributes:
        folder: where it is.
        config: its numbers.
        float_type: F16 or BF16 where all matrices are stored so, else F32: the type that holds them exactly.
        faults: what was found wrong in the numbers while they were streamed.
    """

    def __init__(self, folder: Path, config: ModelConfig, files: list[SafetensorsFile]) -> None:
        self.folder = folder
        self.config = config
        self.faults: list[str] = []
        self._files = files
        # By the names of a language model that stands alone: the file, and its own name there.
        self._where: dict[str, tuple[SafetensorsFile, str]] = {}
        for file in files:
            for name in file.tensors:
                if not config.hf.text_config:
                    self._where[name] = file, name
                elif other_sense(name) is None:
                    self._where[plain_name(name)] = file, name
        if config.tied and self._has_own_head():
            note = "config.json says that the head is the embedding, but the checkpoint holds another head: it is kept"
            self.config = config = dataclasses.replace(config, tied=False, notes=(*config.notes, note))
        self._check()
        stored = {self._entry(name).dtype for name, shape in config.expected().items() if len(shape) > 1}
        exact = {"BF16": GgmlType.BF16, "F16": GgmlType.F16}
        self.float_type = exact.get(stored.pop(), GgmlType.F32) if len(stored) == 1 else GgmlType.F32

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Opens a folder with config.json and safetensors files and checks that every tensor is there.

        Raises:
            InputError: files or tensors are missing, or have other shapes than config.json says.
            UnsupportedError: a model that cannot be exported exactly.
            DamagedError: a file was cut short.
        """
        if not folder.is_dir():
            raise InputError("no such folder", where=folder)
        if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
            raise InputError(
                "this is a PEFT adapter, not a model", where=folder, hint="slm-edge export lora FOLDER --base base.gguf"
            )
        config = ModelConfig.read(folder)
        files: list[SafetensorsFile] = []
        try:
            files += [SafetensorsFile.open(path) for path in _weight_files(folder)]
            return cls(folder, config, files)
        except BaseException:
            for file in files:
                file.close()
            raise

    def _entry(self, name: str) -> StoredTensor:
        file, own_name = self._where[name]
        return file.tensors[own_name]

    def _has_own_head(self) -> bool:
        """Whether there is a head whose values are not the embedding's: a fine-tune's, merged or not tied again."""
        names = ("lm_head.weight", "model.embed_tokens.weight")
        if not all(name in self._where for name in names):
            return False
        head, embedding = (self._entry(name) for name in names)
        if head.shape != embedding.shape or head.dtype not in READABLE or embedding.dtype not in READABLE:
            return True
        blocks = zip(*(file.blocks(own) for file, own in (self._where[name] for name in names)), strict=True)
        return any(not np.array_equal(one, other) for one, other in blocks)

    def _check(self) -> None:
        expected = self.config.expected()
        problems = []
        for name, shape in expected.items():
            if name not in self._where:
                problems.append(f"{name} is missing")
                continue
            entry = self._entry(name)
            if entry.shape != shape:
                problems.append(f"{name} has shape {list(entry.shape)}; config.json says {list(shape)}")
            elif entry.dtype not in READABLE:
                problems.append(f"{name} is {entry.dtype}, not a float type that can be read")
        tied_head = "lm_head.weight" if self.config.tied else ""
        for name in self._where:
            if name not in expected and name != tied_head and not name.endswith(IGNORED_ENDINGS):
                problems.append(f"{name} is not part of {self.config.hf.name} as config.json describes it")
        if problems:
            hint = None
            if any(name.startswith("lm_head.weight is missing") for name in problems):
                hint = "if the head is the embedding, config.json must say so: tie_word_embeddings: true"
            shown = [*problems[:40], *([f"… and {len(problems) - 40} more"] if len(problems) > 40 else [])]
            raise InputError("tensors and config.json do not agree", where=self.folder, problems=shown, hint=hint)

    def tensors(self, type: GgmlType, *, output_weight: bool = False) -> list[NewTensor]:
        """The tensors of the GGUF file, in order, to be encoded while they are written.

        Args:
            type: F32, F16, BF16 or Q8_0, for the matrices.
            output_weight: a tied head is written out as a tensor of its own.
        """
        found: list[NewTensor] = []
        for name, factors in self.config.rope_factors().items():
            found.append(NewTensor.of(name, factors, GgmlType.F32))
        for name in self.config.expected():
            found.append(self._tensor(name, type))
            own_head = output_weight or self.config.family.needs_output
            if name == "model.embed_tokens.weight" and own_head and self.config.tied:
                found.append(self._tensor(name, type, "output.weight"))
        return found

    def _tensor(self, name: str, type: GgmlType, gguf_name: str | None = None) -> NewTensor:
        module, _, suffix = name.rpartition(".")
        gguf_name = gguf_name or f"{self.config.family.gguf_name(module)}.{suffix}"
        entry = self._entry(name)
        if len(entry.shape) == 1:
            type = GgmlType.F32
        elif type is GgmlType.Q8_0 and entry.shape[-1] % Q8_0_BLOCK_VALUES:
            type = GgmlType.F16
        return NewTensor(gguf_name, entry.shape[::-1], type, lambda: self._stream(name, gguf_name, type))

    def _stream(self, name: str, gguf_name: str, type: GgmlType) -> Iterator[Chunk]:
        (file, own_name), config = self._where[name], self.config
        plus = config.family.plus(gguf_name)
        n_heads = config.family.n_interleaved_heads(gguf_name, config.n_heads, config.n_kv_heads)
        vector = len(file.tensors[own_name].shape) == 1
        faults: set[str] = set()

        def encode(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
            if n_heads is not None:
                # A vector (a bias) comes as one row; a block of a matrix holds whole heads.
                rows = rows.reshape(-1, 1) if vector else rows
                rows = interleave_rows(rows, len(rows) // config.head_size)
                rows = rows.reshape(1, -1) if vector else rows
            rows = rows.astype(np.float32) + np.float32(plus) if plus else rows
            largest = float(np.abs(rows).max(initial=0))
            if not np.isfinite(largest):
                faults.add("holds NaN or infinity")
            elif largest >= _limit(type):
                faults.add(f"holds {largest:.3g}, more than {type.name} can")
            return encode_rows(rows, type)

        yield from _in_order(encode, file.blocks(own_name, 1 if n_heads is None or vector else config.head_size))
        self.faults += [f"{name} {fault}" for fault in sorted(faults)]

    def raise_faults(self) -> None:
        """Raises what streaming found.

        Raises:
            DamagedError: NaN or infinity among the weights.
            UnsupportedError: numbers too large for the type.
        """
        if not self.faults:
            return
        if any("NaN" in fault for fault in self.faults):
            raise DamagedError("the weights are not all finite numbers", where=self.folder, problems=self.faults)
        raise UnsupportedError(
            "some weights do not fit the type", where=self.folder, problems=self.faults, hint="take --type bf16 or f32"
        )

    def close(self) -> None:
        """Closes the files."""
        for file in self._files:
            file.close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _limit(type: GgmlType) -> float:
    """The smallest magnitude that overflows: F16 rounds up from 65520; Q8_0 keeps max / 127 as F16."""
    return {GgmlType.F16: 65520.0, GgmlType.Q8_0: 65520.0 * 127, GgmlType.BF16: 3.396e38}.get(type, float("inf"))


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.exists():
        weight_map = read_table(index).get("weight_map", {})
        if not isinstance(weight_map, dict) or not all(map(is_text, weight_map.values())):
            raise InputError("its weight_map is no table of file names", where=index)
        names = sorted(set(weight_map.values()))
        outside = [name for name in names if Path(name).name != name]
        missing = [name for name in names if name not in outside and not (folder / name).exists()]
        if outside or missing or not names:
            problems = [f"{name} is not a plain file name" for name in outside]
            raise InputError(
                "the index and the files do not agree",
                where=index,
                problems=problems + [f"{name} is missing" for name in missing],
                hint="download the missing files" if missing else None,
            )
        return [folder / name for name in names]
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    if pickles:
        raise UnsupportedError(
            f"its weights are pickles ({pickles[0].name}), which run code when they are opened",
            where=folder,
            hint="save it as safetensors where you trust it: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)",
        )
    raise InputError(f"there is no {SINGLE_FILE} and no {INDEX_FILE}", where=folder)


def _in_order(work: Callable[[Any], Chunk], items: Iterable[Any]) -> Iterator[Chunk]:
    """`map` over a few threads with few items under way: numpy releases the interpreter while it computes."""
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(THREADS))
        waiting: deque[Future[Chunk]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
