"""HellaSwag and perplexity: batched numbers are those of one text at a time, and of torch; rules pick as stated."""

import json
import math
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from build_gguf import task_pack, tiny_base
from slm_edge.benchmarks.likelihood.log_probs import log_probs_after, scoring_context
from slm_edge.benchmarks.likelihood.perplexity import chunks_of, score_chunk
from slm_edge.benchmarks.scores.choices import score_endings
from slm_edge.benchmarks.tasks import hellaswag
from slm_edge.edge.errors import EngineError, InputError
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.llama.context import Context
from slm_edge.edge.llama.model import Model
from slm_edge.edge.session.session import Session

# F16 in the KV cache and flash attention round otherwise in a batch than alone
EXACT = {"kv_type": "f32", "flash_attention": "off"}
TEXT = "A man is sitting on a roof. He starts pulling up the shingles, and the others rest in the sun. " * 12


def item(i, query, *endings, label=0):
    return hellaswag.item_of({"ind": i, "query": query, "choices": list(endings), "label": label}, i)


ITEMS = [
    item(
        0, "Roof: A man is sitting on a roof. he", "pulls it.", "is the other one here.", "sings", "rests in the sun."
    ),
    # All endings begin alike; one is the beginning of another; letters that are no ASCII
    item(1, "Stone: she", "takes the stone", "takes the stones and", "takes the water", "takes thé other"),
    item(2, "x", "a", "b", "c", "d"),
    *(item(3 + i, f"Number {i} " * (i + 1), "one", "two and", "three in the", "four or the fifth") for i in range(9)),
]


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return task_pack(tmp_path_factory.mktemp("made"), math=3)


def one_at_a_time(session, adapter, entry):
    """log p of each ending's tokens: one whole text in a fresh KV cache, every token's logits."""
    encode = session.model.vocab.encode
    n_context = len(encode(entry.raw, special=False, add_bos=True))
    choice = session.choice_of(adapter)
    found = []
    options = {"n_ctx_tokens": 512, "n_batch_tokens": 512, "n_outputs_max": 512, "threads": 1, **EXACT}
    with Context(session.model, **options) as context:
        for ending in entry.endings:
            ids = encode(f"{entry.raw} {ending}", special=False, add_bos=True)
            context.clear()
            context.set_adapters(session.sections(choice, ids)[-1].adapters)
            context.decode(ids, 0, outputs="all")
            rows = np.stack([context.logits(i) for i in range(len(ids) - 1)]).astype(np.float64)
            rows -= np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True)) + rows.max(1, keepdims=True)
            found.append((ids, rows[np.arange(len(ids) - 1), ids[1:]], n_context))
    return found


@pytest.mark.parametrize("adapter", [None, "math"])
def test_batched_likelihoods_are_those_of_one_text_at_a_time(pack, adapter):
    got = {}
    with Session.open(pack, threads=1, **EXACT) as session:
        score_endings(session, adapter, ITEMS, lambda i, found: got.__setitem__(i, json.loads(found.text)))
        for i, entry in enumerate(ITEMS):
            texts = one_at_a_time(session, adapter, entry)
            most = min(len(ids) for ids, _, _ in texts) - 1
            common = next((k for k in range(most) if len({ids[k] for ids, _, _ in texts}) > 1), most)
            assert got[i]["sums"] == pytest.approx([p[n - 1 :].sum() for _, p, n in texts], abs=5e-4)
            assert got[i]["token_means"] == pytest.approx([p[common - 1 :].mean() for _, p, _ in texts], abs=5e-4)


def test_adapter_changes_them(pack):
    sums = []
    with Session.open(pack, threads=1) as session:
        for adapter in (None, "math"):
            score_endings(session, adapter, ITEMS[:1], lambda i, found: sums.append(json.loads(found.text)["sums"]))
    assert max(abs(a - b) for a, b in zip(*sums, strict=True)) > 0.1


def test_rules_take_different_endings():
    entry = item(0, "x", "abcd", "ab", "abcdefgh", "a", label=2)
    found = {"sums": [-4.4, -3.0, -8.0, -3.5], "token_means": [-1.0, -3.0, -2.0, -3.5]}
    assert hellaswag.chosen(entry, **found) == {"acc": 1, "acc_norm": 2, "acc_token": 0}
    assert hellaswag.score(entry, json.dumps(found)) == {"acc": 0, "acc_norm": 1, "acc_token": 0}


def test_published_rows_are_tidied_as_the_harness_does():
    row = {
        "ind": 24,
        "activity_label": "Baking cookies",
        "ctx_a": "[header] How to bake [title] Mix.  [step] Take flour.",
        "ctx_b": "a woman",
        "endings": [" [substeps] stirs [title] it.", "a", "b", "c"],
        "label": "3",
    }
    found = hellaswag.item_of(row, 0)
    assert found.raw == "Baking cookies: How to bake. Mix.  Take flour. A woman"
    assert found.endings[0] == " stirs. it."
    assert found.truth == {"label": 3}
    with pytest.raises(ValueError):
        hellaswag.item_of({**row, "label": "4"}, 0)


