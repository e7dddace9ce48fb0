"""Speculation: the same tokens as without it, whatever is asked and swapped, and off where it could change a bit."""

import json

import numpy as np
import pytest
from build_gguf import tiny_adapter, tiny_adapters, tiny_base, tiny_pack
from slm_edge.benchmarks.made.random_base import make_base
from slm_edge.edge.errors import EngineError
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.gguf.types import GgmlType
from slm_edge.edge.llama.context import Context
from slm_edge.edge.llama.model import Model, cpu_features
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.pack.pack import Pack
from slm_edge.edge.session.exactness import TILE_ROWS, Exactness, tiled_products
from slm_edge.edge.session.ngrams import LEAST_TOKENS, Ngrams
from slm_edge.edge.session.session import Session
from slm_edge.edge.session.speculation import MOST_AT_ONCE

PROMPTS = ("the world and the rest of it, " * 6, "hello", "again and again the sea " * 20, "one two three " * 9)
SYSTEM = "Answer as the keeper of the light house would, in the words of the sea, and be brief. " * 4


def guess_by_hand(ids, n_most):
    """What followed the latest earlier place of the last tokens, searched from the end."""
    for at in range(len(ids) - 1, LEAST_TOKENS - 1, -1):
        if ids[at - LEAST_TOKENS : at] == ids[-LEAST_TOKENS:]:
            same = LEAST_TOKENS
            while same < min(at, 64) and ids[at - same - 1] == ids[-same - 1]:
                same += 1
            return ids[at : at + n_most], same
    return [], 0


def test_guesses_are_what_followed_the_same_tokens_last():
    ids = np.random.default_rng(0).integers(0, 3, 400).tolist()
    ngrams = Ngrams(ids[:5])
    found = 0
    for i in range(5, len(ids)):
        ngrams.add(ids[i])
        guess = ngrams.guess(7)
        assert guess == guess_by_hand(ids[: i + 1], 7)
        found += bool(guess[0])
    assert found > 150
    assert Ngrams().guess(7) == Ngrams([1, 2]).guess(7) == ([], 0)


@pytest.fixture(scope="module")
def files(base):
    return tiny_adapters(base, {"a": 1, "b": 2}, TaskCard(task="a", system=SYSTEM, max_tokens=60))


# Random models rarely repeat themselves; kept to three words they do, while each choice hangs on all that was before.
GRAMMAR = 'root ::= ("the " | "sea " | "and ") root'


def opened(base, files, mode, **options):
    return Session.of_files(base, files, threads=1, speculate=mode, **options)


def answers(base, files, mode, turns, **settings):
    """Of one session that takes all turns: what must not depend on speculation, and how much was guessed and right."""
    with opened(base, files, mode) as session:
        found = [session.use(name).ask(prompt, **settings) for name, prompt in turns]
    same = [(one.token_ids, one.text, one.stop_reason, one.n_kept_tokens, one.seed) for one in found]
    return same, sum(one.n_drafted_tokens for one in found), sum(one.n_accepted_tokens for one in found)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_the_same_tokens_over_swaps(base, files, mode):
    names = ("a", "b", "a", None, "b", "a", {"a": 0.5, "b": 0.5}, None)
    turns = [(name, prompt) for prompt in PROMPTS[:2] for name in names]
    plain = answers(base, files, "off", turns, max_tokens=40, grammar=GRAMMAR)
    guessed, n_drafted, n_accepted = answers(base, files, mode, turns, max_tokens=40, grammar=GRAMMAR)
    assert (guessed, 0, 0) == plain
    assert mode == "exact" or n_drafted > n_accepted > 20


@pytest.mark.parametrize(
    "settings",
    [
        {"stop": ["a the", "e sea"]},
        {"temperature": 0.8, "seed": 7},
        {"temperature": 2, "top_k": 2, "seed": 8, "stop": "sea and"},
        {"max_tokens": 7},
        {"grammar": "", "stop": ["a"]},
    ],
)
def test_the_same_tokens_however_they_are_chosen(base, files, settings):
    turns = [("a", prompt) for prompt in PROMPTS]
    plain, guessed = (answers(base, files, mode, turns, **{"grammar": GRAMMAR} | settings) for mode in ("off", "fast"))
    assert guessed[0] == plain[0]
    assert guessed[2] or "max_tokens" in settings or "grammar" in settings


