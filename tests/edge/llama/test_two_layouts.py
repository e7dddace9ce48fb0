"""Two layouts of one base in one context: the same bits as of a plain context, whatever the order of calls.

Weights in F32 have one layout only, so a context of two must do on them what a plain one does, to the bit.
"""

import contextlib
import mmap
import random
import shutil

import numpy as np
import pytest
from build_gguf import tiny_adapter, tiny_base
from slm_edge.benchmarks.made.random_base import make_base
from slm_edge.edge.errors import DoesNotFitError
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.gguf.types import GgmlType
from slm_edge.edge.llama.context import Context
from slm_edge.edge.llama.model import Model, cpu_features, faster_as_stored
from slm_edge.edge.llama.sampling import Sampler, Sampling
from slm_edge.edge.llama.two_layouts import LEAST_TOKENS, StoredModel, TwoLayouts
from slm_edge.edge.memory.fit import fit, layouts, plan_session
from slm_edge.edge.memory.plan import plan_memory
from slm_edge.edge.session.session import Session
from slm_edge.edge.system.machine import CAN_LET_GO
from slm_edge.edge.system.mappings import counted_twice_bytes

pytestmark = pytest.mark.skipif(not CAN_LET_GO, reason="two layouts are for Linux")
OPTIONS = {"n_ctx_tokens": 4 * 1024, "n_batch_tokens": 256, "n_seq_max": 4, "n_outputs_max": 8, "threads": 1}
TILED = "AVX512_VNNI" in cpu_features()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("two") / "base.gguf", n_embd=256, n_ff=512, n_ctx_train_tokens=4096)


@pytest.fixture(scope="module")
def q4_k(base):
    return make_base(base.with_name("q4_k.gguf"), like=base, type=GgmlType.Q4_K)


@pytest.fixture(scope="module")
def adapters(base):
    return [tiny_adapter(base.with_name(f"{seed}.gguf"), base, rank=4, seed=seed) for seed in (1, 2)]


class Pair:
    """The same calls to a context of two layouts and to a plain one, whose outputs must be equal."""

    def __init__(self, stack, base, adapters, **options):
        models = [stack.enter_context(Model.load(base)) for _ in range(2)]
        stored = stack.enter_context(StoredModel(models[0]))
        self.two = stack.enter_context(TwoLayouts(models[0], stored, **{**OPTIONS, **options}))
        self.one = stack.enter_context(Context(models[1], **{**OPTIONS, **options}))
        self.adapters = [[model.load_adapter(path) for path in adapters] for model in models]
        self.n_vocab = models[0].vocab.n_tokens

    def both(self, name, *arguments, **options):
        """What a method gives of the context of two layouts, and of the plain one."""
        return tuple(getattr(context, name)(*arguments, **options) for context in (self.two, self.one))

    def set(self, scales):
        for context, loaded in zip((self.two, self.one), self.adapters, strict=True):
            context.set_adapters([(loaded[i], scale) for i, scale in scales])

    def equal(self, n_rows=None):
        """The logits of the last output, or of so many rows, are the same to the bit."""
        for row in range(n_rows) if n_rows else (-1,):
            np.testing.assert_array_equal(*self.both("logits", row))


@pytest.fixture
def pair(base, adapters):
    with contextlib.ExitStack() as stack:
        yield Pair(stack, base, adapters)


