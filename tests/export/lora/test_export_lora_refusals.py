"""Every adapter that a GGUF cannot hold, or that is wrong, is refused with all its reasons, and nothing is written."""

import json
import math
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from build_gguf import tiny_base
from build_peft import K0, Q0, pair, written_adapter
from slm_edge.edge.errors import DamagedError, InputError, SlmEdgeError, UnsupportedError
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.export.lora.lora import export_lora

V1 = "model.layers.1.self_attn.v_proj"
EMBED = "model.embed_tokens"


def refused(folder, base, error=SlmEdgeError, **options):
    """The error of an export; nothing may be left behind."""
    output = folder.parent / "out" / "a.gguf"
    output.parent.mkdir(exist_ok=True)
    with pytest.raises(error) as caught:
        export_lora(folder, base, output, **options)
    assert list(output.parent.iterdir()) == []
    return caught.value


REFUSALS = [
    ({"use_dora": True}, "use_dora"),
    ({"lora_bias": True}, "lora_bias"),
    ({"bias": "all"}, 'bias is "all"'),
    ({"bias": "lora_only"}, "bias='none'"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"peft_type": "IA3"}, 'peft_type is "IA3"'),
    ({"peft_type": None}, "peft_type is null"),
    ({"task_type": "SEGMENTATION"}, "SEGMENTATION"),
    ({"target_parameters": ["experts.w"]}, "target_parameters"),
    ({"use_qalora": True}, "use_qalora"),
    ({"kasa_config": {"beta": 1}}, "kasa_config"),
    ({"arrow_config": {"top_k": 1}}, "arrow_config"),
    ({"alora_invocation_string": "go"}, "alora_invocation_tokens"),
    ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
    ({"init_lora_weights": "olora"}, "olora"),
    ({"a_field_of_tomorrow": True}, "a_field_of_tomorrow"),
]


