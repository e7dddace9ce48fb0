"""The engine against weights merged by numpy, and its order of freeing."""

import gguf
import numpy as np
import pytest
from build_gguf import tiny_adapter, write_gguf
from slm_edge.edge.errors import DoesNotFitError, EngineError, InputError
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.llama.context import Context
from slm_edge.edge.llama.model import Model
from slm_edge.edge.llama.sampling import Sampler, Sampling

EXACT = {"threads": 1, "kv_type": "f32", "flash_attention": "off", "n_ctx_tokens": 256}


@pytest.fixture(scope="module")
def adapter(base):
    return tiny_adapter(base.with_name("adapter.gguf"), base, rank=4, alpha=6)


@pytest.fixture
def model(base):
    with Model.load(base) as model:
        yield model


def merged(base, parts, dest):
    """The base with W + scale x alpha / rank x B A in place of W, computed here in float64."""
    file = GgufFile.open(base)
    arrays = {name: file.array(name) for name in file.tensors}
    for path, scale in parts:
        lora = GgufFile.open(path)
        alpha = lora.get("adapter.lora.alpha")
        for name in lora.tensors:
            if name.endswith(".lora_a"):
                target = name.removesuffix(".lora_a")
                a, b = (lora.array(f"{target}.{part}").astype(np.float64) for part in ("lora_a", "lora_b"))
                arrays[target] = (arrays[target] + scale * alpha / b.shape[1] * (b @ a)).astype(np.float32)
    keys = {
        key: (entry.value, *(gguf.GGUFValueType(kind) for kind in (entry.type, entry.element_type) if kind is not None))
        for key, entry in file.metadata.items()
        if key != "general.architecture"
    }
    return write_gguf(dest, file.get("general.architecture"), keys, list(arrays.items()))


def logits_of(path, ids, adapters=()):
    with Model.load(path) as model, Context(model, **EXACT) as context:
        context.set_adapters([(model.load_adapter(file), scale) for file, scale in adapters])
        context.decode(ids, 0)
        return context.logits()


def test_adapters_act_as_merged_weights_do(base, adapter, tmp_path, model):
    other = tiny_adapter(tmp_path / "other.gguf", base, rank=8, seed=9)
    ids = model.vocab.encode("the world and the rest")
    for parts in ([(adapter, 1.0)], [(adapter, -0.5)], [(adapter, 0.7), (other, 0.4)]):
        expected = logits_of(merged(base, parts, tmp_path / "merged.gguf"), ids)
        got = logits_of(base, ids, parts)
        assert np.abs(got - expected).max() < 1e-3
        assert np.abs(got - logits_of(base, ids)).max() > 0.5


def test_batches_and_rows(model):
    ids = model.vocab.encode("the world and the rest of it, again and again")
    with Context(model, **EXACT, n_batch_tokens=8, n_outputs_max=8) as small, Context(model, **EXACT) as large:
        small.decode(ids, 0, outputs="all")
        rows = [small.logits(i) for i in range(len(ids))]
        assert np.array_equal(small.logits(), rows[-1])
        for n in (1, 7, 8, 9, len(ids)):
            large.clear()
            large.decode(ids[:n], 0)
            assert np.abs(large.logits() - rows[n - 1]).max() < 1e-4
        large.remove(0, 5)
        large.decode(ids[5:], 5)
        assert np.abs(large.logits() - rows[-1]).max() < 1e-4


def test_sequences_do_not_see_each_other(model):
    texts = ["the world", "and the rest of it", "hello"]
    ids = [model.vocab.encode(text) for text in texts]
    alone = []
    with Context(model, **EXACT) as context:
        for tokens in ids:
            context.clear()
            context.decode([*tokens, 5], 0)
            alone.append(context.logits())
    for unified in (False, True):
        options = {**EXACT, "n_ctx_tokens": 768, "n_seq_max": 3, "kv_unified": unified}
        with Context(model, **options) as context:
            for sequence, tokens in enumerate(ids):
                context.decode(tokens, 0, sequence=sequence, outputs="none")
            context.decode_step([5, 5, 5], [len(tokens) for tokens in ids], [0, 1, 2])
            for row, expected in enumerate(alone):
                assert np.abs(context.logits(row) - expected).max() < 1e-4


def test_what_llama_cpp_would_abort_on_is_refused(model):
    for wrong in (
        {"n_seq_max": 4, "n_outputs_max": 2},
        {"n_seq_max": 0},
        {"n_seq_max": 300},
        {"n_batch_tokens": 0},
        {"kv_type": "q4_2"},
        {"kv_type": "q8_0", "flash_attention": "off"},
        {"threads": -1},
    ):
        with pytest.raises(InputError):
            Context(model, **{"n_ctx_tokens": 256, **wrong})
    with Context(model, **EXACT) as context:
        for call in (lambda: context.decode([], 0), lambda: context.decode([1, 2], 0, outputs="all")):
            with pytest.raises(InputError):
                call()
        with pytest.raises(EngineError, match="no logits"):
            context.logits()