def test_any_order_of_calls_gives_the_bits_of_a_plain_context(pair):
    rng = random.Random(7)
    lengths = [0] * 4
    blobs = []
    seen = set()
    for _ in range(400):
        sequence = rng.randrange(4)
        at = lengths[sequence]
        kind = rng.choice(["chunk", "chunk", "long", "long", "one", "one", "step", "all", "cut", "cut", "adapters"])
        kind = rng.choice([kind, kind, "read", "write"])
        n = {"chunk": rng.randint(1, 127), "long": rng.choice([128, 200, 256, 300]), "one": 1, "all": 8}.get(kind, 0)
        if at + n > 900:
            kind, n = "cut", 0
        ids = [rng.randrange(pair.n_vocab) for _ in range(n)]
        seen.add(kind)
        if kind in ("chunk", "long"):
            outputs = rng.choice(["last", "none"])
            pair.both("decode", ids, at, sequence=sequence, outputs=outputs)
            if outputs == "last":
                pair.equal()
        elif kind == "one" and sequence == 0:
            pair.both("decode_one", ids[0], at)
            pair.equal()
        elif kind == "all":
            pair.both("decode", ids, at, sequence=sequence, outputs="all")
            pair.equal(8)
        elif kind == "step":
            chosen = sorted(rng.sample(range(4), rng.randint(1, 4)))
            tokens = [rng.randrange(pair.n_vocab) for _ in chosen]
            positions = [lengths[one] for one in chosen]
            pair.both("decode_step", tokens, positions, chosen)
            pair.equal(len(chosen))
            for one in chosen:
                lengths[one] += 1
        elif kind == "cut":
            lengths[sequence] = rng.randint(0, at)
            pair.both("remove", sequence, lengths[sequence])
        elif kind == "adapters":
            scales = rng.choice([[], [(0, 1.0)], [(1, 0.5)], [(0, 0.5), (1, 0.5)]])
            pair.set(scales)
        elif kind == "read" and at:
            blobs.append((at, *pair.both("read_sequence", sequence)))
        elif kind == "write" and blobs:
            n_held, mine, other = rng.choice(blobs)
            assert pair.two.write_sequence(sequence, mine)
            assert pair.one.write_sequence(sequence, other)
            lengths[sequence] = n_held
        if kind in ("chunk", "long", "all") or (kind == "one" and sequence == 0):
            lengths[sequence] += n
        if rng.random() < 0.1:
            assert all(pair.both("length", one) == (lengths[one],) * 2 for one in range(4))
    assert seen == {"chunk", "long", "one", "all", "step", "cut", "adapters", "read", "write"}
    pair.both("clear")
    assert pair.two.length(0) == 0


def test_a_drawn_token_comes_from_the_last_output_wherever_it_is(pair):
    ids = [i % pair.n_vocab for i in range(LEAST_TOKENS)]
    for n in (LEAST_TOKENS, 5):
        pair.both("clear")
        pair.both("decode", [1, 2, 3], 0)
        pair.both("decode", ids[:n], 3)
        for sampling in (
            Sampling(),
            Sampling(temperature=1.0, top_k=50, seed=3),
            Sampling(temperature=1.0, top_k=0, seed=3),
        ):
            drawn = []
            for context in (pair.two, pair.one):
                with Sampler(sampling) as sampler:
                    drawn.append(sampler.sample(context))
            assert drawn[0] == drawn[1]


def test_an_adapter_that_is_freed_leaves_both_contexts(pair):
    ids = [i % pair.n_vocab for i in range(LEAST_TOKENS)]
    pair.set([(0, 1.0)])
    pair.both("decode", ids, 0)
    with_adapter = pair.two.logits()
    for loaded in pair.adapters:
        loaded[0].close()
    assert pair.two.adapters == pair.two.prompts.adapters == []
    pair.both("clear")
    pair.both("decode", ids, 0)
    pair.equal()
    assert not np.array_equal(pair.two.logits(), with_adapter)


def test_a_prompt_that_has_no_room_leaves_what_was_there(pair):
    ids = [i % pair.n_vocab for i in range(900)]
    pair.both("decode", ids, 0)
    for context in (pair.two, pair.one):
        with pytest.raises(DoesNotFitError):
            context.decode(ids[:300], 900)
    pair.both("remove", 0, 900)
    pair.both("decode", ids[:20], 900)
    pair.equal()


@pytest.mark.skipif(not TILED, reason="no CPU with AVX-512 VNNI, for which the stored layout is faster")
def test_prompts_are_those_of_the_stored_weights_and_tokens_those_of_the_copies(q4_k):
    options = {**OPTIONS, "n_seq_max": 1}
    with (
        Model.load(q4_k) as model,
        Model.load(q4_k, repack=False) as plain,
        StoredModel(model) as stored,
        TwoLayouts(model, stored, **options) as two,
        Context(plain, **options) as as_stored,
        Context(model, **options) as copies,
    ):
        ids = [(7 * i) % model.vocab.n_tokens for i in range(256)]
        for context in (two, as_stored, copies):
            context.decode(ids, 0)
        assert np.array_equal(two.logits(), as_stored.logits())
        assert not np.array_equal(two.logits(), copies.logits())
        assert copies.write_sequence(0, as_stored.read_sequence(0))
        for context in (two, copies):
            context.decode_one(5, 256)
        assert np.array_equal(two.logits(), copies.logits())