@pytest.mark.parametrize(("config", "words"), REFUSALS, ids=lambda value: str(value)[:40])
def test_unsupported_configs_are_refused(tmp_path, base, config, words):
    folder = written_adapter(tmp_path / "peft", pair(Q0, 64, 64), **config)
    error = refused(folder, base, UnsupportedError)
    assert words in str(error)
    assert error.exit_code == 3


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"r": 0}, "r is 0"),
        ({"r": "4"}, 'r is "4"'),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"lora_alpha": math.nan}, "lora_alpha is NaN"),
        ({"lora_alpha": 0}, "scale is 0"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"alpha_pattern": {"(": 4}}, "not a regular expression"),
        # Each tries some 2^30 ways through the name of a module.
        ({"rank_pattern": {r"((\w|\.)+)+!": 4}}, "rank_pattern: its regular expressions take more than 2 s"),
        ({"alpha_pattern": {r"([a-z_]+|.)*!": 4, "q_proj": 4}}, "alpha_pattern: its regular expressions take"),
        ({"alpha_pattern": {"q_proj": True}}, "alpha_pattern['q_proj']"),
        ({"rank_pattern": {"q_proj": 2}}, "another rank than the config says"),
        ({"alora_invocation_tokens": []}, "alora_invocation_tokens"),
        ({"alora_invocation_tokens": [10**6]}, "names token 1000000"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_configs_are_refused(tmp_path, base, config, words):
    folder = written_adapter(tmp_path / "peft", pair(Q0, 64, 64), **config)
    error = refused(folder, base, InputError)
    assert words in str(error)


def vector(n):
    return np.ones(n, np.float32)


A, B = f"base_model.model.{Q0}.lora_A.weight", f"base_model.model.{Q0}.lora_B.weight"
EMBED_COPY = f"base_model.model.{EMBED}.base_layer.weight"
TENSOR_REFUSALS = [
    ({f"base_model.model.{Q0}.lora_magnitude_vector": vector(64)}, "DoRA's magnitude vectors", UnsupportedError),
    ({f"base_model.model.{Q0}.lora_B.bias": vector(64)}, "biases of the adapter", UnsupportedError),
    ({f"base_model.model.{Q0}.base_layer.bias": vector(64)}, "biases of the base", UnsupportedError),
    ({"base_model.model.lm_head.weight": np.ones((9, 64), np.float32)}, "a whole embedding or head", UnsupportedError),
    ({f"base_model.model.{EMBED}.weight": np.ones((9, 64), np.float32)}, "resized vocabulary", UnsupportedError),
    ({"base_model.model.score.weight": vector(9)}, "no LoRA (modules_to_save)", UnsupportedError),
    ({f"base_model.model.{EMBED}.token_adapter.trainable_tokens_delta": vector(9)}, "token rows", UnsupportedError),
    ({"base_model.model.something": vector(9)}, "tensors of an unknown kind", UnsupportedError),
    ({A: np.full((4, 64), np.nan, np.float32)}, "lora_A.weight holds NaN", InputError),
    ({B: np.full((64, 4), np.inf, np.float32)}, "lora_B.weight holds infinity", InputError),
    ({B: np.full((64, 4), 7e4, np.float32)}, "lora_B.weight reaches 7e+04", InputError),
    ({A: np.ones((4, 64), np.int32)}, "matrices of I32", UnsupportedError),
    ({A: np.ones((4, 32), np.float32)}, "is 32 -> 64, the base's 64 -> 64", InputError),
    ({A: np.ones((2, 64), np.float32)}, "do not have the shapes (rank, in) and (out, rank)", InputError),
    ({A: vector(64)}, "do not have the shapes (rank, in) and (out, rank)", InputError),
    ({B: np.zeros((64, 4), np.float32)}, "was it saved before training", InputError),
    ({EMBED_COPY: np.ones((278, 64), np.float32)}, "a copy of a layer that has no adapter", InputError),
    (pair("model.layers.7.self_attn.q_proj", 64, 64), "no such matrix", InputError),
    (pair("model.layers.0.mlp.router", 64, 64), "no such matrix", InputError),
    (pair("model.layers.0.input_layernorm", 64, 64), "no such matrix", InputError),
    (pair("transformer.h.0.attn", 64, 64), "no such matrix", InputError),
]


@pytest.mark.parametrize(("tensors", "words", "kind"), TENSOR_REFUSALS, ids=lambda value: str(value)[:50])
def test_unfitting_tensors_are_refused(tmp_path, base, tensors, words, kind):
    folder = written_adapter(tmp_path / "peft", pair(Q0, 64, 64) | tensors)
    error = refused(folder, base, kind, kind="f32")
    assert words in str(error)


def test_half_a_pair_is_refused(tmp_path, base):
    tensors = pair(Q0, 64, 64) | pair(K0, 64, 32)
    del tensors[B]
    error = refused(written_adapter(tmp_path / "peft", tensors), base, InputError)
    assert f"half of a pair is missing: {Q0}.lora_B.weight" in str(error)


def test_a_rank_above_the_matrix_is_refused(tmp_path, base):
    error = refused(written_adapter(tmp_path / "peft", pair(K0, 64, 32, rank=80), r=80), base, InputError)
    assert "rank 80 on 64 -> 32" in str(error)


def test_an_adapter_of_another_base_is_refused(tmp_path, good):
    other = tiny_base(tmp_path / "other.gguf", n_embd=96, n_heads=6, n_kv_heads=3)
    error = refused(good, other, InputError)
    assert f"{Q0} is 64 -> 64, the base's 96 -> 96; {K0} is 64 -> 32, the base's 96 -> 48" in str(error)


def test_a_fingerprint_of_another_base_is_refused(tmp_path, base, good):
    (good / "train.json").write_text(json.dumps({"base": {"fingerprint": "0" * 64}, "recipe": {"task": "math"}}))
    assert "trained on another base" in str(refused(good, base, InputError))
    mine = BaseInfo.open(base).fingerprint
    (good / "train.json").write_text(json.dumps({"base": {"fingerprint": mine}, "recipe": {"task": "math"}}))
    assert export_lora(good, base, tmp_path / "a.gguf").info.task_name == "math"


def embedding_pair(n_vocab, n_embd, rank=4):
    rng = np.random.default_rng(0)
    return {
        f"base_model.model.{EMBED}.lora_embedding_A": rng.standard_normal((rank, n_vocab)).astype(np.float32),
        f"base_model.model.{EMBED}.lora_embedding_B": rng.standard_normal((n_embd, rank)).astype(np.float32),
    }


def test_embedding_and_head_need_a_head_of_its_own(tmp_path, base):
    n_vocab = BaseInfo.open(base).n_vocab
    folder = written_adapter(tmp_path / "peft", embedding_pair(n_vocab, 64) | pair("lm_head", 64, n_vocab))
    error = refused(folder, base, UnsupportedError)
    assert f"{EMBED}; lm_head" in str(error)
    assert "slm-edge export base" in str(error)
    assert "--output-weight" in str(error)


def test_a_resized_vocabulary_is_refused(tmp_path):
    untied = tiny_base(tmp_path / "untied.gguf", tied=False)
    n_vocab = BaseInfo.open(untied).n_vocab
    folder = written_adapter(tmp_path / "peft", embedding_pair(n_vocab + 8, 64) | pair("lm_head", 64, n_vocab + 8))
    error = refused(folder, untied, InputError)
    assert "the vocabulary was resized" in str(error)


def test_copies_must_be_the_bases_own(tmp_path):
    untied = tiny_base(tmp_path / "untied.gguf", tied=False)
    file = GgufFile.open(untied)
    own = file.array("token_embd.weight")
    tensors = embedding_pair(len(own), 64)
    folder = written_adapter(tmp_path / "own", tensors | {EMBED_COPY: own})
    assert export_lora(folder, untied, tmp_path / "a.gguf").info.targets == ("token_embd.weight",)
    turned = written_adapter(tmp_path / "other", tensors | {EMBED_COPY: own[::-1].copy()})
    assert "its copy of the base's layer differs" in str(refused(turned, untied, InputError))
    longer = written_adapter(tmp_path / "longer", tensors | {EMBED_COPY: np.concatenate([own, own[:8]])})
    assert "the vocabulary was resized" in str(refused(longer, untied, InputError))


def test_all_reasons_come_at_once(tmp_path, base):
    tensors = pair(Q0, 64, 64) | pair(V1, 32, 32) | {A: np.full((4, 64), np.nan, np.float32)}
    tensors |= {f"base_model.model.model.layers.{i}.mlp.up_proj.lora_magnitude_vector": vector(8) for i in range(5)}
    folder = written_adapter(
        tmp_path / "peft", tensors, use_dora=True, modules_to_save=["lm_head"], bias="all", rank_pattern={"v_proj": 2}
    )
    error = refused(folder, base, InputError)
    assert len(error.problems) == 7
    for words in (
        "use_dora",
        "modules_to_save",
        "bias is",
        "magnitude vectors",
        "and 2 more",
        "NaN",
        "32 -> 32",
        "config 2",
    ):
        assert words in str(error)


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path, base, good):
    (good / "adapter_model.safetensors").rename(good / "adapter_model.bin")
    error = refused(good, base, UnsupportedError)
    assert "pickle" in str(error)
    assert "weights_only=True" in error.hint


