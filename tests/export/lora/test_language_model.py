"""A language model inside of a multimodal one: its base, and adapters trained on the whole, by the names of either."""

import json

import numpy as np
import pytest
import torch
import transformers
from build_hf import CHATML, SPECIALS, tiny_tokenizer
from build_peft import real_adapter
from compare_logits import GeluTable, gguf_logits, random_ids
from safetensors.torch import load_file, save_file
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.export.base.base import export_base
from slm_edge.export.base.quantize import TYPES
from slm_edge.export.lora.lora import export_lora
from slm_edge.export.proof.prompts import BUILT_IN
from slm_edge.export.proof.verify import verify

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Gemma 3 with a vision tower, as the 4B is published: what is usual is not said in its config.json."""
    folder = tmp_path_factory.mktemp("gemma") / "hf"
    tokenizer = tiny_tokenizer()
    text = {
        **{"vocab_size": tokenizer.get_vocab_size(), "hidden_size": 64, "intermediate_size": 128, "head_dim": 256},
        **{"num_hidden_layers": 6, "sliding_window": 24, "initializer_range": 0.15, "max_position_embeddings": 512},
    }
    vision = {
        **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"image_size": 16, "patch_size": 8},
    }
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "language_model" in name and name.endswith("norm.weight"):
                # Some releases of transformers begin it at 1, which doubles it: Gemma's norms are one more.
                weight.zero_()
    model.save_pretrained(folder)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIALS[0], eos_token=SPECIALS[2], pad_token=SPECIALS[0]
    )
    wrapped.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHATML)
    raw = json.loads((folder / "config.json").read_text())
    for name in ("num_attention_heads", "num_key_value_heads", "head_dim", "query_pre_attn_scalar", "layer_types"):
        raw["text_config"].pop(name, None)
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def text_logits(folder, ids):
    model = transformers.Gemma3ForConditionalGeneration.from_pretrained(folder).float().eval()
    for module in model.modules():
        if hasattr(module, "act_fn"):
            module.act_fn = GeluTable()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].numpy()


def renamed(folder, before, after):
    """The same tensors, with other names."""
    path = folder / "model.safetensors"
    tensors = {name.replace(before, after): value for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def test_its_base_is_the_language_model_alone(folder, tmp_path):
    export_base(folder, tmp_path / "base.gguf", TYPES["f32"])
    info = BaseInfo.open(tmp_path / "base.gguf")
    assert (info.architecture, info.n_heads, info.n_kv_heads, info.n_layers) == ("gemma3", 8, 4, 6)
    ids = random_ids(info.n_vocab)
    ours = gguf_logits(tmp_path / "base.gguf", ids)
    assert np.abs(ours - text_logits(folder, ids)).max() <= 2e-3
    # Names as other releases of transformers save them
    names = load_file(folder / "model.safetensors").keys()
    old = any(name.startswith("language_model.model.") for name in names)
    pair = ("language_model.model.", "model.language_model.")
    renamed(folder, *(pair if old else pair[::-1]))
    export_base(folder, tmp_path / "again.gguf", TYPES["f32"])
    renamed(folder, *(pair[::-1] if old else pair))
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "base.gguf").read_bytes()


def test_an_adapter_of_the_whole_model_is_proved_on_its_language_model(folder, tmp_path):
    base, lora = tmp_path / "base.gguf", tmp_path / "a.gguf"
    export_base(folder, base, TYPES["f32"])
    targets = r".*language_model.*\.(q_proj|v_proj|down_proj)"
    peft = real_adapter(tmp_path / "peft", folder, r=4, lora_alpha=16, target_modules=targets)
    assert any(".language_model.layers." in name for name in load_file(peft / "adapter_model.safetensors"))
    assert export_lora(peft, base, lora, kind="f32").info.n_pairs == 18
    report = verify(peft, base=base, lora=lora, prompts=BUILT_IN[:2], hf=folder, max_tokens=4, threads=1)
    assert report.passed and report.exact
    assert report.effect > 0.5
    assert report.max_logit_error <= 2e-3
