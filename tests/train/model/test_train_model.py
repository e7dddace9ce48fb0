"""The model made from a GGUF computes what llama.cpp computes, and the packed pass what plain PEFT computes."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from build_gguf import tiny_base
from build_hf import LLAMA3_SCALING, as_transformers_4, edit_config, tiny_checkpoint
from build_models import two_models
from peft import PeftModel
from slm_edge.edge.errors import UnsupportedError
from slm_edge.edge.gguf.families import FAMILIES
from slm_edge.edge.gguf.other_bases import OTHER_FAMILIES
from slm_edge.edge.llama.context import Context
from slm_edge.edge.llama.model import Model
from slm_edge.export.base.base import Options, export_base
from slm_edge.export.base.quantize import TYPES
from slm_edge.train.data.examples import Example
from slm_edge.train.model.gguf_model import load_gguf_model
from slm_edge.train.model.lora import add_lora, trainable
from slm_edge.train.recipe import Recipe
from slm_edge.train.run.batches import pack
from slm_edge.train.run.loop import packed_loss
from slm_edge.train.run.loss import completion_loss
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.usefixtures("one_thread")
# Architecture, whether its head is tied, how many K/V heads
TRAINED = [
    *(("llama", True, 2), ("llama", False, 4), ("llama", True, 1), ("qwen2", True, 2), ("qwen3", False, 2)),
    *(("smollm3", True, 2), ("granite", True, 2), ("olmo2", False, 2), ("hunyuan-dense", True, 2)),
    *(("gemma3", True, 1), ("gemma3", False, 2), ("exaone4", True, 2)),
]


def llama_cpp_logits(path, ids):
    with (
        Model.load(path, repack=False) as model,
        Context(
            model, n_ctx_tokens=256, n_outputs_max=len(ids), threads=1, kv_type="f32", flash_attention="off"
        ) as context,
    ):
        context.decode(ids, 0, outputs="all")
        return np.stack([context.logits(at) for at in range(len(ids))])


@pytest.mark.parametrize(("architecture", "tied", "n_kv_heads"), TRAINED)
def test_logits_equal_llama_cpps(tmp_path, architecture, tied, n_kv_heads):
    name = FAMILIES[architecture].classes[0].name
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    base = tiny_base(tmp_path / "base.gguf", architecture=architecture, tied=tied, n_kv_heads=n_kv_heads, seed=3)
    ids = np.random.default_rng(0).integers(3, 250, 60).tolist()
    with torch.no_grad():
        ours = load_gguf_model(base)(input_ids=torch.tensor([ids])).logits[0].numpy()
    theirs = llama_cpp_logits(base, ids)
    # GELU comes from a table of F16 in ggml.
    assert np.abs(ours - theirs).max() <= (2e-2 if architecture == "gemma3" else 2e-3)
    assert np.abs(theirs).max() > 1


def test_no_row_says_that_it_is_trained_without_a_proof_here():
    """Phi-3's is in test_other_models.py."""
    assert {name for name, _, _ in TRAINED} == {name for name, row in FAMILIES.items() if "train" in row.uses}
    assert {name for name, row in OTHER_FAMILIES.items() if "train" in row.uses} == {"phi3"}


