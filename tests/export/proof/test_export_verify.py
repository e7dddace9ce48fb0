"""The proof itself: it passes what is right, whatever the base's type, and fails what is wrong, saying why."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from build_hf import CHATML, LLAMA3_SCALING, as_transformers_4, as_transformers_5, edit_config, tiny_checkpoint
from build_peft import pair, real_adapter, written_adapter
from click.testing import CliRunner
from slm_edge.edge.errors import InputError, UnsupportedError
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.gguf.rope import Rope, check_rope
from slm_edge.edge.session.shelf import activation_start
from slm_edge.export.base.base import Options, export_base
from slm_edge.export.base.quantize import TYPES
from slm_edge.export.cli.group import export
from slm_edge.export.files.gguf_writer import NewTensor, float32, keys_of, text, write_gguf
from slm_edge.export.lora.lora import export_lora
from slm_edge.export.proof.difference import Difference
from slm_edge.export.proof.prompts import BUILT_IN, Prompt, read_prompts
from slm_edge.export.proof.reference import Reference
from slm_edge.export.proof.verify import _judge, verify
from transformers import AutoModelForCausalLM

SHORT = (Prompt("How many are left?"), Prompt("Grüße 🙂", "You are brief."))


pytestmark = pytest.mark.usefixtures("one_thread")


def made(folder, family="llama", *, type="f32", kind="f32", **fields):
    """A checkpoint, its base, a PEFT adapter and the exported adapter, as keyword arguments of `verify`."""
    folder.mkdir(exist_ok=True)
    hf = tiny_checkpoint(folder / "hf", family, **fields)
    export_base(hf, folder / "base.gguf", TYPES[type])
    peft = real_adapter(folder / "peft", hf, r=8, lora_alpha=16)
    export_lora(peft, folder / "base.gguf", folder / "a.gguf", kind=kind)
    return {"hf": hf, "base": folder / "base.gguf", "peft_dir": peft, "lora": folder / "a.gguf"}


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    return made(tmp_path_factory.mktemp("exact"))


def run(files, **options):
    return verify(**(files | {"prompts": SHORT, "max_tokens": 6, "threads": 1} | options))


def against_gguf(files, **options):
    return run({key: value for key, value in files.items() if key != "hf"} | {"base_gguf": files["base"]}, **options)


def test_a_template_that_was_given_to_the_export_is_the_references_too(tmp_path):
    """The folder's tokenizer has none of its own; the texts that the base's makes are encoded on both sides."""
    hf = tiny_checkpoint(tmp_path / "hf", chat_template=None)
    (tmp_path / "given.jinja").write_text(CHATML)
    export_base(hf, tmp_path / "base.gguf", TYPES["f32"], options=Options(chat_template=tmp_path / "given.jinja"))
    peft = real_adapter(tmp_path / "peft", hf, r=8, lora_alpha=16)
    export_lora(peft, tmp_path / "base.gguf", tmp_path / "a.gguf", kind="f32")
    report = run({"hf": hf, "base": tmp_path / "base.gguf", "peft_dir": peft, "lora": tmp_path / "a.gguf"})
    assert report.passed and all(prompt.tokens_equal for prompt in report.results)


def test_difference_is_the_textbooks():
    rng = np.random.default_rng(0)
    p, q = rng.standard_normal((5, 40)).astype(np.float32), rng.standard_normal((5, 40)).astype(np.float32)
    q[:3] = p[:3] + 100
    found = Difference.between(p, q)
    kl = torch.nn.functional.kl_div(
        torch.log_softmax(torch.tensor(q), 1), torch.log_softmax(torch.tensor(p), 1), log_target=True, reduction="none"
    )
    assert found.mean_kl == pytest.approx(float(kl.sum(1).mean()), rel=1e-4)
    assert found.max_logit_error == pytest.approx(100, rel=1e-3)
    assert found.top1 == np.mean(p.argmax(1) == q.argmax(1))
    assert found.n_tokens == 5
    assert Difference.between(p, p) == Difference(0.0, 0.0, 1.0, 5)


def test_the_last_match_is_where_peft_activates():
    from peft.tuners.lora.variants import calculate_alora_offsets

    class Config:
        def __init__(self, tokens):
            self.alora_invocation_tokens = tokens

    for ids, wanted in (
        ([1, 2, 3, 1, 2, 4], [1, 2]),
        ([1, 2, 2], [1, 2]),
        ([5, 5, 5, 5], [5, 5]),
        ([7, 1, 2], [1, 2]),
        ([1, 2], [1, 2]),
        ([9, 9], [1, 2]),
    ):
        offsets = calculate_alora_offsets({"a": Config(wanted)}, "a", torch.tensor([ids]))
        start = None if offsets[0] is None else len(ids) - offsets[0]
        assert activation_start(ids, wanted) == start, (ids, wanted)


def test_an_exact_export_passes(exact):
    report = run(exact)
    assert report.passed
    assert report.exact
    assert report.bounds == {"max_logit_error": 2e-3}
    assert report.max_logit_error < 1e-3
    assert report.effect > 1
    assert all(result.tokens_equal and result.greedy_equal for result in report.results)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"rope_scaling": LLAMA3_SCALING, "n_ctx_tokens": 4096}),
        ("llama", {"tied": False, "head_dim": 32}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32}),
    ],
    ids=str,
)
def test_the_reference_from_a_gguf_is_the_checkpoint(tmp_path, family, fields):
    """Llama-3's rope divisors and head sizes of their own, which transformers' GGUF reader leaves out."""
    files = made(tmp_path, family, **fields)
    ids = [int(n) for n in np.random.default_rng(0).integers(3, 200, 300)]
    theirs = Reference.from_hf(files["hf"], files["peft_dir"])
    ours = Reference.from_gguf(files["base"], files["peft_dir"])
    for adapter in (True, False):
        np.testing.assert_allclose(theirs.logits(ids, adapter=adapter), ours.logits(ids, adapter=adapter), atol=1e-4)
    report = against_gguf(files)
    assert report.passed
    assert report.exact
    assert {result.tokens_equal for result in report.results} == {None}


@pytest.mark.parametrize("form", [as_transformers_4, as_transformers_5])
@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"rope_scaling": LLAMA3_SCALING}),
        ("qwen2", {}),
        ("qwen3", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    ],
    ids=str,
)
def test_both_forms_of_a_checkpoint_are_proved(tmp_path, form, family, fields):
    files = made(tmp_path, family, rope_theta=500.0, **fields)
    form(files["hf"])
    report = run(files)
    assert report.passed
    assert report.max_logit_error < 1e-3
    assert all(result.tokens_equal and result.greedy_equal for result in report.results)
    # without the file's base the positions would turn in another way, far beyond the bound
    reference = Reference.from_hf(files["hf"], files["peft_dir"])
    ids = [int(n) for n in np.random.default_rng(0).integers(3, 200, 60)]
    right = reference.logits(ids)
    edit_config(files["hf"], rope_theta=10_000.0, rope_scaling=None, rope_parameters=None)
    assert np.abs(Reference.from_hf(files["hf"], files["peft_dir"]).logits(ids) - right).max() > 0.01


def test_a_reading_that_differs_is_an_error(tmp_path):
    hf = tiny_checkpoint(tmp_path / "hf", rope_theta=500.0)
    model = AutoModelForCausalLM.from_pretrained(hf)
    check_rope(model, Rope("default", 500.0), hf)
    for other in (
        Rope("default", 10_000.0),
        Rope("linear", 500.0, {"factor": 2.0}),
        Rope("yarn", 500.0, {"factor": 2.0}),
    ):
        with pytest.raises(UnsupportedError, match="does not turn positions as the file says"):
            check_rope(model, other, hf)


@pytest.mark.parametrize("type", ["q8_0", "q4_0", "q4_1", "q5_k_m", "q4_k_m", "q6_k", "iq4_nl"])
def test_quantised_bases_pass_against_their_own_weights(tmp_path, type):
    files = made(tmp_path, type=type, kind="auto", n_embd=256, n_ff=256, n_layers=1)
    report = against_gguf(files)
    assert not report.exact
    assert report.bounds == {"max_kl": 0.02, "min_top1": 0.9}
    assert 0 < report.mean_kl() < 0.02, report
    assert report.effect > 1


def test_a_quantised_base_passes_against_the_checkpoint(tmp_path):
    files = made(tmp_path, type="q4_0", kind="auto")
    report = run(files)
    assert report.passed, report.failures
    assert report.mean_kl(base=True) > 0.02
    assert report.bounds["max_kl"] == 2 * report.mean_kl(base=True)
    strict = run(files, max_kl=1e-4, max_logit_error=1e-3)
    assert [failure.split(" is ")[0] for failure in strict.failures] == ["max logit error", "max kl"]


def rewritten(file, path, keys=None, skip=()):
    """A copy of a GGUF with other keys."""
    source = GgufFile.open(file)
    tensors = [NewTensor.copied(source, name) for name in source.tensors if name not in skip]
    write_gguf(path, keys_of(source) | (keys or {}), tensors)
    return path


def test_a_wrong_adapter_fails(tmp_path, exact):
    """The faults that llama.cpp takes in silence: another scale, another adapter, a module left out."""
    slightly = rewritten(exact["lora"], tmp_path / "alpha.gguf", {"adapter.lora.alpha": float32(16.1)})
    without = rewritten(
        exact["lora"], tmp_path / "less.gguf", skip=[f"blk.1.attn_k.weight.lora_{part}" for part in "ab"]
    )
    other_peft = real_adapter(tmp_path / "peft", exact["hf"], r=8, lora_alpha=16, seed=9)
    export_lora(other_peft, exact["base"], tmp_path / "other.gguf", kind="f32")
    for lora in (slightly, without, tmp_path / "other.gguf"):
        report = run(exact | {"lora": lora})
        assert not report.passed
        assert "max logit error is" in report.failures[0]


def test_what_others_warn_of_is_not_shown(exact, tmp_path):
    """PEFT imports bitsandbytes where it is installed, which warns of kernels that nothing here would call."""
    (tmp_path / "prompts.txt").write_text("How many are left?\n")
    files = ["--hf", exact["hf"], "--gguf", exact["base"], "--lora", exact["lora"]]
    command = ["export", "verify", exact["peft_dir"], *files, "--prompts", tmp_path / "prompts.txt", "--max-tokens", 1]
    done = subprocess.run(
        [sys.executable, "-m", "slm_edge.edge", *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "passed" in done.stdout
    assert [line for line in done.stderr.splitlines() if not line.startswith("proving")] == []


def test_wrong_token_ids_fail(tmp_path, exact):
    other = "{% for m in messages %}{{ '<|im_start|>' + m['content'] }}{% endfor %}"
    base = rewritten(exact["base"], tmp_path / "base.gguf", {"tokenizer.chat_template": text(other)})
    report = run(exact | {"base": base})
    assert not report.passed
    assert "the two tokenizers differ on 2 prompts" in report.failures[0]
    assert report.max_logit_error < 1e-3


def test_an_adapter_without_effect_proves_nothing(tmp_path, exact):
    peft = real_adapter(tmp_path / "peft", exact["hf"], r=8, lora_alpha=16, size=1e-7)
    export_lora(peft, exact["base"], tmp_path / "a.gguf", kind="f32")
    report = run(exact | {"peft_dir": peft, "lora": tmp_path / "a.gguf"})
    assert "moves no logit" in report.failures[0]


def test_an_error_as_large_as_the_effect_proves_nothing(exact):
    """Rounding of the base drowns a small adapter: the bound on KL alone would pass any other adapter too."""
    report = run(exact)
    assert report.passed and report.change.error < 1e-3 and report.change.strength == pytest.approx(1, abs=1e-3)

    def judged(**sums):
        """With sums in parts of the effect's."""
        made = {name: part * report.change.squares for name, part in sums.items()}
        results = tuple(
            dataclasses.replace(result, change=dataclasses.replace(report.change, **made)) for result in report.results
        )
        return "; ".join(_judge(results, False, same_weights=True, asked={"max_kl": 1.0}).failures)

    drowned = judged(error_squares=1.0, rounding_squares=0.5)
    assert "100% of the adapter's effect comes out otherwise" in drowned and "too small for this base" in drowned
    assert "it is another adapter" in judged(error_squares=1.0, rounding_squares=0.01)
    # A right adapter of little effect on a base of 4 bits, and one whose error the base's rounding does not explain
    assert not judged(error_squares=0.36, rounding_squares=0.25)
    assert "rounding explains 40%" in judged(error_squares=0.36, rounding_squares=0.04)
    assert "45% of its strength" in judged(error_squares=0.36, rounding_squares=0.25, products=0.45)
    assert judged(error_squares=math.nan) and judged(largest=math.nan) and judged(products=math.nan)