def test_command_scores_hellaswag(pack, tmp_path):
    (tmp_path / "data" / "hellaswag").mkdir(parents=True)
    with (tmp_path / "data" / "hellaswag" / "hellaswag_val.jsonl").open("w") as out:
        for i in range(10):
            row = {"ind": i, "query": f"The {i}", "choices": ["the", "a man", "in", "is it"], "label": i % 4}
            out.write(json.dumps(row) + "\n")
    command = [sys.executable, "-m", "slm_edge.edge", "bench", "hellaswag", "--pack", str(pack.folder), "--json"]
    command += ["--data", str(tmp_path / "data"), "--out", str(tmp_path), "--threads", "1", "--adapter", "each"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    cells = json.loads(run.stdout)["cells"]
    assert [(cell["adapter"], cell["n"]) for cell in cells] == [(None, 10), ("math", 10)]
    assert set(cells[0]["metrics"]) == {"acc", "acc_norm", "acc_token"}
    assert all(cell["metrics"]["acc"]["method"] == "Wilson" for cell in cells)


def torch_rows(path, ids):
    """Log-probabilities of a tiny llama by transformers, in float64."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).double()
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0], -1).numpy()


def test_perplexity_and_kl_are_torchs(tmp_path):
    paths = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for seed, path in enumerate(paths):
        tiny_base(path, seed=seed)
    with Model.load(paths[0]) as ours, Model.load(paths[1]) as theirs:
        ids = chunks_of(ours.vocab, TEXT, 64)[1]
        options = {"n_ctx_tokens": 64, "n_batch_tokens": 32, "n_outputs_max": 32, "threads": 1}
        options |= {"kv_type": "f32", "flash_attention": "off"}
        with Context(ours, **options) as context, Context(theirs, **options) as reference:
            found = score_chunk(partial(log_probs_after, context), ids, partial(log_probs_after, reference))
    p, q = torch_rows(paths[1], ids), torch_rows(paths[0], ids)
    scored = range(32, 63)
    assert found.n_scored == 31
    assert found.nll == pytest.approx(-np.mean([q[i, ids[i + 1]] for i in scored]), rel=1e-4)
    assert found.kl == pytest.approx([float((np.exp(p[i]) * (p[i] - q[i])).sum()) for i in scored], rel=1e-3, abs=1e-4)
    assert found.same_top == pytest.approx(np.mean([p[i].argmax() == q[i].argmax() for i in scored]))


def test_perplexity_command_goes_on_and_compares(pack, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    reference = tiny_base(tmp_path / "reference.gguf")
    command = [sys.executable, "-m", "slm_edge.edge", "bench", "perplexity", str(text), "--pack", str(pack.folder)]
    command += ["--ctx", "64", "--out", str(tmp_path), "--threads", "1", "--adapter", "each", "--json"]
    command += ["--against", str(reference)]
    first = json.loads(subprocess.run([*command, "--limit", "3"], capture_output=True, check=True).stdout)
    again = json.loads(subprocess.run([*command, "--limit", "5"], capture_output=True, check=True).stdout)
    base, math_row = again["rows"]
    assert (base["n_chunks"], first["rows"][0]["n_chunks"]) == (5, 3)
    # The reference is the base itself
    assert base["kl"]["value"] == pytest.approx(0, abs=1e-6)
    assert base["same_top"]["value"] == 1
    assert math_row["kl"]["value"] > 0.01
    assert base["perplexity"]["value"] == pytest.approx(math.exp(base["nll"]["value"]))
    assert base["perplexity"]["low"] < base["perplexity"]["value"] < base["perplexity"]["high"]
    [file] = (tmp_path / "answers").glob("perplexity.base.*.jsonl")
    assert [json.loads(line)["run"] for line in file.read_text().splitlines()[1:]] == [0, 0, 0, 1, 1]


def test_text_that_is_too_short(tmp_path):
    with Model.load(tiny_base(tmp_path / "a.gguf")) as model, pytest.raises(InputError, match="one chunk has 512"):
        chunks_of(model.vocab, "short", 512)


def test_what_is_no_number_is_no_score(tmp_path):
    """A comparison with NaN is false, so that some ending would always win."""
    base = tiny_base(tmp_path / "base.gguf")
    place = GgufFile.open(base).tensors["blk.1.ffn_down.weight"]
    with base.open("r+b") as out:
        out.seek(place.offset_bytes)
        out.write(np.array([np.nan], np.float32).tobytes())
    refused = partial(pytest.raises, EngineError, match="not a number")
    with Session.of_files(base, {}, threads=1, **EXACT) as session, refused():
        score_endings(session, None, ITEMS, lambda *_: None)
    with Model.load(base) as model, scoring_context(model, 32, 1) as context, refused():
        log_probs_after(context, model.vocab.encode(TEXT)[:32], 16)
