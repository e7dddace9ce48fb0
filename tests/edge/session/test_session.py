"""Sessions: after any swap every answer is what a fresh session gives, token for token and logit bit for bit."""

import numpy as np
import pytest
from build_gguf import adapter_parts, tiny_adapter, tiny_adapters, tiny_base, write_gguf
from gguf import GGUFValueType
from slm_edge.edge.errors import DamagedError, DoesNotFitError, EngineError, InputError
from slm_edge.edge.gguf.families import FAMILIES
from slm_edge.edge.options import CHUNK_TOKENS
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.prefix.chunks import AdapterState, KvRecord, Section, chunk_ends, chunks_of
from slm_edge.edge.session.session import Session

LONG = "the world and the rest of it, again and again. " * 8


@pytest.fixture(scope="module")
def two(base):
    return tiny_adapters(base, AB)


AB = {"a": 1, "b": 2}


def fresh(base, adapters, name, prompt, **settings):
    """What a session gives that has done nothing before: tokens, and the logits it ended with."""
    with Session.of_files(base, adapters, threads=1) as session:
        answer = session.use(name).ask(prompt, **settings)
        return answer.token_ids, session.context.logits()


def assert_as_fresh(base, adapters, turns, **settings):
    kept = []
    with Session.of_files(base, adapters, threads=1) as session:
        for name, prompt in turns:
            answer = session.use(name).ask(prompt, **settings)
            logits = session.context.logits()
            tokens, expected = fresh(base, adapters, name, prompt, **settings)
            assert answer.token_ids == tokens, (name, prompt)
            assert np.array_equal(logits.view(np.uint32), expected.view(np.uint32)), (name, prompt)
            kept.append(answer.n_kept_tokens)
    return kept


