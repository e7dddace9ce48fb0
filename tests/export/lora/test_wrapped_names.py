"""Adapters whose tensors were renamed by a wrapper give the GGUF of the plain ones; what is none is named."""

import json

import numpy as np
import pytest
from build_peft import pair, written_adapter
from slm_edge.edge.errors import InputError, SlmEdgeError, UnsupportedError
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.export.files.tensor_names import plain_name
from slm_edge.export.lora.lora import export_lora

P = "base_model.model."
PAIRS = pair("model.layers.0.self_attn.q_proj", 64, 64) | pair("model.layers.1.mlp.down_proj", 128, 64, seed=1)
WRAPPED = {
    "torch.compile": lambda n: "_orig_mod." + n,
    "torch.compile inside": lambda n: n.replace(P, P + "_orig_mod."),
    "torch.compile of a layer": lambda n: n.replace(".self_attn", "._orig_mod.self_attn").replace(
        ".mlp", "._orig_mod.mlp"
    ),
    "DDP": lambda n: "module." + n,
    "DDP inside": lambda n: n.replace(P, "base_model.model.module."),
    "DDP of torch.compile": lambda n: "module._orig_mod." + n,
    "FSDP": lambda n: n.replace(P, P + "_fsdp_wrapped_module."),
    "FSDP of everything": lambda n: "._fsdp_wrapped_module.".join(n.split(".", 1)),
    "activation checkpointing": lambda n: n.replace(".self_attn", "._checkpoint_wrapped_module.self_attn"),
    "adapter's name": lambda n: n.replace(".weight", ".default.weight"),
    "another adapter's name": lambda n: n.replace(".weight", ".my-task_2.weight"),
    "no prefix": lambda n: n.removeprefix(P),
    "half a prefix": lambda n: n.replace(P, "model.", 1).replace("model.model.", "model.", 1),
    "prefix twice": lambda n: n.replace(P, P + P),
    "multimodal": lambda n: n.replace(P + "model.", P + "model.language_model."),
    "multimodal of before": lambda n: n.replace(P, P + "language_model."),
    "multimodal, Idefics": lambda n: n.replace(P + "model.", P + "model.text_model."),
    "AutoModel, without a head": lambda n: n.replace(P + "model.", P),
    "AutoModel, bare": lambda n: n.removeprefix(P + "model."),
    "Lightning around PEFT": lambda n: "model." + n.replace(".weight", ".default.weight"),
    "Lightning around the model": lambda n: n.replace(P, "model."),
    "TRL's value head": lambda n: "pretrained_model." + n,
    "all at once": lambda n: (
        "module._orig_mod." + n.replace(P, P + P + "language_model.").replace(".weight", ".a.weight")
    ),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, base):
    folder = tmp_path_factory.mktemp("plain")
    export_lora(written_adapter(folder / "peft", PAIRS), base, folder / "a.gguf")
    return folder / "a.gguf"


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_change_nothing(tmp_path, base, plain, name):
    renamed = {WRAPPED[name](key): value for key, value in PAIRS.items()}
    modules = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    export_lora(written_adapter(tmp_path / "peft", renamed, target_modules=modules), base, tmp_path / "a.gguf")
    one, other = GgufFile.open(plain), GgufFile.open(tmp_path / "a.gguf")
    assert list(one.tensors) == list(other.tensors)
    assert one.data_start_bytes == other.data_start_bytes
    assert plain.read_bytes()[one.data_start_bytes :] == (tmp_path / "a.gguf").read_bytes()[one.data_start_bytes :]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["model.visual.blocks.0.attn.qkv"], "visual of a multimodal model"),
        (["model.vision_tower.encoder.layers.0.self_attn.q_proj"], "vision_tower of a multimodal model"),
        (["multi_modal_projector.linear_1"], "multi_modal_projector of a multimodal model"),
        (["model.audio_tower.layers.0.self_attn.q_proj"], "audio_tower of a multimodal model"),
    ],
)
def test_other_senses_are_named(tmp_path, base, names, reason):
    more = {key: value for name in names for key, value in pair(name, 64, 64).items()}
    with pytest.raises(UnsupportedError) as caught:
        export_lora(written_adapter(tmp_path / "peft", PAIRS | more), base, tmp_path / "a.gguf")
    assert reason in str(caught.value)


def test_two_adapters_in_one_file(tmp_path, base):
    two = {key.replace(".weight", f".{name}.weight"): value for key, value in PAIRS.items() for name in ("a", "b")}
    with pytest.raises(InputError, match="same matrix"):
        export_lora(written_adapter(tmp_path / "peft", two), base, tmp_path / "a.gguf")


def test_mlx_names_in_a_peft_folder(tmp_path, base):
    mlx = {
        key.removeprefix(P).replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b"): value
        for key, value in PAIRS.items()
    }
    with pytest.raises(SlmEdgeError, match="mlx-lm"):
        export_lora(written_adapter(tmp_path / "peft", mlx), base, tmp_path / "a.gguf")


def test_modules_to_save_are_called_so(tmp_path, base):
    more = {f"{P}score.weight": np.ones((2, 64), np.float32), f"{P}lm_head.weight": np.ones((4, 64), np.float32)}
    with pytest.raises(UnsupportedError) as caught:
        export_lora(written_adapter(tmp_path / "peft", PAIRS | more), base, tmp_path / "a.gguf")
    assert "modules_to_save" in str(caught.value) and "whole embedding or head" in str(caught.value)


