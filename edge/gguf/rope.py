"""How positions turn heads: read in one place from config.json and from a GGUF, for export, its proof, training, ONNX.

    rope = read_rope(json.load(open("config.json")), problems)
    speeds, factor = rope.speeds(head_size=64, n_ctx_tokens=8192)
    check_rope(model, rope, path)           # transformers read the same, or an error

Understands the field names of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`). Each of the
two ignores or reinterprets what the other wrote, in silence: a model is loaded with `give_rope` and then checked.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedError
from .families import FAMILIES, OTHER_SENSES, HfClass, find_class, text_fields
from .file import GgufFile

DEFAULT_ROPE_THETA: Final = 10_000.0
ROPE_KINDS: Final = ("default", "linear", "llama3", "yarn")
# transformers calls it "dynamic", with an `alpha`; of one class (`HfClass.ntk_alpha`) alone.
NTK_ALPHA: Final = "ntk_alpha"
# Divisors of the speeds, (head size / 2,): llama.cpp's form of Llama 3's scaling.
ROPE_FACTORS: Final = "rope_freqs.weight"
# Divisors up to the original context, and beyond it: longrope's, which no key names.
SHORT_FACTORS: Final = "rope_factors_short.weight"
LONG_FACTORS: Final = "rope_factors_long.weight"
ROPE_TENSORS: Final = frozenset({ROPE_FACTORS, SHORT_FACTORS, LONG_FACTORS})
LONGROPE: Final = "longrope"
# Microsoft's first name of it
_LONGROPES: Final = (LONGROPE, "su")
# That llama.cpp computes it for, and heads of which a part is turned
_PHI3: Final = "Phi3ForCausalLM"
Floats = npt.NDArray[np.float32]
# transformers' names of two kinds of layers
FULL_LAYERS: Final = "full_attention"
WINDOW_LAYERS: Final = "sliding_attention"
_NEEDED: Final = {
    "linear": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
# Two computations of one formula in F32 differ by less.
_TOLERANCE: Final = 1e-5


@dataclass(frozen=True)
class Rope:
    """How positions turn.

    Attributes:
        kind: one of `ROPE_KINDS`, `NTK_ALPHA`, or `LONGROPE`, whose speeds are those up to the original context.
        theta: the base of the speeds.
        fields: what config.json says of the kind.
        divisors: of the speeds, (head size / 2,), where a GGUF holds them.
        window_theta: the base of layers that attend within a window, which nothing stretches; 0: there are none.
        share: of each head that is turned.
    """

    kind: str
    theta: float
    fields: Mapping[str, Any] = field(default_factory=dict)
    divisors: Floats | None = None
    window_theta: float = 0.0
    share: float = 1.0

    @property
    def windowed(self) -> "Rope":
        """That of layers that attend within a window."""
        return Rope("default", self.window_theta)

    def base(self, head_size: int) -> float:
        """The base of the speeds, `theta` stretched where the kind does so."""
        if self.kind != NTK_ALPHA:
            return self.theta
        return self.theta * math.pow(float(self.fields["alpha"]), head_size / (head_size - 2))

    def speeds(self, head_size: int, n_ctx_tokens: int) -> tuple[Floats, float]:
        """Radians a position of each pair that is turned, (head_size * share / 2,), and the factor on cos and sin.

        Formulas: transformers' `modeling_rope_utils`.

        Args:
            n_ctx_tokens: the context that the model was trained for; yarn's original length where no field says it.
        """
        head_size = round(head_size * self.share)
        plain = np.float32(1) / np.float32(self.base(head_size)) ** (
            np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
        )
        divisors = self.llama3_divisors(head_size) if self.kind == "llama3" else self.divisors
        if divisors is not None:
            plain = plain / divisors
        if self.kind == "linear":
            return (plain / np.float32(self.fields["factor"])).astype(np.float32), 1.0
        if self.kind == "yarn":
            return self._yarn(plain, head_size, n_ctx_tokens)
        if self.kind == LONGROPE:
            factors = np.array(self.fields["short_factor"], np.float32)
            return (plain / factors).astype(np.float32), float(self.fields["attention_factor"])
        return plain.astype(np.float32), 1.0

    def llama3_divisors(self, head_size: int) -> Floats:
        """Divisors of the speeds, (head_size / 2,): transformers' `_compute_llama3_parameters` as a ratio."""
        fields = self.fields
        exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
        speeds = np.float32(1) / np.float32(self.theta) ** exponents
        waves = np.float32(2 * math.pi) / speeds
        original, factor = float(fields["original_max_position_embeddings"]), float(fields["factor"])
        low, high = float(fields["low_freq_factor"]), float(fields["high_freq_factor"])
        smooth = (original / waves - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        factors = np.where(waves < original / high, 1.0, np.where(waves > original / low, factor, between))
        return factors.astype(np.float32)

    def _yarn(self, plain: Floats, head_size: int, n_ctx_tokens: int) -> tuple[Floats, float]:
        fields = self.fields
        original = fields.get("original_max_position_embeddings") or n_ctx_tokens

        def turns_at(turns: float) -> float:
            return head_size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        low = max(math.floor(turns_at(fields.get("beta_fast") or 32)), 0)
        high = min(math.ceil(turns_at(fields.get("beta_slow") or 1)), head_size - 1)
        ramp = (np.arange(head_size // 2, dtype=np.float32) - low) / ((high - low) or 0.001)
        kept = 1 - np.clip(ramp, 0, 1)
        speeds = plain / np.float32(fields["factor"]) * (1 - kept) + plain * kept
        factor = yarn_attention_factor(fields)
        return speeds.astype(np.float32), yarn_default_factor(fields) if factor is None else factor


def yarn_default_factor(fields: Mapping[str, Any]) -> float:
    """Yarn's usual factor on cos and sin."""
    return 1 + 0.1 * math.log(max(float(fields["factor"]), 1))


def yarn_attention_factor(fields: Mapping[str, Any]) -> float | None:
    """The attention factor that config.json asks for; None where it is yarn's usual one.

    Formula: transformers' `_compute_yarn_parameters`.
    """
    if fields.get("attention_factor") is not None:
        return float(fields["attention_factor"])
    one, all_dims = fields.get("mscale"), fields.get("mscale_all_dim")
    if not (one and all_dims):
        return None
    stretch = math.log(max(float(fields["factor"]), 1))
    return float((0.1 * one * stretch + 1) / (0.1 * all_dims * stretch + 1))


def read_rope(raw: Mapping[str, Any], problems: list[str], default_theta: float | None = None) -> Rope:
    """What a config.json says; what cannot be computed goes to `problems`.

    Args:
        default_theta: for files that say none; None: that of the class in the table of families.
    """
    names = raw.get("architectures") or [""]
    found = find_class(str(names[0]))
    hf = None if found is None else found[1]
    if default_theta is None:
        default_theta = DEFAULT_ROPE_THETA if hf is None else hf.rope_theta
    scaling, parameters = dict(raw.get("rope_scaling") or {}), dict(raw.get("rope_parameters") or {})
    window_theta = 0.0
    if found is not None and found[0].window_every:
        window_theta, parameters = _window_theta(raw, parameters, found[1], problems)
    elif found is None:
        # Gemma 3n of transformers 4, which has no row to say so
        window_theta = float(raw.get("rope_local_base_freq") or 0)
    fields = scaling | parameters
    if any(isinstance(value, dict) for value in fields.values()):
        problems.append("rope_parameters differ from layer to layer")
        fields = {}
    kinds = {source.get("rope_type") or source.get("type") or "default" for source in (scaling, parameters) if source}
    thetas = {float(source["rope_theta"]) for source in (scaling, parameters, raw) if source.get("rope_theta")}
    twice = [name for name in scaling.keys() & parameters.keys() if scaling[name] != parameters[name]]
    if len(kinds) > 1 or len(thetas) > 1 or twice:
        problems.append("rope_scaling, rope_parameters and rope_theta contradict each other")
    kind = fields.get("rope_type") or fields.get("type") or "default"
    theta = float(fields.pop("rope_theta", None) or raw.get("rope_theta") or default_theta)
    if kind == "dynamic" and hf is not None and hf.ntk_alpha and fields.get("alpha"):
        kind = NTK_ALPHA
    elif kind in _LONGROPES and names[0] == _PHI3:
        return _read_longrope(raw, theta, fields, problems)
    elif kind not in ROPE_KINDS:
        problems.append(f"rope scaling of the kind {kind!r}; supported: {', '.join(ROPE_KINDS)}")
        return Rope("default", theta, window_theta=window_theta)
    missing = [name for name in _NEEDED.get(kind, ()) if fields.get(name) is None]
    if missing:
        problems += [f"rope scaling {kind!r} lacks {name}" for name in missing]
        return Rope("default", theta, window_theta=window_theta)
    if fields.get("truncate") is False:
        problems.append("yarn without truncation")
    share = _share(raw, fields)
    if share != 1 and (names[0] != _PHI3 or kind != "default"):
        problems.append("only a part of each head is rotated (partial_rotary_factor)")
    return Rope(kind, theta, fields, window_theta=window_theta, share=share)


def _share(raw: Mapping[str, Any], fields: Mapping[str, Any]) -> float:
    return float(fields.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1)


def _read_longrope(raw: Mapping[str, Any], theta: float, fields: Mapping[str, Any], problems: list[str]) -> Rope:
    name = "original_max_position_embeddings"
    longest = int(raw.get("max_position_embeddings") or 1)
    original = int(raw.get(name) or fields.get(name) or longest)
    share = _share(raw, fields)
    head_size = raw.get("head_dim") or int(raw.get("hidden_size") or 1) // int(raw.get("num_attention_heads") or 1)
    lengths = {len(fields.get(kind) or ()) for kind in ("short_factor", "long_factor")}
    if lengths != {round(head_size * share) // 2}:
        problems.append(f"longrope needs {round(head_size * share) // 2} short and as many long factors")
        return Rope("default", theta)
    factor = fields.get("attention_factor")
    if factor is None:
        factor = math.sqrt(1 + math.log(longest / original) / math.log(original)) if longest > original else 1.0
    read = {kind: fields[kind] for kind in ("short_factor", "long_factor")}
    return Rope(LONGROPE, theta, {**read, name: original, "attention_factor": float(factor)}, share=share)


def _window_theta(
    raw: Mapping[str, Any], parameters: dict[str, Any], hf: HfClass, problems: list[str]
) -> tuple[float, dict[str, Any]]:
    """The rope base within windows, and the `rope_parameters` of the other layers."""
    theta = raw.get("rope_local_base_freq")
    if WINDOW_LAYERS in parameters:
        # As transformers 5 has them: one set for each kind of layers.
        window = dict(parameters[WINDOW_LAYERS] or {})
        if window.get("rope_type", "default") != "default":
            problems.append(f"a rope scaling of the kind {window['rope_type']!r} within windows")
        theta = window.get("rope_theta") or theta
        parameters = dict(parameters.get(FULL_LAYERS) or {})
    return float(theta or hf.defaults["rope_local_base_freq"]), parameters


def gguf_rope(file: GgufFile) -> Rope:
    """What the keys and tensors of a base say.

    Raises:
        UnsupportedError: a scaling that is not computed here.
    """
    arch = file.get("general.architecture")
    theta = float(file.get(f"{arch}.rope.freq_base", DEFAULT_ROPE_THETA))
    kind = str(file.get(f"{arch}.rope.scaling.type", "none"))
    divisors = file.array(ROPE_FACTORS) if ROPE_FACTORS in file.tensors else None
    family, window_theta = FAMILIES.get(str(arch)), 0.0
    if family is not None and family.window_every:
        window_theta = float(file.get(f"{arch}.rope.freq_base_swa", DEFAULT_ROPE_THETA))
    if kind == "linear":
        factor = float(file.get(f"{arch}.rope.scaling.factor", 1.0))
        return Rope("linear", theta, {"factor": factor}, divisors, window_theta)
    head = int(file.get(f"{arch}.attention.key_length", 0)) or (
        int(file.get(f"{arch}.embedding_length", 1)) // int(file.get(f"{arch}.attention.head_count", 1))
    )
    share = int(file.get(f"{arch}.rope.dimension_count", head)) / head
    if SHORT_FACTORS in file.tensors and kind in ("none", "", LONGROPE):
        fields = {
            "short_factor": file.array(SHORT_FACTORS).tolist(),
            "long_factor": file.array(LONG_FACTORS).tolist(),
            "original_max_position_embeddings": original_tokens(file),
            "attention_factor": float(file.get(f"{arch}.rope.scaling.attn_factor", 1.0)),
        }
        return Rope(LONGROPE, theta, fields, share=share)
    if kind not in ("none", ""):
        raise UnsupportedError(
            f"the rope scaling {kind!r} of a GGUF is not computed here",
            where=file.path,
            hint="take the Hugging Face folder of the same model instead",
        )
    return Rope("default", theta, {}, divisors, window_theta, share)


def original_tokens(file: GgufFile) -> int:
    """The context that a base was made for before longrope stretched it."""
    arch = file.get("general.architecture")
    return int(file.get(f"{arch}.rope.scaling.original_context_length") or file.get(f"{arch}.context_length"))


def _is_new(config: Any) -> bool:
    """Whether a config object is transformers 5's; an older one holds a field that it does not know all the same."""
    return hasattr(type(config), "rope_parameters")


def give_rope(config: Any, rope: Rope) -> None:
    """Makes a config object of transformers, of either major version, say what the file says."""
    fields = {name: value for name, value in rope.fields.items() if name not in ("type", "rope_theta")}
    scaling = fields | {"rope_type": "dynamic" if rope.kind == NTK_ALPHA else rope.kind}
    if _is_new(config):
        parameters = scaling | {"rope_theta": rope.theta}
        if rope.share != 1:
            parameters["partial_rotary_factor"] = rope.share
        if rope.window_theta:
            window = {"rope_type": "default", "rope_theta": rope.window_theta}
            parameters = {FULL_LAYERS: parameters, WINDOW_LAYERS: window}
        config.rope_parameters = parameters
        return
    config.rope_theta = rope.theta
    config.rope_scaling = None if rope.kind == "default" else scaling
    if rope.window_theta:
        config.rope_local_base_freq = rope.window_theta


def settle_rope(config: Any, raw: Mapping[str, Any], where: Path) -> Rope | None:
    """Gives a config object what its config.json says, and returns that.

    None: the model has no rope, or one that is not read here; transformers is then left alone with it.

    Raises:
        UnsupportedError: neither this reads it, nor the installed transformers, which knows no `rope_parameters`.
    """
    config = config.get_text_config()
    raw = text_fields(raw)
    if _is_new(config):
        own = config.rope_parameters or {}
        own = own.get(FULL_LAYERS, own)
    elif hasattr(config, "rope_theta"):
        own = {"rope_theta": config.rope_theta}
    else:
        return None
    problems: list[str] = []
    rope = read_rope(raw, problems, own.get("rope_theta") or DEFAULT_ROPE_THETA)
    if not problems:
        give_rope(config, rope)
        return rope
    if raw.get("rope_parameters") and not _is_new(config):
        raise UnsupportedError(
            "was saved by transformers 5, and the installed transformers does not read its rope_parameters",
            where=where,
            problems=problems,
            hint="pip install 'transformers>=5'",
        )
    return None


def check_rope(model: Any, rope: Rope, where: Path) -> None:
    """Compares the speeds with which a loaded model of transformers turns with those that the file says.

    Raises:
        UnsupportedError: they differ: this transformers reads the file in another way.
    """
    config = model.config.get_text_config()
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for name, module, kind in _turning(model):
        of_window = bool(rope.window_theta) and ("local" in name or kind.startswith(WINDOW_LAYERS))
        speeds, factor = (rope.windowed if of_window else rope).speeds(head_size, config.max_position_embeddings)
        own_factor = float(getattr(module, f"{kind}attention_scaling", 1.0))
        theirs = getattr(module, f"{kind}inv_freq").detach().cpu().float().numpy()
        alike = theirs.shape == speeds.shape and np.allclose(theirs, speeds, rtol=_TOLERANCE, atol=0)
        if not (alike and math.isclose(own_factor, factor, rel_tol=_TOLERANCE)):
            raise UnsupportedError(
                f"the installed transformers does not turn positions as the file says: {name} has the speeds "
                f"{theirs[:3].tolist()}…, factor {own_factor:g}; the file says "
                f"{speeds[:3].tolist()}…, factor {factor:g}",
                where=where,
                hint="another release of transformers may read it rightly",
            )


def _turning(model: Any) -> Iterator[tuple[str, Any, str]]:
    """Modules of a language model that turn positions: name, module, and what stands before their fields' names."""
    for name, module in model.named_modules():
        if OTHER_SENSES.search(name):
            continue
        for kind in ("", f"{FULL_LAYERS}_", f"{WINDOW_LAYERS}_"):
            if hasattr(module, f"{kind}inv_freq"):
                yield name, module, kind


def with_buffers(model: Any, config: Any, rope: Rope) -> Any:
    """The model, with what stands in no file: made again where it was made on torch's "meta" device."""
    inner = model.model
    inner.rotary_emb = type(inner.rotary_emb)(config=config)
    if hasattr(inner, "rotary_emb_local"):
        local = copy.deepcopy(config)
        give_rope(local, rope.windowed)
        inner.rotary_emb_local = type(inner.rotary_emb_local)(config=local)
    if hasattr(inner.embed_tokens, "embed_scale"):
        inner.embed_tokens.embed_scale = inner.norm.weight.new_tensor(config.hidden_size**0.5)
    if rope.divisors is not None:
        # Llama 3's scaling stands in a tensor of divisors that no config says.
        for name, module, kind in _turning(model):
            if "local" not in name and not kind.startswith(WINDOW_LAYERS):
                speeds = getattr(module, f"{kind}inv_freq")
                speeds /= speeds.new_tensor(rope.divisors.tolist())
    return model
