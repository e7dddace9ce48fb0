"""A base GGUF as transformers would hold it: config fields, names of modules, rows in its order. Needs no transformers.

hf_config(file)                        # {"hidden_size": 576, …} for the class `family.classes[0]`
for name, place in places(file).items():
    place.numbers(tensor_of(file, name))        # float32, (out, in)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedError
from .families import ALWAYS, FAMILIES, Family
from .file import GgufFile
from .other_bases import OTHER_FAMILIES
from .rope import FULL_LAYERS, ROPE_TENSORS, SHORT_FACTORS, WINDOW_LAYERS, original_tokens


def interleave_rows(rows: npt.NDArray[Any], n_heads: int) -> npt.NDArray[Any]:
    """Rows of a q or k projection from transformers' order to llama.cpp's.

    Per head, [first half | second half] becomes neighbouring pairs: out[2 j + s] = in[s d/2 + j].

    Args:
        rows: (n_heads * d, ...) for whole heads; a lora_B or a bias likewise.
    """
    shape = rows.shape
    halves = rows.reshape(n_heads, 2, shape[0] // n_heads // 2, *shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(shape)


def halves_order(n_rows: int, n_heads: int) -> npt.NDArray[np.int64]:
    """Which of llama.cpp's rows of q or k stands at each row of transformers': `interleave_rows` undone."""
    return np.arange(n_rows).reshape(n_heads, n_rows // n_heads // 2, 2).swapaxes(1, 2).reshape(-1)


def dtype_word(version: str) -> str:
    """How the release of transformers calls the type of a loaded model's numbers."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


def classes_of(transformers: Any, family: Family) -> tuple[Any, Any]:
    """The family's config class and model class of the module `transformers`.

    Raises:
        UnsupportedError: this release does not have them yet.
    """
    names = (family.classes[0].config, family.classes[0].name)
    missing = [name for name in names if not hasattr(transformers, name)]
    if missing:
        raise UnsupportedError(
            f"the installed transformers {transformers.__version__} has no {missing[0]}",
            hint="pip install --upgrade transformers",
        )
    return getattr(transformers, names[0]), getattr(transformers, names[1])


def trained_family(file: GgufFile) -> Family:
    """The table's row for a file that is to be a model of transformers.

    Raises:
        UnsupportedError: no row for its architecture, or none that is trained from a GGUF.
    """
    arch = str(file.get("general.architecture", ""))
    rows = OTHER_FAMILIES | FAMILIES
    family = rows.get(arch)
    if family is None or "train" not in family.uses:
        known = ", ".join(sorted(name for name, row in rows.items() if "train" in row.uses))
        raise UnsupportedError(
            f"a GGUF of the architecture {arch!r} cannot be a model of transformers (known: {known})",
            where=file.path,
            hint="take the Hugging Face folder of the same model instead",
        )
    return family


def hf_config(file: GgufFile) -> dict[str, Any]:
    """Fields for the config class of the family, rope left out (`rope.gguf_rope`).

    Raises:
        UnsupportedError: as `trained_family`.
    """
    family = trained_family(file)
    arch = family.architecture

    def key(name: str, default: Any = None) -> Any:
        return file.get(f"{arch}.{name}", default)

    width, heads, layers = (int(key(name)) for name in ("embedding_length", "attention.head_count", "block_count"))
    head = int(key("attention.key_length", width // heads))
    of_family: dict[str, Any] = {family.head_field: head} if family.head_field else {}
    turned = int(key("rope.dimension_count", head))
    if turned < head:
        of_family["partial_rotary_factor"] = turned / head
    if SHORT_FACTORS in file.tensors:
        of_family["original_max_position_embeddings"] = original_tokens(file)
    if family.window_every or "sliding_window" in family.classes[0].fixed:
        kinds = [WINDOW_LAYERS if family.windowed(layer) else FULL_LAYERS for layer in range(layers)]
        of_family |= {"sliding_window": key("attention.sliding_window"), "layer_types": kinds}
    return {
        "vocab_size": file.tensors["token_embd.weight"].shape[1],
        "hidden_size": width,
        "intermediate_size": int(key("feed_forward_length")),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": int(key("attention.head_count_kv", heads)),
        "head_dim": head,
        "max_position_embeddings": int(key("context_length")),
        "rms_norm_eps": float(key("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.get("tokenizer.ggml.eos_token_id"),
        # Class defaults are ids of the real vocabulary.
        "pad_token_id": None,
        family.activation_field: family.activation,
        **_biases(file, family),
        **of_family,
        **{field: float(key(name, 1.0)) for name, field in family.scalars.items()},
        **family.classes[0].fixed,
    }


def _biases(file: GgufFile, family: Family) -> dict[str, bool]:
    """The config fields that switch biases on, as the file has biases."""
    switches: dict[str, bool] = {}
    for part in family.block:
        if part.bias not in ("", ALWAYS):
            switches[part.bias] = switches.get(part.bias, False) or f"blk.0.{part.name}.bias" in file.tensors
    return switches


@dataclass(frozen=True)
class Place:
    """Where a tensor of the file goes.

    Attributes:
        module: the module's name in transformers.
        kind: "weight" or "bias".
        n_heads: of q and k whose rows lie pair by pair and must be put back to halves; 0 elsewhere.
        plus: what its numbers are more than those of transformers.
    """

    module: str
    kind: str
    n_heads: int = 0
    plus: float = 0.0

    def in_order(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Rows (numbers or blocks) in the order that transformers wants."""
        return rows[halves_order(len(rows), self.n_heads)] if self.n_heads else rows

    def numbers(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The file's numbers as transformers has them."""
        return self.in_order(values) - np.float32(self.plus)


def places(file: GgufFile) -> dict[str, Place]:
    """The place of every tensor but the rope's factors.

    Raises:
        UnsupportedError: a tensor that no name here covers.
    """
    family = trained_family(file)
    heads = int(file.get(f"{family.architecture}.attention.head_count"))
    kv_heads = int(file.get(f"{family.architecture}.attention.head_count_kv", heads))
    found: dict[str, Place] = {}
    unknown = []
    for name in file.tensors:
        if name in ROPE_TENSORS:
            continue
        stem, _, kind = name.rpartition(".")
        module = family.module(stem)
        if module is None or kind not in ("weight", "bias"):
            unknown.append(name)
            continue
        n_heads = family.n_interleaved_heads(stem, heads, kv_heads) or 0
        found[name] = Place(module, kind, n_heads, family.plus(name))
    if unknown:
        raise UnsupportedError(
            "tensors that the model of transformers has no place for", where=file.path, problems=unknown
        )
    return found


def tensor_of(file: GgufFile, name: str) -> npt.NDArray[np.float32]:
    """One tensor, dequantised to float32, in numpy order (out, in)."""
    import gguf

    info = file.tensors[name]
    kind = gguf.GGMLQuantizationType(int(info.type))
    values = gguf.quants.dequantize(np.asarray(file.raw(name)).reshape(*info.shape[:0:-1], -1), kind)
    return np.asarray(values, dtype=np.float32).reshape(info.shape[::-1])
