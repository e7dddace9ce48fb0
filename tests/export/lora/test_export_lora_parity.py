"""Exported adapters against PEFT: the logits of llama.cpp (F32 base, adapter and KV cache) are those of torch."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
from build_hf import LLAMA3_SCALING, tiny_checkpoint
from build_peft import ALL, real_adapter
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from slm_edge.edge.errors import InputError, UnsupportedError
from slm_edge.edge.gguf.families import FAMILIES
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.export.base.base import Options, export_base
from slm_edge.export.base.quantize import TYPES
from slm_edge.export.lora.lora import export_lora
from slm_edge.export.lora.patterns import pattern_keys
from slm_edge.export.proof.prompts import BUILT_IN, Prompt
from slm_edge.export.proof.verify import verify

BOUND = 2e-3
# An adapter that acts moves logits by thousands of times the bound.
EFFECT = 2.0


# Those whose every scaling and every layer is proved below; of the first three llama stands for all.
NEWER = ("smollm3", "granite", "olmo2", "hunyuan", "gemma3", "exaone4")
pytestmark = pytest.mark.usefixtures("one_thread")


def both(folder, family="llama", *, output_weight=False, **fields):
    """A tiny checkpoint and its F32 GGUF."""
    hf = tiny_checkpoint(folder / "hf", family, **fields)
    export_base(hf, folder / "base.gguf", TYPES["f32"], Options(output_weight=output_weight))
    return hf, folder / "base.gguf"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return both(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def with_head(tmp_path_factory):
    """Tied in the checkpoint, with an output.weight of its own in the GGUF."""
    return both(tmp_path_factory.mktemp("head"), output_weight=True)


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """Family -> its tiny checkpoint and GGUF, made once."""
    return functools.cache(lambda family: both(tmp_path_factory.mktemp(family), family))


def prove(folder, bases, **config):
    """Saves an adapter, exports it and compares; gives what was exported."""
    hf, base = bases
    peft = real_adapter(folder / "peft", hf, **config)
    done = export_lora(peft, base, folder / "a.gguf", kind="f32")
    report = verify(peft, base=base, lora=folder / "a.gguf", prompts=BUILT_IN[:3], hf=hf, max_tokens=6, threads=1)
    assert report.exact
    assert report.effect > EFFECT
    assert report.max_logit_error <= BOUND, report.max_logit_error
    assert all(result.tokens_equal and result.greedy_equal for result in report.results)
    assert report.passed
    return done


def test_pattern_keys_are_by_pefts_own_rule():
    patterns = [
        "q_proj",
        "layers.0.self_attn.k_proj",
        r"layers\.[12]\.mlp\..*",
        "^model.layers.1.self_attn.v_proj",
        "o",
    ]
    names = [f"model.layers.{i}.{part}" for i in (0, 1, 11) for part in ("self_attn.q_proj", "self_attn.k_proj")]
    names += [
        "model.layers.1.mlp.up_proj",
        "model.layers.1.self_attn.v_proj",
        "model.layers.1.self_attn.xq_proj",
        "lm_head",
        "q_proj",
    ]
    # All of them, where a child process tries them; and the names alone.
    for some in (patterns, [pattern for pattern in patterns if "[" not in pattern]):
        ours, faults = pattern_keys(some, names)
        assert not faults
        assert [ours.get(name, name) for name in names] == [get_pattern_key(some, name) for name in names]


# What file_scaling must choose: the alpha of the file, and how many modules have a factor of their own.
SCALINGS = {
    "alpha / r": ({"r": 8, "lora_alpha": 24}, 24, 0),
    "rank 1": ({"r": 1, "lora_alpha": 2}, 2, 0),
    "rsLoRA": ({"r": 16, "lora_alpha": 8, "use_rslora": True}, 32, 0),
    "alpha_pattern": ({"r": 8, "lora_alpha": 16, "alpha_pattern": {"q_proj": 4, "layers.1.mlp.down_proj": 40}}, 16, 3),
    "rank_pattern": ({"r": 8, "lora_alpha": 16, "rank_pattern": {"v_proj": 4, r"layers\.0\.mlp\..*": 24}}, 16, 0),
    "both patterns": (
        {"r": 8, "lora_alpha": 16, "rank_pattern": {"k_proj": 4}, "alpha_pattern": {"k_proj": 4, "^model.layers.0": 8}},
        16,
        2,
    ),
    "rsLoRA, both patterns": (
        {
            **{"r": 8, "lora_alpha": 8, "use_rslora": True},
            **{"rank_pattern": {"k_proj": 4, "o_proj": 16}, "alpha_pattern": {"up_proj": 3}},
        },
        8,
        14,
    ),
    "negative alpha": ({"r": 8, "lora_alpha": -16}, 16, 14),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_scaling_is_pefts(tmp_path, llama, name):
    config, alpha, n_folded = SCALINGS[name]
    done = prove(tmp_path, llama, **config)
    assert (done.info.alpha, done.n_folded) == (pytest.approx(alpha), n_folded)
    assert done.info.n_pairs == 14


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("family", NEWER)
def test_scaling_is_pefts_on_every_family(tmp_path, newer, family, name):
    prove(tmp_path, newer(family), **SCALINGS[name][0])


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("family", NEWER)
def test_each_linear_layer_of_every_family(tmp_path, newer, family, target):
    prove(tmp_path, newer(family), r=4, lora_alpha=16, target_modules=[target], size=2.0)


def test_no_row_says_that_adapters_are_exported_without_a_proof_here():
    proved = {"llama", "qwen2", "qwen3", *NEWER}
    assert {name.removesuffix("-dense") for name, row in FAMILIES.items() if "lora" in row.uses} == proved


def test_a_rank_above_the_smaller_side(tmp_path, llama):
    """k and v give 32 rows here: PEFT trains rank 48 on them, llama.cpp runs it."""
    assert prove(tmp_path, llama, r=48, lora_alpha=96).info.rank == 48


@pytest.mark.parametrize("kind", ["SEQ_2_SEQ_LM", "FEATURE_EXTRACTION", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"])
def test_a_task_type_changes_nothing(tmp_path, llama, kind):
    hf, base = llama
    peft = real_adapter(tmp_path / "peft", hf, r=4, target_modules=["q_proj", "down_proj"])
    export_lora(peft, base, tmp_path / "plain.gguf", kind="f32")
    edit_peft(peft, task_type=kind)
    export_lora(peft, base, tmp_path / "a.gguf", kind="f32")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()
    report = verify(peft, base=base, lora=tmp_path / "a.gguf", prompts=BUILT_IN[:1], hf=hf, max_tokens=4, threads=1)
    assert report.passed and report.max_logit_error <= BOUND


def edit_peft(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def mlx_adapter(folder, hf, *, rank=8, scale=20.0, leave_out=(), **config):
    """What `mlx_lm.lora` saves: a (in, rank), b (rank, out), no prefix; one layer of another rank."""
    shapes = {
        name.removesuffix(".weight"): tensor.shape
        for name, tensor in load_file(hf / "model.safetensors").items()
        if name.endswith("_proj.weight")
    }
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for module, (n_out, n_in) in shapes.items():
        own = 4 if module == "model.layers.1.mlp.up_proj" else rank
        tensors[f"{module}.lora_a"] = torch.randn(n_in, own, generator=generator) / n_in**0.5
        tensors[f"{module}.lora_b"] = torch.randn(own, n_out, generator=generator) / (scale * own**0.5)
    folder.mkdir()
    save_file(
        {name: value for name, value in tensors.items() if name not in leave_out}, folder / "adapters.safetensors"
    )
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0}
    fields = {"fine_tune_type": "lora", "lora_parameters": parameters, "num_layers": 2, "model": "tiny"} | config
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_an_adapter_of_mlx(tmp_path, family):
    hf, base = both(tmp_path, family)
    folder = mlx_adapter(tmp_path / "mlx", hf)
    done = export_lora(folder, base, tmp_path / "a.gguf", kind="f32")
    assert (done.info.n_pairs, done.info.rank) == (14, 8)
    report = verify(folder, base=base, lora=tmp_path / "a.gguf", prompts=BUILT_IN[:3], hf=hf, max_tokens=6, threads=1)
    assert report.passed
    assert report.effect > EFFECT
    assert report.max_logit_error <= BOUND


def test_what_of_mlx_is_refused(tmp_path, llama):
    hf, base = llama
    with pytest.raises(UnsupportedError, match="'dora'"):
        export_lora(mlx_adapter(tmp_path / "dora", hf, fine_tune_type="dora"), base, tmp_path / "a.gguf")
    half = mlx_adapter(tmp_path / "half", hf, leave_out=["model.layers.0.self_attn.q_proj.lora_b"])
    with pytest.raises(InputError, match="half of a pair"):
        export_lora(half, base, tmp_path / "a.gguf")
    scale = {"rank": 8, "scale": float("nan")}
    with pytest.raises(InputError, match="scale is nan"):
        export_lora(mlx_adapter(tmp_path / "nan", hf, lora_parameters=scale), base, tmp_path / "a.gguf")
    (half / "adapters.safetensors").unlink()
    with pytest.raises(InputError, match=r"no adapters\.safetensors"):
        export_lora(half, base, tmp_path / "a.gguf")


@pytest.mark.parametrize("target", ALL)
def test_each_linear_layer_by_itself(tmp_path, llama, target):
    """A wrong row order or name of one layer cannot hide behind the others."""
    done = prove(tmp_path, llama, r=4, lora_alpha=16, target_modules=[target], size=2.0)
    assert done.info.n_pairs == 2


def test_some_layers_only(tmp_path, llama):
    done = prove(tmp_path, llama, r=8, lora_alpha=16, layers_to_transform=[1])
    assert {target.split(".")[1] for target in done.info.targets} == {"1"}


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"n_heads": 6, "n_kv_heads": 2, "n_embd": 96}),
        ("llama", {"n_kv_heads": 4}),
        ("llama", {"n_kv_heads": 1, "head_dim": 32}),
        ("llama", {"tied": False, "rope_scaling": LLAMA3_SCALING}),
        ("mistral", {"tied": False}),
        ("qwen2", {}),
        ("qwen2", {"tied": False}),
        ("qwen3", {}),
        ("qwen3", {"head_dim": 32}),
        ("smollm3", {"n_layers": 4}),
        ("granite", {}),
        ("granite", {"attention_bias": True, "mlp_bias": True, "tied": False}),
        ("olmo2", {"tied": False}),
        ("hunyuan", {}),
    ],
    ids=str,
)
def test_every_family(tmp_path, family, fields):
    prove(tmp_path, both(tmp_path, family, **fields), r=8, lora_alpha=16)


HEADS = {
    "embedding": {"target_modules": ["embed_tokens"]},
    "head": {"target_modules": ["lm_head"]},
    "both and layers": {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "alpha_pattern": {"lm_head": 4}},
    "tied adapters": {"target_modules": ["embed_tokens", "v_proj"], "ensure_weight_tying": True},
}


@pytest.mark.parametrize("name", HEADS)
def test_embedding_and_head_on_a_tied_base(tmp_path, with_head, name):
    prove(tmp_path, with_head, r=8, lora_alpha=16, **HEADS[name])


@pytest.mark.parametrize("name", ["embedding", "head", "both and layers"])
def test_embedding_and_head_on_an_untied_base(tmp_path, name):
    prove(tmp_path, both(tmp_path, tied=False), r=8, lora_alpha=16, **HEADS[name])


def test_embedding_needs_the_bases_own_head(tmp_path, llama):
    hf, base = llama
    peft = real_adapter(tmp_path / "peft", hf, r=4, target_modules=["embed_tokens"])
    with pytest.raises(UnsupportedError, match="--output-weight"):
        export_lora(peft, base, tmp_path / "a.gguf")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_sources(tmp_path, llama, dtype):
    prove(tmp_path, llama, r=8, lora_alpha=16, dtype=dtype)


def test_activated_lora(tmp_path, llama):
    """The adapter acts from its invocation's first token on, and only there."""
    done = prove(tmp_path, llama, r=8, lora_alpha=16, alora_invocation_tokens=[1, 70, 71], size=1.0)
    assert done.info.alora_tokens == (1, 70, 71)


