"""Checkpoints to GGUF bases: the same logits as transformers, the same bytes as llama.cpp's quantiser."""

import ctypes
import datetime
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from build_hf import LLAMA3_SCALING, as_transformers_4, as_transformers_5, edit_config, tiny_checkpoint
from build_peft import real_adapter
from compare_logits import largest_difference
from safetensors.torch import load_file, save_file
from slm_edge.edge.errors import DamagedError, DoesNotFitError, InputError, UnsupportedError
from slm_edge.edge.gguf.chat_template import ChatTemplate
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.llama.binding import lib, quiet_logs
from slm_edge.export.base.base import Options, export_base
from slm_edge.export.base.quantize import TYPES
from slm_edge.export.lora.lora import export_lora
from slm_edge.export.proof.prompts import Prompt
from slm_edge.export.proof.verify import verify

BOUND = 2e-3
N_VOCAB = 384
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
ALPHA = {"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0}
CASES = {
    "llama": {"family": "llama"},
    "llama untied, no groups": {"family": "llama", "tied": False, "n_kv_heads": 4},
    "llama3 scaling": {"family": "llama", "rope_scaling": LLAMA3_SCALING},
    "linear scaling": {"family": "llama", "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    # older releases of transformers take the ratio of both lengths for the factor
    "yarn": {"family": "llama", "rope_scaling": YARN, "n_ctx_tokens": 256},
    "yarn, own attention factor": {
        "family": "qwen2",
        "n_ctx_tokens": 256,
        "rope_scaling": YARN | {"attention_factor": 1.5, "beta_fast": 16},
    },
    "llama with biases": {"family": "llama", "attention_bias": True, "mlp_bias": True},
    "llama, heads wider than the model": {"family": "llama", "head_dim": 32},
    "mistral": {"family": "mistral", "tied": False},
    "qwen2": {"family": "qwen2"},
    "qwen2 untied": {"family": "qwen2", "tied": False},
    "qwen3": {"family": "qwen3"},
    "qwen3 untied": {"family": "qwen3", "tied": False, "head_dim": 32},
    "smollm3, a layer without rope": {"family": "smollm3", "n_layers": 5},
    "granite": {"family": "granite"},
    "granite with biases": {"family": "granite", "attention_bias": True, "mlp_bias": True, "tied": False},
    "olmo2": {"family": "olmo2", "tied": False},
    "olmo2 tied": {"family": "olmo2"},
    "hunyuan": {"family": "hunyuan"},
    "hunyuan, stretched base": {"family": "hunyuan", "rope_scaling": ALPHA, "head_dim": 32},
    "exaone4": {"family": "exaone4", "rope_scaling": LLAMA3_SCALING, "n_ctx_tokens": 256},
    "gemma3": {"family": "gemma3"},
    "gemma3, stretched": {"family": "gemma3", "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "gemma3, untied, 13 layers": {
        "family": "gemma3",
        "tied": False,
        "num_hidden_layers": 13,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
    },
    "width not of 32": {"family": "llama", "n_embd": 72, "n_heads": 6, "n_kv_heads": 3, "n_ff": 100},
}


def exported(tmp_path, type_name="f32", name="base.gguf", source="hf", **options):
    path = tmp_path / name
    result = export_base(tmp_path / source, path, TYPES[type_name], Options(**options))
    return path, result


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(tmp_path, case):
    folder = tiny_checkpoint(tmp_path / "hf", **CASES[case])
    path, _ = exported(tmp_path)
    # beyond the 64 positions at which the scaled variants begin to differ
    count = 160 if "rope_scaling" in CASES[case] else 48
    gelu_table = CASES[case]["family"] == "gemma3"
    assert largest_difference(folder, path, N_VOCAB, count, gelu_table=gelu_table) <= BOUND
    if gelu_table:
        # ggml's rounding of GELU, and nothing else
        assert largest_difference(folder, path, N_VOCAB, count) <= 10 * BOUND


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"rope_scaling": LLAMA3_SCALING, "rope_theta": 50_000.0}),
        ("qwen3", {"rope_scaling": LLAMA3_SCALING, "rope_theta": 50_000.0}),
        ("mistral", {"rope_theta": 50_000.0}),
        ("qwen2", {"rope_scaling": YARN, "rope_theta": 50_000.0}),
        ("gemma3", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 50_000.0}),
    ],
    ids=str,
)
def test_transformers_4_and_5_give_the_same_file(tmp_path, family, fields):
    folder = tiny_checkpoint(tmp_path / "hf", family, **fields)
    saved, _ = exported(tmp_path)
    as_transformers_4(folder)
    assert "rope_theta" in (folder / "config.json").read_text() and "rope_parameters" not in config_of(folder)
    four, _ = exported(tmp_path, name="four.gguf")
    as_transformers_5(folder)
    assert "rope_theta" not in config_of(folder)
    five, _ = exported(tmp_path, name="five.gguf")
    assert four.read_bytes() == five.read_bytes() == saved.read_bytes()
    architecture = GgufFile.open(five).get("general.architecture")
    assert GgufFile.open(five).get(f"{architecture}.rope.freq_base") == 50_000.0


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("family", "fields", "said"),
    [
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("smollm3", {"use_sliding_window": True}, "use_sliding_window = True"),
        ("granite", {"logits_scaling": 0.0}, "logits_scaling is 0.0"),
        ("olmo2", {"head_dim": 32}, "heads x head size = width"),
        ("hunyuan", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "rope_parameters": None}, "'dynamic'"),
        ("llama", {"rope_scaling": ALPHA, "rope_parameters": None}, "'dynamic'"),
        ("exaone4", {"sliding_window": 64}, "sliding_window = 64"),
        ("gemma3", {"query_pre_attn_scalar": 32}, "query_pre_attn_scalar is 32; llama.cpp takes 16"),
        ("gemma3", {"layer_types": ["sliding_attention"] * 3 + ["full_attention"] * 3}, "pattern of windows"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ("gemma3", {"hidden_activation": "silu"}, "the activation 'silu'"),
    ],
    ids=str,
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path, family, fields, said):
    edit_config(tiny_checkpoint(tmp_path / "hf", family), **fields)
    with pytest.raises(UnsupportedError, match=said):
        exported(tmp_path)