def test_swaps_with_equal_prompts(base, two):
    turns = [(name, LONG) for name in ("a", "b", "a", "b", None, "a", "a", None, None)]
    kept = assert_as_fresh(base, two, turns, max_tokens=12)
    # What an adapter computed once is there again when it comes back.
    assert [n > 0 for n in kept] == [False, False, True, True, False, True, True, True, True]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_swaps_on_every_family(tmp_path, architecture):
    base = tiny_base(tmp_path / "base.gguf", architecture=architecture, n_layers=4)
    two = tiny_adapters(base, AB)
    names = ("a", "b", "a", None, "b", None)
    turns = [(name, LONG + "question " * (i // 2)) for i, name in enumerate(names)]
    kept = assert_as_fresh(base, two, turns, max_tokens=6)
    assert [n >= CHUNK_TOKENS for n in kept] == [False, False, True, False, True, True]
    texts = {name: tuple(fresh(base, two, name, LONG, max_tokens=6)[0]) for name in ("a", "b", None)}
    assert len(set(texts.values())) == 3


def test_swaps_with_shared_beginnings(base, two):
    names = ("a", "b", "a", "b", None, "a", "a", "a", None, None)
    turns = [(name, LONG + "question " * i) for i, name in enumerate(names)]
    kept = assert_as_fresh(base, two, turns, max_tokens=12)
    assert [n >= CHUNK_TOKENS for n in kept] == [False, False, True, True, False, True, True, True, True, True]


def test_shorter_longer_and_other_prompts(base, two):
    prompts = (LONG * 2, LONG, "hello", LONG, LONG * 3, LONG[:-40] + "x", "hello", LONG * 2)
    assert_as_fresh(base, two, [("a", prompt) for prompt in prompts], max_tokens=9)


def test_one_adapter_at_two_strengths(base, two):
    with Session.of_files(base, two, threads=1) as session:
        half = session.use("a", scale=0.5).ask(LONG, max_tokens=8)
        whole = session.use("a").ask(LONG, max_tokens=8)
        assert whole.n_kept_tokens == 0
        assert whole.token_ids == fresh(base, two, "a", LONG, max_tokens=8)[0]
        assert half.token_ids != whole.token_ids


def test_an_answer_left_early_leaves_nothing_behind(base, two):
    with Session.of_files(base, two, threads=1) as session:
        left = session.use("a").stream(LONG, max_tokens=50)
        next(left)
        session.use("b").ask("hello", max_tokens=3)
        with pytest.raises(EngineError, match="another prompt was begun"):
            list(left)
        stopped = session.use("a").stream(LONG, max_tokens=50)
        next(stopped)
        stopped.close()
        answer = session.ask(LONG + "and", max_tokens=10)
        assert answer.token_ids == fresh(base, two, "a", LONG + "and", max_tokens=10)[0]


def test_use_does_not_disturb_an_answer_that_is_being_read(base, two):
    with Session.of_files(base, two, threads=1) as session:
        stream = session.use("a").stream(LONG, max_tokens=20)
        next(stream)
        session.use("b")
        for _ in stream:
            pass
        assert stream.answer.token_ids == fresh(base, two, "a", LONG, max_tokens=20)[0]
        assert stream.answer.adapter == "a"


def test_a_failing_decode_is_forgotten(base, two, monkeypatch):
    with Session.of_files(base, two, threads=1) as session:
        session.use("a").ask(LONG, max_tokens=5)
        decode = session.context.decode

        def stop_late(token_ids, position, **how):
            decode(token_ids, position, **how)
            if position >= CHUNK_TOKENS:
                raise KeyboardInterrupt

        monkeypatch.setattr(session.context, "decode", stop_late)
        with pytest.raises(KeyboardInterrupt):
            session.ask(LONG * 2, max_tokens=5)
        monkeypatch.undo()
        answer = session.ask(LONG * 2, max_tokens=12)
        assert answer.token_ids == fresh(base, two, "a", LONG * 2, max_tokens=12)[0]


def test_what_is_kept_is_only_whole_equal_chunks():
    n = CHUNK_TOKENS
    assert chunk_ends(2 * n + 5) == [n, 2 * n, 2 * n + 5]
    assert chunk_ends(n) == [n]
    assert chunk_ends(5 * n) == [n, 2 * n, 4 * n, 5 * n]
    assert chunk_ends(1) == [1] and chunk_ends(0) == []
    state = AdapterState((("f" * 64, 1.0),))
    prompt = list(range(2 * n + 5))
    record = KvRecord()
    for start, end in zip([0, n, 2 * n], chunk_ends(len(prompt)), strict=True):
        record.add(prompt[start:end], state)
    record.add([7], state)

    def reusable(tokens, under=state, first=None):
        sections = [Section(len(tokens), under)]
        return record.reusable(tokens, chunks_of([Section(first, under), *sections] if first else sections))

    assert reusable(prompt) == 2 * n
    assert reusable(prompt[: 2 * n]) == n
    assert reusable(prompt[:n]) == 0
    assert reusable([*prompt, 7, *range(n)]) == 2 * n
    assert reusable([*prompt[: n + 3], 0, *prompt[n + 4 :]]) == n
    assert reusable(prompt, AdapterState((("f" * 64, 0.5),))) == 0
    assert reusable(prompt, AdapterState()) == 0
    # Cut elsewhere, the same tokens are other chunks.
    assert reusable(prompt, first=n + 1) == n
    assert reusable(prompt, first=n - 1) == 0


def test_unknown_adapters_are_answered_with_those_that_are(base, two):
    with Session.of_files(base, two, threads=1) as session, pytest.raises(InputError, match="no adapter 'bb'") as told:
        session.use("bb")
    assert "there are: b, a, none" in str(told.value)


def test_an_adapter_that_does_nothing_or_too_much_is_refused(base, tmp_path):
    from slm_edge.edge.llama.model import Model
    from slm_edge.edge.session.shelf import Canary

    nothing = tiny_adapter(tmp_path / "nothing.gguf", base, size=0.0)
    too_much = tiny_adapter(tmp_path / "much.gguf", base, size=2e4)
    with Model.load(base) as model:
        canary = Canary(model, threads=1)
        with pytest.raises(EngineError, match="changes nothing"):
            canary.check(model.load_adapter(nothing), 1.0)
        with pytest.raises(EngineError, match="not a number"):
            canary.check(model.load_adapter(too_much), 1.0)
    with Session.of_files(base, {"much": (too_much, None)}, threads=1) as session:
        with pytest.raises(EngineError, match="not a number"):
            session.use("much")
        assert session.model.adapters == {}
        assert session.ask("hello", max_tokens=2).adapter is None


def test_what_an_adapter_proved_once_is_remembered_for_these_bytes_alone(base, tmp_path, monkeypatch):
    from slm_edge.edge.files.cache import cache_folder
    from slm_edge.edge.llama import binding
    from slm_edge.edge.session.shelf import Canary

    tries, check = [], Canary.check
    monkeypatch.setattr(Canary, "check", lambda *given, **named: (tries.append(given), check(*given, **named)))

    def n_tries(file, base=base, then=lambda: None, **options):
        tries.clear()
        with Session.of_files(base, {"x": (file, None)}, threads=1, **options) as session:
            then()
            session.use("x")
        return len(tries)

    good = tiny_adapter(tmp_path / "good.gguf", base, seed=1)
    assert [n_tries(good), n_tries(good)] == [1, 0]
    # Another file, another base, and what failed are tried.
    assert n_tries(tiny_adapter(tmp_path / "other.gguf", base, seed=2)) == 1
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(base.read_bytes())
    assert n_tries(good, copy) == 1
    # So is what another base's file proved that was put in its place meanwhile, and another way of computing.
    aside = tmp_path / "aside.gguf"
    aside.write_bytes(base.read_bytes())
    assert n_tries(good, copy, lambda: aside.replace(copy)) == 0
    assert n_tries(good, copy) == 1
    assert [n_tries(good, repack=False), n_tries(good, repack=False)] == [1, 0]
    with monkeypatch.context() as other:
        other.setattr(binding, "_joined", binding.PromptKernels("another", sha256="0" * 64))
        assert [n_tries(good), n_tries(good)] == [1, 0]
    assert n_tries(good) == 0
    too_much = tiny_adapter(tmp_path / "much.gguf", base, size=2e4)
    for _ in range(2):
        with pytest.raises(EngineError, match="not a number"):
            n_tries(too_much)
    # A record that was cut tells nothing.
    for record in (cache_folder() / "first-loads").iterdir():
        record.write_bytes(b"")
    assert [n_tries(good), n_tries(good)] == [1, 0]
    # Without a cache to write to it is tried each time.
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, no folder")
    monkeypatch.setenv("SLM_EDGE_CACHE", str(blocked))
    assert [n_tries(good), n_tries(good)] == [1, 1]


def test_foreign_and_changed_files_and_missing_invocations_are_refused(base, two, tmp_path):
    arch, keys, tensors = adapter_parts(base)
    keys["adapter.alora.invocation_tokens"] = ([5, 6], GGUFValueType.ARRAY, GGUFValueType.UINT32)
    activated = write_gguf(tmp_path / "activated.gguf", arch, keys, tensors)
    with (
        Session.of_files(base, {"activated": (activated, None)}, threads=1) as session,
        pytest.raises(InputError, match="does not hold the invocation"),
    ):
        session.use("activated").ask("hello")
    foreign = tiny_adapter(tmp_path / "foreign.gguf", tiny_base(tmp_path / "other.gguf", n_embd=32))
    with pytest.raises(InputError, match="cannot be used as an adapter"):
        Session.of_files(base, {"foreign": (foreign, None)}, threads=1)
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(two["a"][0].read_bytes())
    with Session.of_files(base, {"changed": (changed, None)}, threads=1) as session:
        changed.write_bytes(two["b"][0].read_bytes())
        with pytest.raises(DamagedError, match="changed since"):
            session.use("changed")


def test_context_limits(base, two):
    with Session.of_files(base, two, threads=1, n_ctx_tokens=64) as session:
        with pytest.raises(DoesNotFitError, match=r"prompt has \d\d+ tokens and up to 256.*holds 64"):
            session.ask(LONG)
        answer = session.use("a").ask("the world and", max_tokens=500)
        assert answer.stop_reason == "context"
        # The last token chosen needs no place of its own.
        assert answer.n_prompt_tokens + answer.n_tokens == 64 + 1
        assert answer.token_ids == fresh(base, two, "a", "the world and", max_tokens=answer.n_tokens)[0]
    with pytest.raises(DoesNotFitError, match="4096 tokens is asked for; the base was trained for 2048"):
        Session.of_files(base, {}, n_ctx_tokens=4096)


def test_card_defaults_and_what_overrides_them(base, two):
    card = TaskCard(task="a", system="Be brief.", max_tokens=3, temperature=0.8, seed=5, scale=0.5)
    with Session.of_files(base, {"a": (two["a"][0], card)}, threads=1) as session:
        session.use("a")
        assert "Be brief." in session.model.vocab.decode(session.prompt_tokens("hello"))
        assert "Be brief." not in session.model.vocab.decode(session.prompt_tokens("hello", system=""))
        own = [{"role": "system", "content": "Be long."}, {"role": "user", "content": "hello"}]
        text = session.model.vocab.decode(session.prompt_tokens(own))
        assert "Be long." in text
        assert "Be brief." not in text
        answer = session.ask("hello")
        assert (answer.n_tokens, answer.seed, answer.stop_reason) == (3, 5, "max_tokens")
        assert session.ask("hello", max_tokens=4, temperature=0).seed is None
        for wrong in (own, " ", []):
            with pytest.raises(InputError):
                session.prompt_tokens(wrong, system="also this")


def test_a_setting_that_there_is_not_is_no_setting(base, two):
    with Session.of_files(base, two, threads=1) as session:
        with pytest.raises(InputError, match="no setting 'max_new_tokens'\n  did you mean max_tokens"):
            session.submit("hello", max_new_tokens=3)
        with pytest.raises(InputError, match="no setting 'colour'\n  there are: max_tokens, min_tokens"):
            session.ask("hello", colour="red")


def test_there_is_one_bos_when_the_template_writes_it(tmp_path):
    llama_like = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    base = tiny_base(tmp_path / "bos.gguf", add_bos=True, chat_template=llama_like)
    with Session.of_files(base, {}, threads=1) as session:
        ids = session.prompt_tokens("hello")
        assert ids[0] == session.model.vocab.bos_id
        assert ids.count(session.model.vocab.bos_id) == 1
        assert session.ask("hello", max_tokens=2).n_prompt_tokens == len(ids)


def test_stop_texts_end_the_answer_and_are_not_shown(base, two):
    with Session.of_files(base, two, threads=1) as session:
        session.use("a")
        whole = session.ask("the world", max_tokens=40).text
        stop = whole[7:10]
        assert len(stop) == 3
        stream = session.stream("the world", max_tokens=40, stop=["never there", stop])
        pieces = list(stream)
        assert stream.answer.stop_reason == "stop"
        assert "".join(pieces) == stream.answer.text == whole[: whole.index(stop)]
        assert session.ask("the world", max_tokens=40, stop="never there").text == whole


def test_same_seed_same_text(base, two):
    with Session.of_files(base, two, threads=1) as session:
        texts = [session.ask("hello", temperature=1.5, seed=seed, max_tokens=20).text for seed in (1, 1, 2)]
        assert texts[0] == texts[1] != texts[2]
        drawn = session.ask("hello", temperature=1.5, max_tokens=20)
        assert session.ask("hello", temperature=1.5, seed=drawn.seed, max_tokens=20).text == drawn.text


def test_sessions_close_in_any_order(base, two):
    first = Session.of_files(base, two, threads=1)
    second = Session.of_files(base, two, threads=1)
    first.use("a")
    second.use("a").ask("hello", max_tokens=2)
    first.close()
    first.close()
    assert second.use("b").ask("hello", max_tokens=2).n_tokens == 2
    second.close()


@pytest.mark.reference
def test_swaps_on_the_real_model(starter_base, tmp_path):
    file = tiny_adapter(tmp_path / "a.gguf", starter_base, size=0.05)
    adapters = {"a": (file, None), "b": (file, TaskCard(task="b", scale=-1.0))}
    text = "Tell me about the history of the city of Rome, its people, its rulers, and its language. " * 5
    names = ("a", "b", "a", "a")
    with Session.of_files(starter_base, adapters, threads=1) as session:
        for i, name in enumerate(names):
            prompt = text + "Why? " * i
            answer = session.use(name).ask(prompt, max_tokens=2)
            logits = session.context.logits()
            tokens, expected = fresh(starter_base, adapters, name, prompt, max_tokens=2)
            assert answer.token_ids == tokens
            assert np.array_equal(logits.view(np.uint32), expected.view(np.uint32))
            assert (answer.n_kept_tokens > 0) == (i >= 2)
