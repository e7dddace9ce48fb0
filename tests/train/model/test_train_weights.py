"""Frozen weights kept as a GGUF's blocks or as NF4: the same numbers, loss and gradients as dense ones have."""

import json

import gguf
import numpy as np
import pytest
import torch
from build_gguf import tiny_base
from build_hf import tiny_checkpoint
from click.testing import CliRunner
from slm_edge.edge.errors import InputError, UnsupportedError
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.gguf.types import GgmlType
from slm_edge.train.cli.group import train as train_command
from slm_edge.train.data.examples import Example
from slm_edge.train.model import attention
from slm_edge.train.model.bases import open_base
from slm_edge.train.model.blocks import DECODERS, dequantize
from slm_edge.train.model.frozen import BlockEmbedding, BlockLinear
from slm_edge.train.model.gguf_model import load_gguf_model
from slm_edge.train.model.lora import add_lora, trainable
from slm_edge.train.recipe import Recipe
from slm_edge.train.run.batches import pack
from slm_edge.train.run.loop import packed_loss
from slm_edge.train.tools.memory_shapes import SHAPES, TYPES, write_shape
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")
FLOATS = {GgmlType.F32: torch.float32, GgmlType.F16: torch.float16, GgmlType.BF16: torch.bfloat16}


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("kind", list(DECODERS), ids=lambda kind: kind.name)
def test_blocks_are_decoded_as_by_gguf_bit_for_bit(kind):
    rng = np.random.default_rng(int(kind))
    block_values, block_bytes = kind.block
    if kind in FLOATS:
        rows = torch.from_numpy(rng.standard_normal((5, 512)).astype(np.float32)).to(FLOATS[kind]).view(torch.uint8)
    else:
        rows = torch.from_numpy(rng.integers(0, 256, (5, 512 // block_values * block_bytes), np.uint8))
    theirs = gguf.quants.dequantize(rows.numpy(), gguf.GGMLQuantizationType(int(kind)))
    assert np.array_equal(dequantize(rows, kind).numpy(), theirs, equal_nan=True)


@pytest.fixture(scope="module", params=sorted(TYPES))
def file(request, tmp_path_factory):
    return write_shape(tmp_path_factory.mktemp("shape") / "tiny.gguf", SHAPES["tiny"], TYPES[request.param])


def some_rows(n_vocab=384):
    generator = torch.Generator().manual_seed(2)
    return [Example(tuple(torch.randint(0, n_vocab, (n,), generator=generator).tolist()), n // 2) for n in (9, 17, 12)]


def loss_and_gradients(model, recipe):
    torch.manual_seed(5)
    peft = add_lora(model, recipe, "base")
    for parameter in trainable(peft).values():
        torch.nn.init.normal_(parameter, std=0.05)
    loss = packed_loss(peft, pack(some_rows(), 0))
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in trainable(peft).items()}


def assert_alike(ours, theirs, rtol=1e-4):
    assert ours[0] == pytest.approx(theirs[0], rel=rtol)
    assert ours[1].keys() == theirs[1].keys()
    for name, grad in theirs[1].items():
        scale = float(grad.abs().max())
        assert scale > 0
        torch.testing.assert_close(ours[1][name], grad, rtol=rtol, atol=rtol * scale)


def test_training_through_blocks_has_the_gradients_of_the_dense_matrices(file):
    recipe = Recipe(task="math", rank=4)
    name = attention.register()
    coded = load_gguf_model(file, attention=name, weights="gguf")
    assert isinstance(coded.model.layers[0].self_attn.q_proj, BlockLinear)
    assert isinstance(coded.model.embed_tokens, BlockEmbedding)
    assert coded.lm_head.weight is coded.model.embed_tokens.weight
    frozen_bytes = sum(p.numel() * p.element_size() for p in {id(p): p for p in coded.parameters()}.values())
    assert frozen_bytes <= file.stat().st_size
    dense = load_gguf_model(file, attention=name)
    with torch.no_grad():
        # by transformers' own forward, the interleaved rows of q and k put back
        assert torch.equal(
            coded.model.layers[1].self_attn.k_proj.dense(), dense.model.layers[1].self_attn.k_proj.weight
        )
    assert_alike(loss_and_gradients(coded, recipe), loss_and_gradients(dense, recipe))


def test_dropout_and_biases_go_through_blocks_too(tmp_path):
    base = tiny_base(tmp_path / "qwen2.gguf", architecture="qwen2", tied=False)
    recipe = Recipe(task="math", rank=4, dropout=0.3)
    rows = some_rows(250)

    def result(weights):
        torch.manual_seed(5)
        peft = add_lora(load_gguf_model(base, attention=attention.register(), weights=weights), recipe, "base")
        peft.train()
        torch.manual_seed(6)
        loss = packed_loss(peft, pack(rows, 0))
        loss.backward()
        return loss.item(), {n: p.grad for n, p in trainable(peft).items() if "lora_B" in n}

    assert_alike(result("gguf"), result("f32"))


def test_a_block_linear_gives_its_input_the_dense_gradient():
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, 120, (24, 34 * 2), np.uint8))
    layer = BlockLinear(rows, GgmlType.Q8_0, torch.arange(24.0))
    x = torch.randn(3, 5, 64, requires_grad=True)
    layer(x).square().sum().backward()
    ours, x.grad = x.grad, None
    F.linear(x, dequantize(rows, GgmlType.Q8_0), layer.bias).square().sum().backward()
    torch.testing.assert_close(ours, x.grad)


def test_a_type_that_is_not_decoded_is_named(tmp_path):
    file = write_shape(tmp_path / "x.gguf", SHAPES["tiny"], GgmlType.Q4_0)
    known = GgufFile.open(file)
    at = file.read_bytes().find(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight") + 4 + 16
    content = bytearray(file.read_bytes())
    assert content[at] == GgmlType.Q4_0 == known.tensors["blk.0.ffn_up.weight"].type
    # 18 bytes of 256 / 8 values: only the type that the table names is another, of the same block size
    content[at] = GgmlType.IQ4_NL
    file.write_bytes(content)
    load_gguf_model(file, weights="gguf")
    without = dict(DECODERS)
    del DECODERS[GgmlType.IQ4_NL]
    try:
        with pytest.raises(UnsupportedError, match=r"ffn_up\.weight is IQ4_NL"):
            load_gguf_model(file, weights="gguf")
    finally:
        DECODERS.update(without)


def test_bf16_is_near_f32(file):
    recipe = Recipe(task="math", rank=4)
    name = attention.register()
    halved = load_gguf_model(file, attention=name, weights="bf16")
    assert halved.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    ours = loss_and_gradients(halved, recipe)
    theirs = loss_and_gradients(load_gguf_model(file, attention=name), recipe)
    assert ours[0] == pytest.approx(theirs[0], rel=0.02)
    assert all(grad.dtype == torch.float32 for grad in ours[1].values())
    # a number of bf16 has 8 bits: the whole gradient points where that of f32 does, and is as long
    halves, floats = (torch.cat([grads[key].flatten() for key in theirs[1]]) for grads in (ours[1], theirs[1]))
    assert F.cosine_similarity(halves, floats, dim=0) > 0.995
    assert float(halves.norm()) == pytest.approx(float(floats.norm()), rel=0.02)


def test_nf4_is_bitsandbytes_own(tmp_path):
    bnb = pytest.importorskip("bitsandbytes", reason="the extra nf4 is not installed")
    from slm_edge.train.model.nf4 import Nf4Linear

    torch.manual_seed(0)
    matrix = torch.randn(96, 128)
    theirs = bnb.nn.Linear4bit(
        128, 96, bias=False, compute_dtype=torch.float32, compress_statistics=True, quant_type="nf4"
    )
    theirs.weight = bnb.nn.Params4bit(matrix.clone(), requires_grad=False, quant_type="nf4", compress_statistics=True)
    theirs = theirs.to("cpu")
    ours = Nf4Linear(matrix)
    x = torch.randn(7, 128)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-4)
    assert 0.05 < (ours.dense() - matrix).abs().mean() / matrix.abs().mean() < 0.2
    assert ours.weight.numel() == 96 * 128 // 2
    assert ours.state_bytes() < ours.weight.numel()


@pytest.mark.parametrize("kind", ["gguf", "hf"])
def test_nf4_trains_with_the_gradients_of_its_dense_matrices(tmp_path, kind):
    pytest.importorskip("bitsandbytes", reason="the extra nf4 is not installed")
    if kind == "gguf":
        base = open_base(tiny_base(tmp_path / "b.gguf", n_layers=1))
    else:
        base = open_base(tiny_checkpoint(tmp_path / "b", "qwen2", tied=False))
    name = attention.register()
    model = base.load_model(name, "nf4")
    dense = base.load_model(name)
    with torch.no_grad():
        for path, layer in model.named_modules():
            if hasattr(layer, "dense"):
                dense.get_submodule(path).weight.copy_(layer.dense())
    recipe = Recipe(task="math", rank=4)
    rows = some_rows(250)

    def result(loaded):
        torch.manual_seed(5)
        peft = add_lora(loaded, recipe, "base")
        for parameter in trainable(peft).values():
            torch.nn.init.normal_(parameter, std=0.05)
        loss = packed_loss(peft, pack(rows, 0))
        loss.backward()
        return loss.item(), {n: p.grad for n, p in trainable(peft).items()}

    assert_alike(result(model), result(dense))


def test_blocks_need_a_gguf(tmp_path):
    base = open_base(tiny_checkpoint(tmp_path / "hf", "llama"))
    with pytest.raises(InputError, match="needs a GGUF base"):
        base.load_model("sdpa", "gguf")


def test_memory_is_measured_in_processes_of_their_own(tmp_path):
    file = write_shape(tmp_path / "tiny.gguf", SHAPES["tiny"], GgmlType.Q4_K)
    args = ["memory", str(file), "--weights", "f32", "--weights", "gguf", "--tokens", "32", "--json"]
    result = CliRunner().invoke(train_command, args, catch_exceptions=False)
    f32, blocks = json.loads(result.stdout)
    assert blocks["weights_bytes"] < f32["weights_bytes"]
    assert blocks["loss"] == pytest.approx(f32["loss"], rel=1e-4)
    assert f32["peak_bytes"] > f32["start_bytes"] > 0


def test_a_shape_that_there_is_not_is_refused():
    result = CliRunner().invoke(train_command, ["memory", "llama-9:q4_0"])
    assert isinstance(result.exception, InputError)
    assert "llama-3.2-1b:q4_0" in str(result.exception)