def test_a_small_adapter_of_another_seed_fails_on_a_quantised_base(tmp_path):
    files = made(tmp_path, type="q4_0", kind="auto", n_embd=256, n_ff=256, n_layers=1)
    small = [
        real_adapter(tmp_path / f"p{seed}", files["hf"], r=8, lora_alpha=16, size=0.01, seed=seed) for seed in (1, 2)
    ]
    export_lora(small[1], files["base"], tmp_path / "other.gguf")
    report = against_gguf(files | {"peft_dir": small[0], "lora": tmp_path / "other.gguf"})
    assert report.mean_kl() < 0.02
    assert not report.passed and "comes out otherwise" in report.failures[-1]


def test_what_cannot_be_loaded_is_said(tmp_path, exact):
    with pytest.raises(InputError, match="holds no config"):
        run(exact | {"hf": tmp_path})
    with pytest.raises(InputError, match="holds no adapter_config"):
        run(exact | {"peft_dir": tmp_path})
    with pytest.raises(InputError, match="once"):
        run(exact, base_gguf=exact["base"])
    with pytest.raises(InputError, match="no prompts"):
        run(exact, prompts=())
    with pytest.raises(InputError, match="not 'adapter'"):
        run(exact | {"lora": exact["base"]})
    other = tiny_checkpoint(tmp_path / "other", n_embd=96, n_heads=6)
    with pytest.raises(InputError, match="PEFT cannot load it on this base"):
        run(exact | {"hf": other})
    fewer = tiny_checkpoint(tmp_path / "fewer", n_layers=3)
    with pytest.raises(InputError, match="missing adapter keys"):
        run(exact | {"hf": fewer})
    scaled = rewritten(exact["base"], tmp_path / "yarn.gguf", {"llama.rope.scaling.type": text("yarn")})
    with pytest.raises(UnsupportedError, match="yarn"):
        Reference.from_gguf(scaled, exact["peft_dir"])


