"""Bases whose architecture has no proved row in the table of families: taken as they are, names and shapes included.

    family = other_family("nemotron")
    sizes = other_sizes(file, "nemotron", faults)
    check_silent(file, "My Phi-3 tune")

Whether llama.cpp loads and computes such a file is tried in a child process before it reaches this one
(`llama/first_load.py`), and of each adapter every kind of matrix is seen to act (`session/shelf.py`). What no trial
shows, since llama.cpp computes it without a word and otherwise than the model was trained, is refused here.
"""

from collections.abc import Collection
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import InputError, UnsupportedError
from .base_keys import COUNTS, number_of
from .families import Family, HfClass, Part, attention, mlp
from .file import GgufFile, ValueType

Order = npt.NDArray[np.int64]
# Keys that are read before llama.cpp sees the file: their types, and whether they are lists by layer (None: either)
_KINDS: Final[tuple[tuple[tuple[str, ...], tuple[ValueType, ...], bool | None], ...]] = (
    (("block_count", "embedding_length", "context_length", "rope.dimension_count"), COUNTS, False),
    (("attention.shared_kv_layers", "attention.sliding_window"), COUNTS, False),
    (("rope.scaling.original_context_length", "shortconv.l_cache"), COUNTS, False),
    (("ssm.conv_kernel", "ssm.inner_size", "ssm.group_count", "ssm.state_size"), COUNTS, False),
    (("attention.head_count", "attention.head_count_kv", "feed_forward_length"), COUNTS, None),
    (("attention.key_length", "attention.value_length"), COUNTS, None),
    (("attention.sliding_window_pattern",), (*COUNTS, ValueType.BOOL), None),
    (("activation_sparsity_scale",), (ValueType.FLOAT32,), True),
)
_MOST_LAYERS: Final = 1000
_MOST: Final = 1 << 20
# What llama-vocab.cpp looks up in the vocabulary of a model whose name says Phi-3
_PHI3_NAMES: Final = ("phi-3", "phi3")
_PHI3_TOKENS: Final = ("</s>", "<unk>", "<s>", "<|endoftext|>")


# llama.cpp's gemma3n.cpp has these for good.
_GEMMA3N_OWN_KV: Final = 20
_GEMMA3N_SPARSE: Final = 10
_GEMMA3N_SCALE: Final = 1.645
_ORIGINAL_CONTEXT: Final = "rope.scaling.original_context_length"

_LORA: Final = frozenset({"lora"})


def _row(architecture: str, hf: str, block: tuple[Part, ...], **more: Any) -> Family:
    config = more.pop("config", hf.replace("ForCausalLM", "Config"))
    hf_class = HfClass(hf, config, fixed=more.pop("fixed", {}))
    uses = _LORA | more.pop("also", frozenset())
    return Family(architecture, (hf_class,), block, proved=False, uses=uses, **more)


def _matrix(name: str, module: str) -> Part:
    # Shapes are the file's own.
    return Part(name, module, ("", ""))


# Granite 4's gate and up are one module of transformers.
_SHARED_MLP: Final = (
    _matrix("ffn_gate", "shared_mlp.input_linear"),
    _matrix("ffn_up", "shared_mlp.input_linear"),
    _matrix("ffn_down", "shared_mlp.output_linear"),
)

# Gemma 3n and 4 have an input of its own for each layer.
_PER_LAYER: Final = (_matrix("inp_gate", "per_layer_input_gate"), _matrix("proj", "per_layer_projection"))