def test_names_that_are_plain_stay():
    for name in ("model.layers.0.self_attn.q_proj.lora_A.weight", "lm_head.lora_embedding_A", "model.norm.weight"):
        assert plain_name(P + name) == plain_name(name) == name
    assert plain_name(f"{P}model.embed_tokens.lora_embedding_A.default") == "model.embed_tokens.lora_embedding_A"
    assert plain_name(f"{P}lm_head.base_layer.weight") == "lm_head.base_layer.weight"
    assert plain_name(f"{P}a.lora_B.bias") == "a.lora_B.bias"


def test_the_folder_above_names_those_below(tmp_path, base):
    for name in ("checkpoint-100", "checkpoint-200"):
        written_adapter(tmp_path / "out" / name, PAIRS)
    with pytest.raises(InputError) as caught:
        export_lora(tmp_path / "out", base, tmp_path / "a.gguf")
    assert "checkpoint-100, checkpoint-200" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"r": 10**39}, "r is 1"),
        ({"r": 10**299}, "r is 1"),
        ({"r": True}, "r is true"),
        ({"lora_alpha": 10**39}, "lora_alpha is 1"),
        ({"lora_alpha": 1e300}, "lora_alpha is 1e"),
        ({"lora_alpha": float("nan")}, "lora_alpha is NaN"),
        ({"rank_pattern": {"a{99999999999999999999}": 4}}, "not a regular expression"),
        ({"rank_pattern": {"q_proj": 10**39}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 10**39}}, "alpha_pattern"),
        ({"alora_invocation_tokens": [10**39]}, "alora_invocation_tokens"),
        ({"base_model_name_or_path": "a\ud800b"}, "general.base_model.0.name"),
        ({"revision": "a\ud800b", "base_model_name_or_path": "a/b"}, "general.base_model.0.version"),
    ],
)
def test_values_beyond_all_sizes(tmp_path, base, config, reason):
    with pytest.raises(SlmEdgeError) as caught:
        export_lora(written_adapter(tmp_path / "peft", PAIRS, **config), base, tmp_path / "a.gguf")
    assert reason in str(caught.value)
    assert not (tmp_path / "a.gguf").exists()


HEADERS = {
    "deep": b"[" * 50_000 + b"]" * 50_000,
    "deep in a value": b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "three offsets": b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}',
    "one offset": b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
    "no offsets": b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": null}}',
    "an offset of 5,000 digits": b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, ' + b"1" * 5000 + b"]}}",
    "negative sides": b'{"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}',
    "sides as text": b'{"a": {"dtype": "F32", "shape": "11", "data_offsets": [0, 4]}}',
    "sides as fractions": b'{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}',
    "many sides": b'{"a": {"dtype": "F32", "shape": [' + b",".join([b"1"] * 5000) + b'], "data_offsets": [0, 4]}}',
    "a type as list": b'{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
    "metadata as list": b'{"__metadata__": [1], "a": 3}',
    "a list": b"[1]",
    "a row as text": b'{"a": "b"}',
    "half a surrogate": b'{"a\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    "not UTF-8": b'{"\xff": 1}',
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_weights(tmp_path, base, name):
    folder = written_adapter(tmp_path / "peft", PAIRS)
    text = HEADERS[name]
    (folder / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    with pytest.raises(SlmEdgeError) as caught:
        export_lora(folder, base, tmp_path / "a.gguf")
    assert caught.value.exit_code == 5, caught.value


def test_pointers_of_git_lfs(tmp_path, base):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 5\n"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        folder = written_adapter(tmp_path / name, PAIRS)
        (folder / name).write_text(pointer)
        with pytest.raises(SlmEdgeError, match="Git LFS pointer") as caught:
            export_lora(folder, base, tmp_path / "a.gguf")
        assert "git lfs pull" in str(caught.value) and name in str(caught.value)
    (tmp_path / "pointer.gguf").write_text(pointer)
    with pytest.raises(InputError, match="git lfs pull"):
        GgufFile.open(tmp_path / "pointer.gguf")


def test_what_is_no_gguf_is_named(tmp_path):
    folder = written_adapter(tmp_path / "peft", PAIRS)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps({}))
    for path, word in (
        (folder, "slm-edge export lora"),
        (folder / "adapter_model.safetensors", "slm-edge export lora"),
        (tmp_path / "hf", "slm-edge export base"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(InputError) as caught:
            GgufFile.open(path)
        assert word in str(caught.value)


def test_verify_proves_renamed_adapters(tmp_path, slm_edge, one_thread):
    """Against PEFT itself, which loads plain names alone; megatron's field names no package that must be there."""
    from build_hf import tiny_checkpoint
    from build_peft import real_adapter
    from safetensors.torch import load_file, save_file
    from slm_edge.export.base.base import Options, export_base
    from slm_edge.export.base.quantize import TYPES

    hf = tiny_checkpoint(tmp_path / "hf", "llama")
    export_base(hf, tmp_path / "base.gguf", TYPES["f32"], Options())
    peft = real_adapter(tmp_path / "peft", hf)
    tensors = load_file(peft / "adapter_model.safetensors")
    rename = WRAPPED["all at once"]
    save_file({rename(name): value for name, value in tensors.items()}, peft / "adapter_model.safetensors")
    config = json.loads((peft / "adapter_config.json").read_text())
    (peft / "adapter_config.json").write_text(
        json.dumps(config | {"megatron_config": {"tensor_model_parallel_size": 2}})
    )
    export_lora(peft, tmp_path / "base.gguf", tmp_path / "a.gguf", kind="f32")
    words = ("--hf", hf, "--gguf", tmp_path / "base.gguf", "--lora", tmp_path / "a.gguf", "--max-tokens", 4)
    code, out, err = slm_edge("export", "verify", peft, *words, "--json")
    assert code == 0, err
    assert json.loads(out)["exact"]