def test_a_session_of_two_layouts_answers_as_one_of_one(base, adapters):
    """Swaps with kept prefixes, several adapters, answers at once, guesses: over F32 all the same."""
    files = {"a": (adapters[0], None), "b": (adapters[1], None)}
    prompts = ["the cat sat on the mat " * n for n in (3, 20, 60, 41)]
    found = []
    for both in (True, False):
        options = {"both_layouts": True} if both else {"repack": True}
        with Session.of_files(base, files, threads=1, speculate="fast", **options) as session:
            assert isinstance(session.context, TwoLayouts) is both
            answers = []
            for name in (None, "a", "b", {"a": 0.5, "b": 0.5}, "a", None):
                session.use(name)
                answers += [session.ask(prompt, max_tokens=12, system="").token_ids for prompt in prompts]
            waiting = [session.submit(prompt, max_tokens=12, system="") for prompt in prompts]
            answers += [one.result().token_ids for one in waiting]
            assert session.prefixes.store.n_restored > 0
            found.append(answers)
    assert found[0] == found[1]


def test_a_base_whose_name_was_given_to_another_file_goes_on(base, tmp_path):
    path = shutil.copy(base, tmp_path / "base.gguf")
    prompt = "the cat sat on the mat " * 30
    with Session.of_files(base, {}, threads=1) as session:
        expected = session.ask(prompt, max_tokens=8).token_ids
    with Session.of_files(path, {}, threads=1, both_layouts=True) as session:
        (tmp_path / "other").write_bytes(b"nothing")
        (tmp_path / "other").rename(path)
        assert session.ask(prompt, max_tokens=8).token_ids == expected
        assert session.context.prompts is not None


def test_pages_that_are_mapped_twice_count_once(tmp_path):
    n_bytes = 64 * mmap.PAGESIZE
    path = tmp_path / "file"
    path.write_bytes(bytes(n_bytes))
    before = counted_twice_bytes()
    with path.open("rb") as file:
        maps = [mmap.mmap(file.fileno(), n_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) for _ in range(2)]
    assert [sum(one[:: mmap.PAGESIZE]) for one in maps] == [0, 0]
    assert counted_twice_bytes() - before == n_bytes
    maps.pop().close()
    assert counted_twice_bytes() == before


def test_which_layouts_are_chosen(base, q4_k, tmp_path, monkeypatch):
    few = make_base(tmp_path / "few.gguf", like=base, type=GgmlType.Q8_0, head=GgmlType.Q4_K)
    monkeypatch.setattr("slm_edge.edge.memory.fit.cpu_features", lambda: frozenset({"AVX", "AVX2", "AVX512_VNNI"}))
    info = BaseInfo.open(q4_k)
    assert layouts(BaseInfo.open(base), None, None, None) == [(True, False), (False, False)]
    # A prompt needs the head for one token alone.
    assert layouts(BaseInfo.open(few), None, None, None) == [(True, False), (False, False)]
    assert layouts(info, None, None, None) == [(True, True), (True, False), (False, False)]
    assert layouts(info, None, None, False) == layouts(info, None, False, None) == [(True, False), (False, False)]
    assert layouts(info, True, None, None) == [(True, False)]
    assert layouts(info, False, None, None) == [(False, False)]
    monkeypatch.setattr("slm_edge.edge.memory.fit.FEW", 1.0)
    assert layouts(info, None, None, None) == [(False, False)]
    monkeypatch.setattr("slm_edge.edge.memory.fit.cpu_features", lambda: frozenset({"AVX", "AVX2"}))
    assert layouts(info, None, None, None) == [(True, False), (False, False)]


@pytest.mark.skipif(not TILED, reason="no CPU with AVX-512 VNNI, for which the stored layout is faster")
def test_the_second_layout_is_the_first_thing_to_be_given_up(q4_k, monkeypatch):
    info = BaseInfo.open(q4_k)
    assert faster_as_stored(info.file, cpu_features())
    both, one = (plan_memory(info, both_layouts=both) for both in (True, False))
    assert both.total_bytes > one.total_bytes
    assert fit(info, both.total_bytes).choices.both_layouts
    less = fit(info, both.total_bytes - 1).choices
    assert (less.both_layouts, less.repack, less.n_ctx_tokens, less.kv_type) == (False, True, 2048, "f16")
    monkeypatch.setattr("slm_edge.edge.memory.fit.memory_limit_bytes", lambda: None)
    most = 2 * plan_session(info, {"both_layouts": True}).total_bytes
    for machine_bytes, expected in ((most, True), (most - 2, False)):
        monkeypatch.setattr("slm_edge.edge.memory.fit.machine_bytes", lambda n=machine_bytes: n)
        assert plan_session(info, {}).choices.both_layouts is expected


def test_without_a_second_layout_the_context_is_a_plain_one(base):
    for both_layouts, kind in ((False, Context), (True, TwoLayouts)):
        with Session.of_files(base, {}, threads=1, both_layouts=both_layouts) as session:
            assert type(session.context) is kind