def test_prompt_files(tmp_path):
    plain = tmp_path / "p.txt"
    plain.write_text("one\n\n  two\n", encoding="utf-8")
    assert read_prompts(plain) == (Prompt("one"), Prompt("  two"))
    lines = tmp_path / "p.jsonl"
    lines.write_text('"one"\n{"prompt": "two", "system": "S"}\n', encoding="utf-8")
    assert read_prompts(lines) == (Prompt("one"), Prompt("two", "S"))
    for content, words in (
        ("{", "line 1 is not valid JSON"),
        ('{"text": "x"}', "line 1 is neither"),
        ("\n", "no prompts"),
    ):
        lines.write_text(content)
        with pytest.raises(InputError, match=words):
            read_prompts(lines)
    lines.write_bytes(b"\xff")
    with pytest.raises(InputError, match="UTF-8"):
        read_prompts(lines)


def test_the_command(tmp_path, exact):
    prompts = tmp_path / "p.txt"
    prompts.write_text(f"{BUILT_IN[4].text}\nHello\n", encoding="utf-8")
    args = ["verify", str(exact["peft_dir"]), "--hf", str(exact["hf"]), "--gguf", str(exact["base"])]
    args += ["--lora", str(exact["lora"]), "--prompts", str(prompts), "--max-tokens", "3", "--threads", "1"]
    result = CliRunner().invoke(export, [*args, "--json"], catch_exceptions=False)
    data = json.loads(result.stdout)
    assert result.exit_code == 0
    assert data["passed"] is True
    assert data["n_greedy_equal"] == 2
    assert [row["tokens_equal"] for row in data["prompts"]] == [True, True]
    result = CliRunner().invoke(export, [*args, "--max-logit-error", "1e-9"], catch_exceptions=False)
    assert result.exit_code == 1
    assert "FAILED: max logit error is" in result.stdout
    assert result.stdout.count("equal") >= 4
    shown = CliRunner().invoke(export, ["verify", "--help"]).stdout
    assert "0.002" in shown
    assert "Example:" in shown