def test_the_card_decides_and_the_session_overrides(base, files):
    card = TaskCard(task="a", speculate="fast", max_tokens=60)
    mixed = {"a": (files["a"][0], card), "b": (files["b"][0], None)}
    for mode, expected in ((None, [True, False]), ("off", [False, False]), ("fast", [True, True])):
        with opened(base, mixed, mode) as session:
            answers = [session.use(name).ask(PROMPTS[0], max_tokens=60, grammar=GRAMMAR) for name in "ab"]
            n_drafted = [answer.n_drafted_tokens for answer in answers]
            assert [n > 0 for n in n_drafted] == expected
            assert session.context.n_outputs_max == (1 if mode == "off" else MOST_AT_ONCE)


def test_an_answer_left_early_and_a_full_context(base, files):
    with opened(base, files, "fast", n_ctx_tokens=512) as session:
        session.use("a")
        left = session.stream(PROMPTS[3], max_tokens=50, grammar=GRAMMAR)
        for _ in range(9):
            next(left)
        left.close()
        begun = session.stream(PROMPTS[3], max_tokens=50, grammar=GRAMMAR)
        next(begun)
        full = session.ask(PROMPTS[3], max_tokens=500, grammar=GRAMMAR)
        with pytest.raises(EngineError, match="another prompt"):
            list(begun)
    with opened(base, files, "off", n_ctx_tokens=512) as session:
        plain = session.use("a").ask(PROMPTS[3], max_tokens=500, grammar=GRAMMAR)
    assert plain.stop_reason == "context"
    assert (full.token_ids, full.stop_reason) == (plain.token_ids, "context")


def test_exact_guesses_only_what_it_proved_and_proves_only_what_is_so(base, files, monkeypatch):
    """Which kernels agree is the machine's affair: F32 products and attention without flash often do not."""
    monkeypatch.setattr(Exactness, "possible", lambda *_: True)
    turns = [(name, prompt) for prompt in PROMPTS for name in ("a", "b", None)]
    for flash_attention in ("on", "off"):
        with opened(base, files, "exact", flash_attention=flash_attention) as session:
            for name, prompt in turns:
                answer = session.use(name).ask(prompt, max_tokens=60, grammar=GRAMMAR)
                state = session._lane.record.chunks[-1][1]
                verdict = session._drafting.verdict((state, False))
                assert verdict is not None
                assert (answer.n_drafted_tokens > 0) <= verdict
                assert verdict is same_bits(session)


def same_bits(session):
    """Whether eight tokens at once give the logits of one at a time, computed by the engine's own calls."""
    context, at = session.context, session._lane.n_tokens
    ids = session._lane.record.tokens[-8:]
    context.decode(ids, at, outputs="all")
    together = [context.logits(i) for i in range(8)]
    context.remove(0, at)
    one_by_one = []
    for i, token_id in enumerate(ids):
        context.decode([token_id], at + i)
        one_by_one.append(context.logits())
    context.remove(0, at)
    return all(np.array_equal(one, other) for one, other in zip(together, one_by_one, strict=True))


def test_the_command_tells_what_was_guessed(slm_edge, tmp_path):
    pack = tiny_pack(tmp_path)
    (tmp_path / "words.gbnf").write_text(GRAMMAR)
    options = ["--pack", pack, "--threads", 1, "--max-tokens", 60, "--grammar", tmp_path / "words.gbnf"]
    code, out, err = slm_edge("run", *options, "--speculate", "fast", "--json", "--stats", PROMPTS[0])
    plain = json.loads(slm_edge("run", *options, "--json", PROMPTS[0])[1])
    data = json.loads(out)
    assert code == 0
    assert data["text"] == plain["text"]
    assert data["n_drafted_tokens"] > data["n_accepted_tokens"] > plain["n_drafted_tokens"] == 0
    assert f"{data['n_accepted_tokens']} of {data['n_drafted_tokens']} guessed tokens right" in err
    code, _, err = slm_edge("run", *options, "--speculate", "fast", "--engine", "onnx", "x")
    assert (code, "no option speculate" in err, "--engine llama" in err) == (2, True, True)


