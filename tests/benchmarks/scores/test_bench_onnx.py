"""Scores and losses of a pack's ONNX form: the same as llama.cpp's where it holds the same floats."""

import json

import pytest
from build_gguf import tiny_adapter, tiny_base
from click.testing import CliRunner
from slm_edge.benchmarks.cli.perplexity import perplexity
from slm_edge.benchmarks.cli.scores import scores
from slm_edge.benchmarks.proofs import onnx_loss as onnx_perplexity
from slm_edge.benchmarks.scores.answers import AnswerFile
from slm_edge.benchmarks.scores.cells import Wanted, columns_of, plan
from slm_edge.benchmarks.scores.generate import session_generator
from slm_edge.benchmarks.scores.runner import run_cell
from slm_edge.benchmarks.tasks.registry import task
from slm_edge.edge.errors import InputError
from slm_edge.edge.onnx.in_pack import add_onnx_adapter, add_onnx_base
from slm_edge.edge.pack.pack import Pack
from slm_edge.edge.pack.write import NewAdapter, build_pack
from slm_edge.edge.session.session import Session
from slm_edge.export.onnx.adapter import export_onnx_adapter
from slm_edge.export.onnx.base import export_onnx

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = (("math", 3), ("code", 5))
ENDINGS = ["pulls it.", "is the other one here.", "sings", "rests in the sun."]


def test_perplexity_and_kl_against_llama_cpp(tmp_path):
    base = tiny_base(tmp_path / "base.gguf", n_embd=256, n_ff=512)
    for kind in ("f32", "int8", "int4"):
        export_onnx(base, tmp_path / kind, kind=kind)
    (tmp_path / "text.txt").write_text("the world and the rest of it, again and again. " * 12)
    words = [str(tmp_path / "text.txt"), "--gguf", str(base), "--ctx", "32", "--limit", "3", "--json"]
    words += [word for kind in ("f32", "int8", "int4") for word in ("--onnx", str(tmp_path / kind))]
    result = CliRunner().invoke(onnx_perplexity.main, words)
    assert result.exit_code == 0, result.output
    llama, exact, int8, int4 = json.loads(result.stdout)["rows"]
    assert [row["name"] for row in (llama, exact, int8, int4)] == ["llama.cpp", "f32", "int8", "int4"]
    assert llama["n_chunks"] == 3 and llama["n_tokens"] == 45
    # llama.cpp's KV cache is F16 there.
    assert exact["perplexity"]["value"] == pytest.approx(llama["perplexity"]["value"], rel=1e-2)
    assert llama["kl_nats"]["value"] == 0
    assert 0 < exact["kl_nats"]["value"] < int8["kl_nats"]["value"] < int4["kl_nats"]["value"]
    assert exact["same_top"]["value"] > 0.9


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A pack with an ONNX form in F32, where both engines hold the same numbers, and a folder of data."""
    folder = tmp_path_factory.mktemp("both")
    base = tiny_base(folder / "base.gguf")
    new = [NewAdapter(name, tiny_adapter(folder / f"{name}.gguf", base, seed=seed, task=name)) for name, seed in SEEDS]
    pack = build_pack(folder / "pack", base=base, adapters=new).folder
    onnx = export_onnx(base, folder / "onnx", kind="f32").base
    add_onnx_base(pack, folder / "onnx")
    export_onnx_adapter(folder / "math.gguf", onnx, folder / "math.onnx_adapter")
    add_onnx_adapter(pack, "math", folder / "math.onnx_adapter")
    for name, rows in (
        ("gsm8k/test.jsonl", [{"question": f"{i} and {i + 1}?", "answer": f"so\n#### {2 * i + 1}"} for i in range(9)]),
        ("hellaswag/hellaswag_val.jsonl", [{"query": f"He {i}", "choices": ENDINGS, "label": i % 4} for i in range(9)]),
    ):
        (folder / "data" / name).parent.mkdir(parents=True)
        (folder / "data" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return pack, folder / "data"


def bench(pack, data, out, *words):
    words = ["gsm8k", "hellaswag", "--pack", pack, "--data", data, "--out", out, "--limit", 6, "--json", *words]
    return CliRunner().invoke(scores, [str(word) for word in (*words, "--threads", 1, "--max-tokens", 8)])


def test_scores_of_the_onnx_form_are_those_of_the_same_numbers(both, tmp_path):
    """Answers as llama.cpp's with a KV cache in F32 too, likelihoods within rounding; the report tells the engine."""
    pack, data = both
    result = bench(pack, data, tmp_path, "--engine", "onnx")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["onnxruntime"] and report["command"].endswith("--engine onnx --limit 6 --max-tokens 8")
    assert {(cell["task"], cell["adapter"], cell["n"]) for cell in report["cells"]} == {
        (task_name, adapter, 6) for task_name in ("gsm8k", "hellaswag") for adapter in (None, "math")
    }
    tasks = [task("gsm8k"), task("hellaswag")]
    wanted = Wanted(limit=6, max_tokens=8)
    cells = plan(tasks, Pack.open(pack), columns_of(Pack.open(pack), ("none", "math")), data, wanted)
    ours = plan(tasks, Pack.open(pack), columns_of(Pack.open(pack), ("none", "math"), "onnx"), data, wanted)
    texts = set()
    with Session.open(pack, threads=1, kv_type="f32", flash_attention="off") as session:
        for cell, own in zip(cells, ours, strict=True):
            assert cell.identity != own.identity
            run_cell(cell, tmp_path / "llama", session_generator(session, 1))
            mine = AnswerFile(tmp_path / "answers", own.identity).records
            theirs = AnswerFile(tmp_path / "llama", cell.identity).records
            assert mine.keys() == theirs.keys() and len(mine) == 6
            for key, record in mine.items():
                texts.add(record.text)
                if cell.task.way == "choices":
                    found, wanted_values = json.loads(record.text), json.loads(theirs[key].text)
                    for name in ("sums", "token_means"):
                        assert found[name] == pytest.approx(wanted_values[name], abs=5e-4)
                else:
                    assert record.text == theirs[key].text
                assert (record.n_prompt_tokens, record.n_tokens) == (theirs[key].n_prompt_tokens, theirs[key].n_tokens)
    assert len(texts) > 12