def test_a_config_that_contradicts_itself_is_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path / "hf", "llama", rope_theta=50_000.0)
    as_transformers_4(folder)
    edit_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})
    with pytest.raises(UnsupportedError, match="contradict each other"):
        exported(tmp_path)


def test_shards_give_the_same_file(tmp_path):
    tiny_checkpoint(tmp_path / "hf", tied=False)
    whole, _ = exported(tmp_path, "q8_0")
    parts = tiny_checkpoint(tmp_path / "parts" / "hf", tied=False, max_shard_size="60KB")
    assert len(list(parts.glob("*.safetensors"))) > 3
    again, _ = exported(tmp_path / "parts", "q8_0")
    assert again.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("type_name", ["q8_0", "f16", "bf16"])
@pytest.mark.parametrize("shape", [{"n_embd": 64}, {"n_embd": 72, "n_heads": 6, "n_kv_heads": 3, "n_ff": 100}])
def test_tensors_equal_llama_cpp_quantiser(tmp_path, type_name, shape):
    tiny_checkpoint(tmp_path / "hf", tied=False, **shape)
    source, _ = exported(tmp_path)
    ours = GgufFile.open(exported(tmp_path, type_name, "ours.gguf")[0])
    llama = lib()
    params = llama.llama_model_quantize_default_params()
    params.ftype = TYPES[type_name].ftype
    peer = tmp_path / "peer.gguf"
    with quiet_logs():
        assert llama.llama_model_quantize(str(source).encode(), str(peer).encode(), ctypes.byref(params)) == 0
    theirs = GgufFile.open(peer)
    assert set(ours.tensors) == set(theirs.tensors)
    for name, info in ours.tensors.items():
        assert info.type is theirs.tensors[name].type, name
        assert np.array_equal(ours.raw(name), theirs.raw(name)), name
    assert ours.get("general.file_type") == theirs.get("general.file_type")


def test_head_of_a_tied_model_written_out(tmp_path):
    folder = tiny_checkpoint(tmp_path / "hf")
    path, _ = exported(tmp_path, output_weight=True)
    file = GgufFile.open(path)
    assert np.array_equal(file.raw("output.weight"), file.raw("token_embd.weight"))
    assert largest_difference(folder, path, N_VOCAB) <= BOUND


