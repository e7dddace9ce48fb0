"""States that each token changes, and architectures without a row: answers are those of a fresh session."""

import json

import numpy as np
import pytest
import transformers
from build_gguf import WINDOW_TOKENS, tiny_adapter, tiny_base
from build_other import OTHERS, other_base
from build_other_tensors import ARRAY, F32, U32
from build_walks import adapters_of, same, some_text
from click.testing import CliRunner
from slm_edge.edge.cli.main import cli
from slm_edge.edge.errors import DoesNotFitError, InputError, UnsupportedError
from slm_edge.edge.gguf import adapter as adapter_checks
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.gguf.other_bases import OTHER_FAMILIES
from slm_edge.edge.llama.context import Context
from slm_edge.edge.llama.model import Model
from slm_edge.edge.options import CHUNK_TOKENS
from slm_edge.edge.prefix.cache import PrefixCache
from slm_edge.edge.prefix.chunks import KvRecord, PrefixStore, Section
from slm_edge.edge.session.session import Session


@pytest.fixture(scope="module", params=["lfm2", "qwen35", "granitehybrid"])
def base(request, tmp_path_factory):
    return other_base(tmp_path_factory.mktemp(request.param), request.param)[1]


@pytest.fixture(scope="module")
def two(base):
    return adapters_of(base)


def opened(base, adapters, **options):
    return Session.of_files(base, adapters, **({"threads": 1} | options))


def test_nothing_is_guessed_and_a_prefix_lasts_on_disk(base, two, tmp_path):
    system = some_text(np.random.default_rng(3), 120)
    prompt = "the sea and the " * 20
    found = []
    for options in ({}, {"speculate": "fast"}, {"prefix_cache": tmp_path / "kv"}, {"prefix_cache": tmp_path / "kv"}):
        with opened(base, two, **options) as session:
            answer = session.ask(prompt, system=system, adapter="a", max_tokens=30)
            found.append((answer.token_ids, answer.n_drafted_tokens))
            kept = answer.n_kept_tokens
    assert found == found[:1] * 4 and found[0][1] == 0
    assert kept > CHUNK_TOKENS


@pytest.mark.parametrize("architecture", ["internlm2", "phi3", "mistral3", "gemma3n", "gemma4"])
def test_an_architecture_without_a_row_runs_and_swaps(tmp_path, architecture):
    if architecture in OTHERS:
        base = other_base(tmp_path, architecture)[1]
        two = adapters_of(base)
    else:
        base = tiny_base(tmp_path / "base.gguf", architecture=architecture, tied=False)
        two = {name: (tiny_adapter(tmp_path / f"{name}.gguf", base, seed=seed), None) for seed, name in enumerate("ab")}
    info = BaseInfo.open(base)
    assert info.unproved[0] == f"the architecture {architecture}"
    assert ("lora" in info.family.uses) == (architecture in OTHER_FAMILIES)
    prompt = some_text(np.random.default_rng(4), 100)
    with opened(base, two) as session:
        answers = [session.use(name).ask(prompt, max_tokens=8) for name in ("a", "b", None, "a")]
    assert answers[3].token_ids == answers[0].token_ids and answers[3].n_kept_tokens >= CHUNK_TOKENS
    assert len({tuple(answer.token_ids) for answer in answers[:3]}) == 3