def test_what_pefts_dora_and_biases_save_is_refused(tmp_path, llama):
    hf, base = llama
    for name, config, words in (
        ("dora", {"use_dora": True}, "DoRA's magnitude vectors"),
        ("bias", {"lora_bias": True, "target_modules": ["q_proj"]}, "biases of the adapter"),
        ("save", {"modules_to_save": ["lm_head"]}, "a whole embedding or head"),
        ("tokens", {"trainable_token_indices": [3, 4]}, "trained token rows"),
    ):
        peft = real_adapter(tmp_path / name, hf, r=4, **config)
        with pytest.raises(UnsupportedError, match=words):
            export_lora(peft, base, tmp_path / "a.gguf")


@pytest.mark.parametrize(("kind", "max_kl"), [("bf16", 1e-3), ("f16", 1e-5), ("q8_0", 3e-3), ("auto", 3e-3)])
def test_narrow_types_stay_close(tmp_path, llama, kind, max_kl):
    hf, base = llama
    peft = real_adapter(tmp_path / "peft", hf, r=32, lora_alpha=64)
    export_lora(peft, base, tmp_path / "a.gguf", kind=kind)
    report = verify(peft, base=base, lora=tmp_path / "a.gguf", prompts=BUILT_IN[:2], hf=hf, max_tokens=6, threads=1)
    assert not report.exact
    assert 0 < report.mean_kl() < max_kl
    assert report.effect > EFFECT