def test_keys(tmp_path):
    folder = tiny_checkpoint(tmp_path / "hf", rope_scaling=LLAMA3_SCALING)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# A model\n")
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1})
    )
    path, result = exported(tmp_path, "bf16", name="base.gguf")
    file = GgufFile.open(path)
    assert file.get("general.license") == "apache-2.0"
    assert file.get("general.file_type") == 32
    assert file.get("general.sampling.top_k") == 20
    assert file.get("general.sampling.temp") == pytest.approx(0.7)
    assert file.get("general.sampling.penalty_repeat") == pytest.approx(1.1)
    assert file.get("llama.rope.scaling.type") is None
    assert file.tensors["rope_freqs.weight"].shape == (8,)
    assert result.types == {"BF16": 15, "F32": 6}
    assert "<|im_start|>" in file.get("tokenizer.chat_template")


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def left_behind(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir() if path.name != "hf")


def test_every_wrong_tensor_is_named_at_once(tmp_path):
    folder = tiny_checkpoint(tmp_path / "hf")

    def change(weights):
        del weights["model.layers.0.mlp.up_proj.weight"]
        weights["model.layers.1.self_attn.q_proj.weight"] = torch.zeros(8, 64)
        weights["model.layers.9.extra.weight"] = torch.zeros(4)

    edit_weights(folder, change)
    with pytest.raises(InputError) as caught:
        exported(tmp_path)
    assert len(caught.value.problems) == 3
    assert left_behind(tmp_path) == []


def test_every_unsupported_setting_is_named_at_once(tmp_path):
    folder = tiny_checkpoint(tmp_path / "hf", "qwen2")
    as_transformers_4(folder)
    edit_config(
        folder,
        rope_scaling={"rope_type": "dynamic", "factor": 2.0},
        hidden_act="gelu",
        use_sliding_window=True,
        quantization_config={"quant_method": "gptq"},
    )
    with pytest.raises(UnsupportedError) as caught:
        exported(tmp_path)
    assert len(caught.value.problems) == 4


def test_unknown_architecture_lists_the_known_ones(tmp_path):
    folder = tiny_checkpoint(tmp_path / "hf")
    edit_config(folder, architectures=["GPT2LMHeadModel"])
    with pytest.raises(UnsupportedError, match="GPT2LMHeadModel") as caught:
        exported(tmp_path)
    assert "Qwen3ForCausalLM" in caught.value.hint


def test_untied_model_without_head(tmp_path):
    folder = tiny_checkpoint(tmp_path / "hf")
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(InputError, match="do not agree") as caught:
        exported(tmp_path)
    assert "tie_word_embeddings" in caught.value.hint


def test_nan_is_refused_and_nothing_stays(tmp_path):
    folder = tiny_checkpoint(tmp_path / "hf")
    edit_weights(folder, lambda weights: weights["model.layers.0.mlp.up_proj.weight"][3].fill_(float("nan")))
    with pytest.raises(DamagedError) as caught:
        exported(tmp_path, "q8_0")
    assert caught.value.problems == ("model.layers.0.mlp.up_proj.weight holds NaN or infinity",)
    assert left_behind(tmp_path) == []


def test_bf16_numbers_never_overflow_f16(tmp_path):
    folder = tiny_checkpoint(tmp_path / "hf", dtype=torch.bfloat16)
    edit_weights(folder, lambda weights: weights["model.layers.1.mlp.down_proj.weight"][0].fill_(70_000.0))
    with pytest.raises(UnsupportedError) as caught:
        exported(tmp_path, "f16")
    assert "7.01e+04" in caught.value.problems[0]
    # the float file for llama.cpp's quantiser is BF16 here, which holds them
    path, result = exported(tmp_path, "q6_k")
    assert result.intermediate == "bf16"
    assert path.exists()


@pytest.mark.parametrize(("dtype", "between"), [(torch.float16, "f16"), (torch.float32, "f32")])
def test_intermediate_holds_the_checkpoint_exactly(tmp_path, dtype, between):
    tiny_checkpoint(tmp_path / "hf", dtype=dtype)
    assert exported(tmp_path, "q4_0")[1].intermediate == between