def test_a_base_exported_with_its_own_head_is_the_same(tmp_path, exact):
    export_base(exact["hf"], tmp_path / "base.gguf", TYPES["f32"], Options(output_weight=True))
    assert run(exact | {"base": tmp_path / "base.gguf"}).passed


@pytest.mark.reference
def test_the_starter_base(tmp_path, starter_base):
    """The real model that ships, Q4_1, with a rank-32 adapter on three linear layers of each block, stored as Q8_0."""
    tensors = {}
    for layer in range(30):
        for number, (name, n_in, n_out) in enumerate(
            [("self_attn.q_proj", 576, 576), ("self_attn.k_proj", 576, 192), ("mlp.up_proj", 576, 1536)]
        ):
            module = f"model.layers.{layer}.{name}"
            tensors |= pair(module, n_in, n_out, rank=32, seed=layer * 3 + number)
    tensors = {name: values / np.sqrt(values.shape[1]) for name, values in tensors.items()}
    peft = written_adapter(
        tmp_path / "peft", tensors, r=32, lora_alpha=4, target_modules=["q_proj", "k_proj", "up_proj"]
    )
    done = export_lora(peft, starter_base, tmp_path / "a.gguf")
    assert done.types == {"Q8_0": 180}
    report = verify(
        peft,
        base=starter_base,
        lora=tmp_path / "a.gguf",
        base_gguf=starter_base,
        prompts=SHORT[:1],
        max_tokens=4,
        threads=1,
    )
    assert report.effect > 1
    assert report.passed, report.failures