def test_what_the_rules_know_of_adapters(base, tmp_path):
    """Rows of 6 are no whole vectors; those of 8 are, and so are rows of 64: the A of every F32 adapter."""
    adapter = tiny_adapter(tmp_path / "a.gguf", base, rank=6, targets=("attn_q",))
    assert sorted(tiled_products(GgufFile.open(adapter))) == [f"blk.{i}.attn_q.weight.lora_a" for i in range(2)]
    adapter = tiny_adapter(tmp_path / "b.gguf", base, rank=8, targets=("attn_q",))
    assert len(tiled_products(GgufFile.open(adapter))) == 4
    assert not Exactness(BaseInfo.open(base), {}, repack=False, flash_attention="on").possible([])


def test_fewer_are_guessed_where_eight_rows_take_another_kernel(tmp_path):
    """A head in Q6_K, which many files have: llama.cpp's own logits say how many rows are computed as one is."""
    like = tiny_base(tmp_path / "like.gguf", n_embd=256, n_ff=512)
    for head, tiled in ((GgmlType.Q6_K, "AVX" in cpu_features()), (GgmlType.Q8_0, False)):
        base = make_base(tmp_path / f"{head.name}.gguf", like=like, type=GgmlType.Q8_0, head=head)
        exactness = Exactness(BaseInfo.open(base), {}, repack=True, flash_attention="auto")
        assert exactness.most_at_once == (TILE_ROWS - 1 if tiled else None)
        with (
            Model.load(base) as model,
            Context(model, n_ctx_tokens=256, n_batch_tokens=16, n_outputs_max=16, threads=1) as context,
        ):
            ids = [(5 * i) % model.vocab.n_tokens for i in range(40)]
            context.decode(ids, 0)
            single = []
            for i in range(8):
                context.decode_one(ids[i], 40 + i)
                single.append(context.logits())
            for n in (4, TILE_ROWS - 1, TILE_ROWS):
                context.remove(0, 40)
                context.decode(ids[:n], 40, outputs="all")
                equal = all(np.array_equal(context.logits(i), single[i]) for i in range(n))
                assert equal or (tiled and n == TILE_ROWS)
                if tiled and n == TILE_ROWS and "AVX512_VNNI" in cpu_features():
                    assert not equal
        with opened(base, {}, "exact") as session:
            sizes = sizes_of_decodes(session)
            session.ask(PROMPTS[3], max_tokens=60, grammar=GRAMMAR)
            assert max(sizes[1:], default=1) <= (4 if tiled else 8)


def sizes_of_decodes(session):
    """Of all calls of `Context.decode` from now on; tokens that are computed alone take another way."""
    sizes = []
    decode = session.context.decode

    def counted(ids, *arguments, **options):
        sizes.append(len(ids))
        decode(ids, *arguments, **options)

    session.context.decode = counted
    return sizes


PROGRAM = """Rename the function to solve, change nothing else.
```python
def remove_dirty_chars(string, second_string):
    count = str_to_list(second_string)
    temp = [char for char in string if count[char] == 0]
    return "".join(temp)
```"""


@pytest.mark.reference
def test_the_starters_edits_are_the_same_and_copied(starter_base):
    """The real base: rank 14 over Q4_1 is exact, rank 16 is not by the rules, and then nothing is guessed."""
    files = {name: (one.path, one.card) for name, one in Pack.open(None).adapters.items()}
    found = {}
    for mode in ("off", "exact"):
        with Session.of_files(starter_base, files, threads=1, speculate=mode) as session:
            found[mode] = session.use("code").ask(PROGRAM, max_tokens=64)
            possible = {name: session._drafting.exactness.possible([name]) for name in files}
            ranks = {name: session._shelf.load([name])[0].info.rank for name in files}
    assert found["exact"].token_ids == found["off"].token_ids
    assert possible == {name: rank % 4 != 0 or rank % 32 == 0 for name, rank in ranks.items()}
    assert found["exact"].n_accepted_tokens > 5 or not possible["code"]