def test_pickle_and_adapter_and_nothing(tmp_path):
    folder = tiny_checkpoint(tmp_path / "hf")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedError, match="pickles") as caught:
        exported(tmp_path)
    assert "save_pretrained" in caught.value.hint
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="PEFT adapter"):
        exported(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        exported(tmp_path, source="nowhere")


def test_cut_shard_and_missing_shard(tmp_path):
    folder = tiny_checkpoint(tmp_path / "hf", max_shard_size="60KB")
    shards = sorted(folder.glob("*.safetensors"))
    shards[1].write_bytes(shards[1].read_bytes()[:-100])
    with pytest.raises(DamagedError, match="not what its header says"):
        exported(tmp_path)
    shards[0].unlink()
    shards[1].unlink()
    with pytest.raises(InputError) as caught:
        exported(tmp_path)
    assert len(caught.value.problems) == 2


def test_existing_file_is_kept_unless_forced(tmp_path):
    tiny_checkpoint(tmp_path / "hf")
    (tmp_path / "base.gguf").write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already"):
        exported(tmp_path)
    assert (tmp_path / "base.gguf").read_bytes() == b"mine"
    exported(tmp_path, force=True)
    assert GgufFile.open(tmp_path / "base.gguf").get("general.architecture") == "llama"


def test_full_disk_is_said_before(tmp_path, monkeypatch):
    tiny_checkpoint(tmp_path / "hf")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DoesNotFitError, match="1000 B are free"):
        exported(tmp_path)
    assert left_behind(tmp_path) == []


@pytest.mark.reference
def test_stories260k(tmp_path, shared_data):
    folder = shared_data / "stories260K" / "hf"
    path = tmp_path / "stories.gguf"
    result = export_base(folder, path, TYPES["f32"])
    assert result.pre_tokenizer is None
    assert result.n_texts_compared > 500
    assert largest_difference(folder, path, 512, 200) <= BOUND


def test_a_head_of_its_own_is_kept_whatever_config_json_says(tmp_path):
    folder = tiny_checkpoint(tmp_path / "hf", tied=False)
    edit_config(folder, tie_word_embeddings=True)
    result = export_base(folder, tmp_path / "b.gguf", TYPES["f32"])
    assert any("another head" in note for note in result.notes)
    head = load_file(folder / "model.safetensors")["lm_head.weight"].numpy()
    file = GgufFile.open(tmp_path / "b.gguf")
    assert np.array_equal(file.array("output.weight"), head)
    # The proof's reference has that head too, whatever transformers makes of config.json.
    peft = real_adapter(tmp_path / "peft", folder, r=8, lora_alpha=16)
    export_lora(peft, tmp_path / "b.gguf", tmp_path / "a.gguf", kind="f32")
    report = verify(
        peft, base=tmp_path / "b.gguf", lora=tmp_path / "a.gguf", hf=folder, prompts=(Prompt("Hello"),), max_tokens=4
    )
    assert report.passed, report.failures
    # A copy of the embedding is no head of its own.
    same = tiny_checkpoint(tmp_path / "same")
    tensors = load_file(same / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, same / "model.safetensors")
    result = export_base(same, tmp_path / "same.gguf", TYPES["f32"])
    assert not any("another head" in note for note in result.notes)
    assert "output.weight" not in GgufFile.open(tmp_path / "same.gguf").tensors


DATED = "{% for m in messages %}{{ strftime_now('%d %b %Y') }}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def test_a_template_is_tried_and_a_date_in_it_told_or_fixed(tmp_path):
    folder = tiny_checkpoint(tmp_path / "hf", chat_template=DATED)
    result = export_base(folder, tmp_path / "b.gguf", TYPES["f32"])
    assert any("today's date" in note for note in result.notes)
    day = datetime.date(2024, 7, 26)
    for source, name, type in ((folder, "c.gguf", TYPES["f32"]), (tmp_path / "b.gguf", "d.gguf", None)):
        result = export_base(source, tmp_path / name, type, Options(date=day))
        assert not any("today's date" in note for note in result.notes)
        template = ChatTemplate.of(GgufFile.open(tmp_path / name))
        assert template.render([{"role": "user", "content": "Hi"}]) == "26 Jul 2024<|im_start|>Hi<|im_end|>"
    (folder / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    with pytest.raises(InputError, match=r"takes no conversation: .*never"):
        export_base(folder, tmp_path / "e.gguf", TYPES["f32"])


def test_named_templates_that_nobody_uses_need_not_compile(tmp_path):
    folder = tiny_checkpoint(tmp_path / "hf", chat_template=None)
    templates = [{"name": "default", "template": DATED}, {"name": "tool_use", "template": "{% for %}"}]
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": templates}))
    export_base(folder, tmp_path / "b.gguf", TYPES["f32"])
    file = GgufFile.open(tmp_path / "b.gguf")
    assert (file.get("tokenizer.chat_template"), file.get("tokenizer.chat_template.tool_use")) == (DATED, "{% for %}")