# Whose adapters are exported: matrices by name, of layers of all kinds together.
_ROWS: Final = (
    _row(
        "lfm2",
        "Lfm2ForCausalLM",
        (
            *attention()[:3],
            _matrix("attn_output", "self_attn.out_proj"),
            _matrix("shortconv.in_proj", "conv.in_proj"),
            _matrix("shortconv.out_proj", "conv.out_proj"),
            _matrix("ffn_gate", "feed_forward.w1"),
            _matrix("ffn_up", "feed_forward.w3"),
            _matrix("ffn_down", "feed_forward.w2"),
        ),
    ),
    _row(
        "qwen35",
        "Qwen3_5ForCausalLM",
        (
            *attention(),
            _matrix("attn_qkv", "linear_attn.in_proj_qkv"),
            _matrix("attn_gate", "linear_attn.in_proj_z"),
            _matrix("ssm_beta", "linear_attn.in_proj_b"),
            _matrix("ssm_alpha", "linear_attn.in_proj_a"),
            _matrix("ssm_out", "linear_attn.out_proj"),
            *mlp(),
        ),
        config="Qwen3_5TextConfig",
        tiled_values=True,
    ),
    _row(
        "granitehybrid",
        "GraniteMoeHybridForCausalLM",
        (
            *attention(),
            *_SHARED_MLP,
            _matrix("ssm_in", "mamba.in_proj"),
            _matrix("ssm_out", "mamba.out_proj"),
        ),
        config="GraniteMoeHybridConfig",
        interleaves_qk=True,
    ),
    _row(
        "phi3",
        "Phi3ForCausalLM",
        (
            Part("attn_norm", "input_layernorm", ("n_embd",)),
            Part("attn_qkv", "self_attn.qkv_proj", ("n_embd", "n_qkv")),
            Part("attn_output", "self_attn.o_proj", ("n_o", "n_embd")),
            Part("ffn_norm", "post_attention_layernorm", ("n_embd",)),
            Part("ffn_up", "mlp.gate_up_proj", ("n_embd", "n_gate_up")),
            Part("ffn_down", "mlp.down_proj", ("n_ff", "n_embd")),
        ),
        # Contexts end where the window does (`computed_tokens`).
        fixed={"sliding_window": None},
        also=frozenset({"base", "train", "onnx"}),
    ),
    _row("mistral3", "Ministral3ForCausalLM", (*attention(), *mlp()), interleaves_qk=True),
    _row(
        "gemma4",
        "Gemma4ForCausalLM",
        (
            *attention(),
            *mlp(),
            *_PER_LAYER,
        ),
        config="Gemma4TextConfig",
        activation="gelu_pytorch_tanh",
        unreached=("per_layer_model_projection", "embed_tokens_per_layer"),
    ),
    _row(
        "gemma3n",
        "Gemma3nForCausalLM",
        (
            *attention(),
            *mlp(),
            *_PER_LAYER,
            _matrix("laurel_l", "laurel.linear_left"),
            _matrix("laurel_r", "laurel.linear_right"),
            _matrix("altup_correct_coef", "altup.correction_coefs"),
            _matrix("altup_predict_coef", "altup.prediction_coefs"),
        ),
        config="Gemma3nTextConfig",
        activation="gelu_pytorch_tanh",
        unreached=(
            "per_layer_model_projection",
            "embed_tokens_per_layer",
            "modality_router",
            *(f"altup_{kind}.{number}" for kind in ("projections", "unembed_projections") for number in range(3)),
        ),
    ),
)
OTHER_FAMILIES: Final[dict[str, Family]] = {row.architecture: row for row in _ROWS}

# Of an architecture that has a row, models of another class of transformers: Granite 4 with attention alone.
OTHER_CLASSES: Final[dict[str, Family]] = {
    "granite": _row("granite", "GraniteMoeHybridForCausalLM", (*attention(), *_SHARED_MLP), interleaves_qk=True),
}


def adapted_family(family: Family, modules: Collection[str]) -> Family:
    """The row that names the modules of an adapter: of Granite 4 with attention alone another than of Granite 3."""
    other = OTHER_CLASSES.get(family.architecture, family)
    return other if any(other.gguf_name(one) and not family.gguf_name(one) for one in modules) else family


def find_other_class(name: str) -> tuple[Family, HfClass] | None:
    """The row of a class whose checkpoints are exported, as `families.find_class`; None if there is none."""
    rows = (row for row in OTHER_FAMILIES.values() if "base" in row.uses)
    return next(((row, row.classes[0]) for row in rows if row.classes[0].name == name), None)