def test_a_pack_says_what_was_not_proved(tmp_path):
    base = tiny_base(tmp_path / "base.gguf", architecture="internlm2", tied=False)
    adapter = tiny_adapter(tmp_path / "a.gguf", base, seed=3)
    runner = CliRunner()
    options = ["pack", "build", "-o", tmp_path / "pack", "--base", base, "--adapter", f"math={adapter}"]
    result = runner.invoke(cli, [*map(str, options)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    shown = runner.invoke(cli, ["pack", "show", str(tmp_path / "pack")], catch_exceptions=False).output
    assert "not proved here, tried in a process of its own at the first load: the architecture internlm2" in shown
    run = ["run", "--pack", str(tmp_path / "pack"), "--adapter", "math", "--max-tokens", "4", "--json", "hello"]
    assert json.loads(runner.invoke(cli, run, catch_exceptions=False).stdout)["n_tokens"] > 0


def test_a_model_that_cannot_be_cut_is_profiled(tmp_path):
    """A depth is computed again for each repeat, since nothing behind it can be forgotten."""
    base = other_base(tmp_path, "lfm2")[1]
    options = ["profile", "--base", str(base), "--quick", "--repeats", "2", "--context", "1024", "--threads", "1"]
    result = CliRunner().invoke(cli, [*options, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "tokens_per_s" in result.stdout


def test_a_kind_of_matrix_that_does_nothing_is_found(tmp_path, monkeypatch):
    """Convolutions are known not to be adapted; an adapter of another architecture may hold what nobody knows of."""
    base = other_base(tmp_path, "lfm2")[1]
    mixed = {"x": (tiny_adapter(tmp_path / "x.gguf", base, targets=["conv", "ffn_down"], rank=2), None)}
    with pytest.raises(InputError, match=r"llama.cpp applies no LoRA to this tensor"):
        opened(base, mixed)
    monkeypatch.setattr(adapter_checks, "_NEVER", adapter_checks.re.compile("nothing"))
    with opened(base, mixed) as session, pytest.raises(InputError, match=r"pairs of shortconv.conv.weight and they"):
        session.use("x").ask("hello", max_tokens=2)


def test_beyond_a_window_that_llama_cpp_ignores_is_refused(tmp_path):
    base = other_base(tmp_path, "phi3", sliding_window=WINDOW_TOKENS)[1]
    assert BaseInfo.open(base).n_ctx_train_tokens == WINDOW_TOKENS
    with pytest.raises(DoesNotFitError, match=f"beyond its window of {WINDOW_TOKENS} llama.cpp computes"):
        opened(base, {}, n_ctx_tokens=512)
    with opened(base, {}) as session:
        assert session.ask("hello", max_tokens=4).token_ids


def test_contexts_that_turn_at_other_speeds_share_nothing(tmp_path):
    """Longrope: above the original context llama.cpp takes the long factors for every token, the first one too."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)]}
    rope = {"rope_type": "longrope", "type": "longrope", "rope_theta": 10000.0, **factors}
    if transformers.__version__ < "5":
        fields = {"rope_scaling": {"type": "longrope", **factors}}
    else:
        fields = {"rope_parameters": rope | {"original_max_position_embeddings": 512, "partial_rotary_factor": 1.0}}
    base = other_base(tmp_path, "phi3", original_max_position_embeddings=512, **fields)[1]
    ids = np.random.default_rng(0).integers(3, 300, 400).tolist()
    sections = [Section(300, shared=True), Section(400)]
    cache, found = PrefixCache(PrefixStore(64 << 20)), []
    with Model.load(base) as model:
        assert model.memory.short_tokens == 512
        for n_ctx_tokens in (512, 512, 1024):
            with Context(model, n_ctx_tokens=n_ctx_tokens, n_batch_tokens=256, threads=1) as context:
                kept = cache.prefill(context, KvRecord(), ids, sections, keep=True)
                found.append((kept, context.logits()))
        with Context(model, n_ctx_tokens=1024, n_batch_tokens=256, threads=1) as context:
            PrefixCache(PrefixStore(0)).prefill(context, KvRecord(), ids, sections)
            expected = context.logits()
    assert [kept for kept, _ in found] == [0, 300, 0]
    assert same(found[0][1], found[1][1]) and same(found[2][1], expected)
    assert np.abs(found[0][1] - expected).max() > 0.1


def test_what_llama_cpp_would_fail_on_or_compute_otherwise_is_refused(tmp_path):
    from gguf import GGUFValueType

    name = {"general.name": ("My Phi-3 tune", GGUFValueType.STRING)}
    base = other_base(tmp_path / "phi", "phi3", keys=name)[1]
    with pytest.raises(UnsupportedError, match=r"by that llama.cpp takes its vocabulary for Phi-3's"):
        BaseInfo.open(base)
    with pytest.raises(Exception, match="cannot load the model"):
        Model.load(base)
    # EXAONE 4's windows are computed with 64 layers only; those of OLMo 3 were not tried.
    for architecture in ("exaone4", "olmo2"):
        window = {f"{architecture}.attention.sliding_window": (64, GGUFValueType.UINT32)}
        base = tiny_base(tmp_path / f"{architecture}.gguf", architecture=architecture, keys=window)
        with pytest.raises(UnsupportedError, match=rf"{architecture}.attention.sliding_window is not handled here"):
            BaseInfo.open(base)


@pytest.mark.parametrize(
    ("architecture", "keys", "reason"),
    [
        ("gemma3n", {"gemma3n.attention.shared_kv_layers": (4, U32)}, "keys and values of its own in 18 layers"),
        ("gemma3n", {"gemma3n.final_logit_softcapping": (20.0, F32)}, "caps its logits at 20"),
        ("gemma3n", {"gemma3n.activation_sparsity_scale": ([1.6448536] * 9, ARRAY, F32)}, "leaves out activations in"),
        ("gemma3n", {"gemma3n.activation_sparsity_scale": ([1.0] * 10, ARRAY, F32)}, "leaves out other activations"),
        ("granitehybrid", {"granitehybrid.rope.scaling.finetuned": None}, "whether its positions turn"),
        ("mistral3", {"mistral3.rope.scaling.original_context_length": None}, "scales its queries by their position"),
    ],
)
def test_what_llama_cpp_computes_otherwise_without_a_word_is_refused(tmp_path, architecture, keys, reason):
    base = other_base(tmp_path, architecture, keys=keys)[1]
    with pytest.raises(UnsupportedError, match=reason):
        BaseInfo.open(base)