def test_the_way_to_convert_a_pickle_works(tmp_path, base, good):
    import torch
    from safetensors.numpy import load_file

    tensors = load_file(good / "adapter_model.safetensors")
    torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, good / "adapter_model.bin")
    (good / "adapter_model.safetensors").unlink()
    command = re.search(r"python -c .*", refused(good, base).hint)[0]
    _, flag, code = shlex.split(command)
    subprocess.run([sys.executable, flag, code], cwd=good, check=True)
    assert export_lora(good, base, tmp_path / "a.gguf").info.n_pairs == 2


def test_what_is_no_peft_folder_is_refused(tmp_path, base, good):
    assert "no such folder" in str(refused(tmp_path / "nowhere", base, InputError))
    assert "is a file" in str(refused(good / "adapter_config.json", base, InputError))
    (tmp_path / "empty").mkdir()
    assert "holds no adapter_config.json" in str(refused(tmp_path / "empty", base, InputError))
    only = written_adapter(tmp_path / "only", {})
    (only / "adapter_model.safetensors").unlink()
    assert "there is no adapter_model.safetensors" in str(refused(only, base, InputError))
    none = written_adapter(tmp_path / "none", {})
    assert "no LoRA matrices" in str(refused(none, base, InputError))
    (good / "adapter_config.json").write_text("[1]")
    assert "does not hold a JSON object" in str(refused(good, base, InputError))


def test_a_cut_file_is_damaged(tmp_path, base, good):
    path = good / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refused(good, base, DamagedError)


def test_an_adapter_that_lacks_what_its_config_names_is_refused(tmp_path, base):
    both = pair(Q0, 64, 64) | pair(K0, 64, 32)
    config = {"target_modules": ["q_proj", "k_proj", "c_attn"]}
    problems = str(refused(written_adapter(tmp_path / "a", both, **config), base).problems)
    assert "self_attn.q_proj of layers 1" in problems and "self_attn.k_proj of layers 1" in problems
    first = config | {"layers_to_transform": [0]}
    problems = str(refused(written_adapter(tmp_path / "b", pair(Q0, 64, 64), **first), base).problems)
    assert "k_proj of layers 0" in problems and "q_proj" not in problems
    without = {"exclude_modules": ["layers.1.self_attn.q_proj", "1.self_attn.k_proj"]}
    for number, fields in enumerate(({"layers_to_transform": 0}, without)):
        whole = written_adapter(tmp_path / f"good{number}", both, **config, **fields)
        export_lora(whole, base, tmp_path / f"{number}.gguf")