def test_perplexity_of_the_onnx_form_is_that_of_the_same_numbers(both, tmp_path):
    """Base and adapter, beside llama.cpp on the GGUF that the form was made from; chunks of each engine are its own."""
    pack, _ = both
    (tmp_path / "text.txt").write_text("the world and the rest of it, again and again. " * 12)
    words = [tmp_path / "text.txt", "--pack", pack, "--ctx", 32, "--limit", 3, "--threads", 1, "--out", tmp_path]
    words += ["--adapter", "none", "--adapter", "math", "--against", pack.parent / "base.gguf", "--json"]
    rows = {}
    for engine in ("llama", "onnx"):
        result = CliRunner().invoke(perplexity, [str(word) for word in (*words, "--engine", engine)])
        assert result.exit_code == 0, result.output
        rows[engine] = json.loads(result.stdout)["rows"]
    assert len(list((tmp_path / "answers").glob("*.jsonl"))) == 4
    for llama, onnx in zip(rows["llama"], rows["onnx"], strict=True):
        assert onnx["n_chunks"] == 3 and onnx["identity"]["engine"] == "onnx"
        # llama.cpp's KV cache is F16 there
        assert onnx["nll"]["value"] == pytest.approx(llama["nll"]["value"], abs=2e-3)
        assert onnx["kl"]["value"] == pytest.approx(llama["kl"]["value"], abs=2e-3)
    base, math = rows["onnx"]
    assert 0 < base["kl"]["value"] < 1e-3 < 0.01 < math["kl"]["value"]


def test_what_has_no_onnx_form_is_said(both, tmp_path):
    pack, data = both
    missing = bench(pack, data, tmp_path, "--engine", "onnx", "--adapter", "code")
    assert isinstance(missing.exception, InputError) and "'code' has no ONNX form" in str(missing.exception)
    remote = bench(pack, data, tmp_path, "--engine", "onnx", "--endpoint", "http://localhost:1/v1", "--model", "x")
    assert isinstance(remote.exception, InputError) and "--engine" in str(remote.exception)
    assert not any(tmp_path.iterdir())