def test_llama_3s_rope_scaling_is_read_from_the_factors_of_the_file(tmp_path):
    scaling = {**LLAMA3_SCALING, "original_max_position_embeddings": 32}
    folder = tiny_checkpoint(tmp_path / "hf", "llama", rope_scaling=scaling, n_embd=128, n_heads=4)
    export_base(folder, tmp_path / "base.gguf", TYPES["f32"], Options(name="tiny"))
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 380, (1, 200)))
    with torch.no_grad():
        ours = load_gguf_model(tmp_path / "base.gguf")(input_ids=ids).logits
        blocks = load_gguf_model(tmp_path / "base.gguf", weights="gguf")(input_ids=ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits
        as_transformers_4(folder)
        edit_config(folder, rope_scaling=None)
        unscaled = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(blocks, theirs, rtol=1e-4, atol=1e-4)
    assert (unscaled - theirs).abs().max() > 1e-2


def test_what_has_no_entry_is_refused(tmp_path):
    base = tiny_base(tmp_path / "base.gguf", keys={"llama.rope.scaling.type": ("yarn", 8)})
    with pytest.raises(UnsupportedError, match="rope scaling 'yarn'"):
        load_gguf_model(base)


@pytest.mark.reference
def test_logits_of_the_starter_base_are_llama_cpps_up_to_its_activation_rounding(starter_base):
    # llama.cpp multiplies Q4_1 weights with activations rounded to 8 bits; the weights themselves are the same.
    with Model.load(starter_base, repack=False) as model:
        ids = model.vocab.encode(
            "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\nThe capital of France "
            "is Paris, a city on the river Seine in the north of the country. It has been the seat of its kings, and "
            "it is known for its museums, its bridges and a tower of iron that was built for the fair of 1889."
        )
    with torch.no_grad():
        ours = torch.log_softmax(load_gguf_model(starter_base)(input_ids=torch.tensor([ids])).logits[0], -1)
    theirs = torch.log_softmax(torch.from_numpy(llama_cpp_logits(starter_base, ids)), -1)
    kl = (theirs.exp() * (theirs - ours)).sum(-1)
    assert kl.mean() < 5e-3
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() > 0.9


def some_examples(prefix=5):
    generator = torch.Generator().manual_seed(1)
    sizes = ((7, 8), (12, 9), (3, 6), (12, 14))
    rows = [(torch.randint(0, 97, (n,), generator=generator).tolist(), n_prompt) for n, n_prompt in sizes]
    examples = [Example((*range(prefix), *ids), n_prompt) for ids, n_prompt in rows]
    # A conversation: what stands between two answers is not learned.
    examples[1] = dataclasses.replace(examples[1], gaps=((11, 14),))
    return examples


@pytest.mark.parametrize("prefix", [0, 3, 5])
@pytest.mark.parametrize("n_rows", [1, 4])
@pytest.mark.parametrize("window_tokens", [0, 4])
def test_rows_side_by_side_as_a_gpu_attends_have_the_same_loss_and_gradients(prefix, n_rows, window_tokens):
    model, _ = two_models(window_tokens=window_tokens)
    batch = pack(some_examples()[:n_rows], prefix)
    parameters = list(trainable(model).values())
    one_by_one = packed_loss(model, batch)
    expected = torch.autograd.grad(one_by_one, parameters)
    loss = packed_loss(model, dataclasses.replace(batch, padding=batch.layout.padding()))
    torch.testing.assert_close(loss, one_by_one, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("prefix", [0, 3, 5])
@pytest.mark.parametrize("window_tokens", [0, 4, 7])
def test_a_packed_pass_has_the_loss_and_gradients_of_each_row_alone(prefix, rslora, window_tokens):
    ours, theirs = two_models(rslora, window_tokens=window_tokens)
    examples = some_examples()
    loss = packed_loss(ours, pack(examples, prefix))
    loss.backward()
    expected = 0.0
    for example in examples:
        ids = torch.tensor([example.ids])
        labels = ids.clone()
        labels[:, : example.n_prompt] = -100
        for start, end in example.gaps:
            labels[:, start:end] = -100
        logits = theirs(input_ids=ids).logits[0, :-1]
        expected = expected + F.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum")
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    reference = trainable(theirs)
    assert trainable(ours).keys() == reference.keys()
    for name, parameter in trainable(ours).items():
        torch.testing.assert_close(parameter.grad, reference[name].grad, rtol=1e-4, atol=1e-4)


def test_nothing_but_the_adapter_is_trained():
    ours, _ = two_models()
    names = set(trainable(ours))
    assert names == {name for name, _ in ours.named_parameters() if "lora_" in name}
    assert len(names) == 2 * 7 * 2


def test_an_adapter_that_is_fresh_changes_nothing(tmp_path):
    base = tiny_base(tmp_path / "base.gguf")
    ids = torch.tensor([[5, 9, 30, 8, 70]])
    plain = load_gguf_model(base)
    with torch.no_grad():
        before = plain(input_ids=ids).logits
        after = add_lora(plain, Recipe(task="math"), "base")(input_ids=ids).logits
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-4)


def test_the_frozen_heads_loss_is_the_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 16, generator=generator, requires_grad=True)
    head = torch.randn(50, 16, generator=generator)
    targets = torch.randint(0, 50, (300,), generator=generator)
    loss = completion_loss(hidden, head, targets)
    (2 * loss).backward()
    ours, hidden.grad = hidden.grad, None
    expected = F.cross_entropy(hidden @ head.t(), targets, reduction="sum")
    (2 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(ours, hidden.grad, rtol=1e-4, atol=1e-5)
    assert completion_loss(hidden, head.clone().requires_grad_(), targets).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_a_written_adapter_loads_in_plain_peft(tmp_path):
    ours, theirs = two_models()
    ours.save_pretrained(str(tmp_path / "peft"), save_embedding_layers=False)
    base = theirs.unload()
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "peft"))
    ids = torch.tensor([[1, 5, 9, 44]])
    packed = pack([Example((1, 5, 9, 44), 2)], 0)
    with torch.no_grad():
        logits = loaded(input_ids=ids).logits[0]
        expected = F.cross_entropy(logits[1:3], ids[0, 2:], reduction="sum").item()
        assert packed_loss(ours, packed).item() == pytest.approx(expected, rel=1e-5)