def other_classes() -> list[str]:
    """Names of the classes that `find_other_class` finds."""
    return [row.classes[0].name for row in OTHER_FAMILIES.values() if "base" in row.uses]


def other_family(architecture: str) -> Family:
    """The row of an architecture that is taken as it is; a blank one, for running alone, where there is none."""
    blank = Family(architecture, classes=(), block=(), proved=False, uses=frozenset())
    return OTHER_FAMILIES.get(architecture, blank)


def value_order(n_key_heads: int, n_value_heads: int, size: int) -> Order:
    """Which of transformers' values stands at each place of llama.cpp's, of heads of `size` values each.

    transformers has those that share a key head side by side, llama.cpp takes the first of each, then the second.
    """
    places = np.arange(n_value_heads * size).reshape(n_key_heads, n_value_heads // n_key_heads, size)
    return np.ascontiguousarray(places.swapaxes(0, 1)).reshape(-1)


def value_orders(file: GgufFile, target: str) -> tuple[Order | None, Order | None]:
    """Which rows, and which columns, of transformers stand at each of llama.cpp's, of a matrix of a linear attention.

    None: as they are. Formula: `_reorder_v_heads` of llama.cpp's converter.

    Args:
        target: name of the base's tensor, such as "blk.0.attn_qkv.weight".
    """
    arch = file.get("general.architecture")
    keys, values, size = (
        int(file.get(f"{arch}.ssm.{name}", 0)) for name in ("group_count", "time_step_rank", "state_size")
    )
    part = target.split(".")[2]
    if not keys or keys == values or f"blk.{target.split('.')[1]}.ssm_out.weight" not in file.tensors:
        return None, None
    if part in ("ssm_alpha", "ssm_beta"):
        return value_order(keys, values, 1), None
    order = value_order(keys, values, size)
    if part == "attn_qkv":
        n_before = 2 * keys * size
        return np.concatenate([np.arange(n_before), n_before + order]), None
    if part == "attn_gate":
        return order, None
    return (None, order) if part == "ssm_out" else (None, None)


def other_sizes(file: GgufFile, architecture: str, faults: list[str]) -> dict[str, int]:
    """Sizes as `base.py` has them of a proved family; of lists by layer the largest.

    Heads may be missing (Mamba): they count as one of the model's width.

    Raises:
        InputError: a key that is read has another type.
    """
    _check_kinds(file, architecture)

    def size(key: str, default: int | None = None, most: int = _MOST) -> int:
        entry = file.metadata.get(f"{architecture}.{key}")
        if entry is not None and entry.type is ValueType.ARRAY:
            values = [int(value) for value in entry.value] if entry.n_values <= _MOST_LAYERS else []
            if not values or not 0 <= min(values) <= max(values) <= most:
                faults.append(f"{architecture}.{key} is a list that makes no sense")
            return max([*values, 1])
        before = len(faults)
        value = number_of(file, f"{architecture}.{key}", faults, default)
        if len(faults) == before and not 0 <= value <= most:
            faults.append(f"{architecture}.{key} is {value}; up to {most} makes sense")
        return max(value, 1)

    n_embd = size("embedding_length")
    n_heads = size("attention.head_count", 1)
    n_kv_heads = size("attention.head_count_kv", n_heads)
    key_length = size("attention.key_length", max(n_embd // n_heads, 1))
    value_length = size("attention.value_length", max(n_embd // n_heads, 1))
    return {
        "n_layers": size("block_count", most=_MOST_LAYERS),
        "n_embd": n_embd,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "n_ff": size("feed_forward_length", 1),
        "n_ctx_train_tokens": size("context_length", most=1 << 28),
        "head": key_length,
        "n_q": n_heads * key_length,
        "n_k": n_kv_heads * key_length,
        "n_v": n_kv_heads * value_length,
        "n_o": n_heads * value_length,
    }


def _check_kinds(file: GgufFile, architecture: str) -> None:
    faults = []
    for names, kinds, is_list in _KINDS:
        for key in (f"{architecture}.{name}" for name in names):
            entry = file.metadata.get(key)
            if entry is None:
                continue
            fits = is_list is None or is_list == (entry.type is ValueType.ARRAY)
            if not fits or (entry.element_type or entry.type) not in kinds:
                found = f"an array of {entry.element_type.name}" if entry.element_type else entry.type.name
                faults.append(f"{key} is {found}, not {'an array of ' if is_list else ''}{kinds[0].name}")
    if faults:
        raise InputError("is not a base model that can be run", where=file.path, problems=faults)


def check_silent(file: GgufFile, architecture: str, name: str | None) -> None:
    """Refuses what llama.cpp fails on without saying why, and what it computes otherwise than the model was trained.

    Args:
        name: of the model, which llama.cpp goes by.

    Raises:
        UnsupportedError: with the reason.
    """

    def key(word: str) -> Any:
        return file.get(f"{architecture}.{word}")

    reason = None
    if name is not None and any(part in name.lower() for part in _PHI3_NAMES):
        known = set(file.get("tokenizer.ggml.tokens") or ())
        missing = [token for token in _PHI3_TOKENS if token not in known]
        if missing:
            reason = (
                f"is called {name!r}: by that llama.cpp takes its vocabulary for Phi-3's and fails, as it holds no "
                f"{missing[0]}; give it another name with slm-edge export base … keep --name NAME"
            )
    if architecture == "gemma3n":
        reason = reason or _gemma3n(file)
    elif architecture == "granitehybrid" and key("rope.scaling.finetuned") is None:
        reason = (
            "does not say whether its positions turn (granitehybrid.rope.scaling.finetuned): llama.cpp would turn "
            "them, the model was trained without"
        )
    elif architecture == "mistral3" and key("attention.temperature_scale") and not key(_ORIGINAL_CONTEXT):
        reason = (
            f"scales its queries by their position and does not say from which on (mistral3.{_ORIGINAL_CONTEXT}): "
            "llama.cpp would begin elsewhere than the model was trained with"
        )
    if reason is not None:
        raise UnsupportedError(reason, where=file.path)


def _gemma3n(file: GgufFile) -> str | None:
    """What llama.cpp does not read of a Gemma 3n: it computes all as the two published ones are."""
    n_own = n_own_kv_layers(file)
    if n_own != _GEMMA3N_OWN_KV:
        return f"has keys and values of its own in {n_own} layers; llama.cpp takes {_GEMMA3N_OWN_KV} whatever it says"
    cap = file.get("gemma3n.final_logit_softcapping")
    if cap not in (None, 30.0):
        return f"caps its logits at {cap}; llama.cpp takes 30 whatever it says"
    given = file.get("gemma3n.activation_sparsity_scale")
    sparse = [layer for layer, scale in enumerate(given or ()) if scale > 0]
    if given is not None and sparse != [*range(_GEMMA3N_SPARSE)]:
        return f"leaves out activations in the layers {sparse}; llama.cpp does in the first {_GEMMA3N_SPARSE}"
    odd = [scale for scale in given or () if scale > 0 and abs(scale - _GEMMA3N_SCALE) > 1e-3]
    return f"leaves out other activations ({odd[0]:.3f}) than llama.cpp ({_GEMMA3N_SCALE})" if odd else None


def n_own_kv_layers(file: GgufFile) -> int:
    """How many layers, from the first on, have keys and values of their own; those behind read earlier ones'."""
    architecture = file.get("general.architecture")
    n_layers, n_shared = (
        int(file.get(f"{architecture}.{key}") or 0) for key in ("block_count", "attention.shared_kv_layers")
    )
    return max(n_layers - n_shared, 0)


def computed_tokens(file: GgufFile, architecture: str, n_ctx_train_tokens: int) -> int:
    """The longest context that llama.cpp computes as the model was trained: up to Phi-3's window, which it ignores."""
    if architecture != "phi3":
        return n_ctx_train_tokens
    return min(n_ctx_train_tokens, int(file.get("phi3.attention.sliding_window") or n_ctx_train_tokens))