def test_failures_carry_llama_cpps_words(model, tmp_path):
    with Context(model, **EXACT) as context:
        with pytest.raises(EngineError) as failed:
            context.decode([999_999], 0)
        assert "invalid token" in str(failed.value)
        context.decode([5], 0)
        with pytest.raises(EngineError, match="cannot decode"):
            context.decode([5], 77)
        with pytest.raises(DoesNotFitError, match="256 tokens has no room"):
            context.decode([5] * 256, 1)
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(model.path.read_bytes()[:5000])
    with pytest.raises(EngineError, match="cannot load the model") as failed:
        Model.load(damaged)
    assert failed.value.problems
    with pytest.raises(EngineError, match="cannot load the adapter"):
        model.load_adapter(model.path)
    for load in (Model.load, model.load_adapter):
        with pytest.raises(InputError, match="no such file"):
            load(tmp_path / "none.gguf")


def test_owners_can_be_closed_in_any_order(base, adapter):
    model = Model.load(base)
    first, second = Context(model, **EXACT), Context(model, **EXACT)
    a, b = model.load_adapter(adapter), model.load_adapter(adapter)
    assert a.n_tensors == 28
    for context in (first, second):
        context.set_adapters([(a, 1.0), (b, 0.5)])
        context.decode([5, 6], 0)
    with pytest.raises(InputError, match="twice"):
        first.set_adapters([(a, 1.0), (a, 1.0)])
    a.close()
    with pytest.raises(InputError, match="closed"):
        first.set_adapters([(a, 1.0)])
    second.close()
    first.decode([7], 2)
    model.close()
    for owner in (b, first, second, model, a):
        owner.close()
    with Model.load(base) as other, pytest.raises(InputError, match="another model"):
        Context(other, **EXACT).set_adapters([(b, 1.0)])


def test_greedy_and_top_k_agree_with_numpy(model):
    with Context(model, **EXACT) as context, Sampler(Sampling()) as greedy:
        context.decode(model.vocab.encode("the world"), 0)
        logits = context.logits()
        assert greedy.sample(context) == logits.argmax()
        with Sampler(Sampling(temperature=3.0, top_k=1)) as narrow:
            assert narrow.sample(context) == logits.argmax()
        best = set(np.argsort(logits)[-5:].tolist())
        with Sampler(Sampling(temperature=5.0, top_k=5, top_p=1.0, min_p=0.0, seed=3)) as five:
            assert {five.sample(context) for _ in range(300)} == best


def test_sampling_frequencies_are_the_softmax(model):
    with Context(model, **EXACT) as context:
        context.decode(model.vocab.encode("hello"), 0)
        logits = context.logits().astype(np.float64) / 2.0
        weights = np.exp(logits - logits.max())
        weights /= weights.sum()
        n = 4000
        with Sampler(Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=11)) as sampler:
            counts = np.bincount([sampler.sample(context) for _ in range(n)], minlength=len(weights))
    # Five standard deviations, over all tokens that are likely enough to count.
    sure = weights * n > 20
    assert (np.abs(counts - n * weights)[sure] < 5 * np.sqrt(n * weights * (1 - weights))[sure]).all()


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 2}, {"seed": 1 << 32}]
)
def test_sampling_out_of_range(wrong):
    with pytest.raises(InputError):
        Sampling(**wrong)


@pytest.mark.parametrize("kv_unified", [False, True])
def test_a_sequence_goes_from_a_context_of_one_size_into_any_other(model, kv_unified):
    """llama.cpp itself refuses bytes of a context with another number of streams."""
    ids = list(range(3, 60))
    many = {**EXACT, "n_ctx_tokens": 4 * 256, "n_seq_max": 4, "kv_unified": kv_unified}
    with Context(model, **EXACT) as one, Context(model, **many) as four, Context(model, **EXACT) as other:
        one.decode(ids[:-1], 0)
        blob = one.read_sequence(0)
        for sequence in range(4):
            four.decode([9] * sequence or [5], 0, sequence=sequence)
            assert four.write_sequence(sequence, blob)
            assert four.length(sequence) == len(ids) - 1
            back = four.read_sequence(sequence)
            assert back.size == blob.size
            assert other.write_sequence(0, back)
            other.decode_one(ids[-1], len(ids) - 1)
            four.decode(ids[-1:], len(ids) - 1, sequence=sequence)
            # Where there are more cells, attention adds up in another order.
            np.testing.assert_allclose(other.logits(), four.logits(), atol=1e-4)
        one.decode_one(ids[-1], len(ids) - 1)
        assert np.array_equal(one.logits(), other.logits())
        four.remove(2, 0)
        assert other.write_sequence(0, four.read_sequence(2))
        assert other.length(0) == 0