@pytest.mark.reference
def test_stories260k(tmp_path, shared_data):
    """A real model (Llama, GQA, SentencePiece tokenizer, no chat template) with an adapter."""
    hf = shared_data / "stories260K" / "hf"
    export_base(hf, tmp_path / "base.gguf", TYPES["f32"])
    peft = real_adapter(tmp_path / "peft", hf, r=8, lora_alpha=16, size=0.3, use_rslora=True)
    export_lora(peft, tmp_path / "base.gguf", tmp_path / "a.gguf", kind="f32", task="stories")
    prompts = [
        Prompt("Once upon a time, there was a little girl"),
        Prompt("Tom had 3 red balls. He"),
        Prompt("Äpfel 🙂"),
    ]
    report = verify(
        peft, base=tmp_path / "base.gguf", lora=tmp_path / "a.gguf", prompts=prompts, hf=hf, max_tokens=32, threads=1
    )
    assert report.effect > EFFECT
    assert report.max_logit_error <= BOUND
    assert [dataclasses.asdict(r.prompt)["text"] for r in report.results if not r.tokens_equal] == []
    assert all(result.greedy_equal for result in report.results)


def test_tensors_are_those_of_an_independent_conversion(tmp_path, llama):
    """gguf's own name table and a permutation written out another way give the same matrices."""
    from gguf import MODEL_ARCH, get_tensor_name_map
    from safetensors.numpy import load_file

    hf, base = llama
    peft = real_adapter(tmp_path / "peft", hf, r=8, lora_alpha=16)
    export_lora(peft, base, tmp_path / "a.gguf", kind="f32")
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, 2)
    file = GgufFile.open(tmp_path / "a.gguf")
    expected = {}
    for name, values in load_file(peft / "adapter_model.safetensors").items():
        module, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        target = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        if part == "B.weight" and ("q_proj" in module or "k_proj" in module):
            n_heads = 4 if "q_proj" in module else 2
            half = len(values) // n_heads // 2
            order = [h * 2 * half + s * half + j for h in range(n_heads) for j in range(half) for s in (0, 1)]
            values = values[order]
        expected[f"{target}.lora_{part[0].lower()}"] = values
    assert list(file.tensors) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(file.array(name), values)
