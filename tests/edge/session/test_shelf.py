"""Adapters within a budget: the one used longest ago goes, what is pinned or in use stays, answers stay right."""

import numpy as np
import pytest
from build_gguf import adapter_parts, tiny_adapters, tiny_base, write_gguf
from slm_edge.edge.errors import DamagedError, DoesNotFitError, EngineError, InputError
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.options import MOST_LOADED
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.session.session import Session

PROMPT = "the world and the rest of it"


@pytest.fixture(scope="module")
def files(base):
    return tiny_adapters(base, {"a": 0, "b": 1, "c": 2, "d": 3})


@pytest.fixture(scope="module")
def tokens(base, files):
    with Session.of_files(base, files, threads=1) as session:
        return {name: session.use(name).ask(PROMPT, max_tokens=8).token_ids for name in files}


def opened(base, files, n, **options):
    size_bytes = files["a"][0].stat().st_size
    return Session.of_files(base, files, threads=1, adapter_budget_bytes=int((n + 0.5) * size_bytes), **options)


def test_the_one_used_longest_ago_goes_and_comes_back_right(base, files, tokens):
    with opened(base, files, 2) as session:
        seen = []
        for name in "abcabdcaab":
            assert session.use(name).ask(PROMPT, max_tokens=8).token_ids == tokens[name]
            seen.append("".join(session._shelf.loaded))
            assert len(session.model.adapters) == len(session._shelf.loaded) <= 2
        assert seen == ["a", "ab", "bc", "ca", "ab", "bd", "dc", "ca", "ca", "ab"]


def test_a_swap_does_not_grow_with_the_pack(base, files, tokens):
    """What a swap costs grows with the adapters that are loaded; so only so many are."""
    many = {f"{name}{i}": files[name] for i in range(3) for name in files}
    with Session.of_files(base, many, threads=1, pinned=["a0"]) as session:
        for name in many:
            assert session.use(name).ask(PROMPT, max_tokens=8).token_ids == tokens[name[0]]
            assert len(session.model.adapters) == len(session.loaded_adapters) <= MOST_LOADED
        assert list(session.loaded_adapters) == ["a0", *list(many)[1 - MOST_LOADED :]]
        eleven = dict.fromkeys(list(many)[1:], 0.1)
        assert session.use(eleven).ask(PROMPT, max_tokens=2).n_tokens == 2


def test_pinned_ones_stay(base, files, tokens):
    with opened(base, files, 2, pinned=["a"]) as session:
        for name in "abcd":
            assert session.use(name).ask(PROMPT, max_tokens=8).token_ids == tokens[name]
        assert "".join(session._shelf.loaded) == "ad"
    with pytest.raises(InputError, match="no adapter 'x'"):
        opened(base, files, 2, pinned=["x"])
    with opened(base, files, 1, pinned=["a"]) as session:
        session.use("a")
        with pytest.raises(DoesNotFitError, match=r"beside .* that must stay; the budget for adapters is"):
            session.use("b")
        assert session.adapter == "a"
        assert session.ask(PROMPT, max_tokens=8).token_ids == tokens["a"]


def test_a_card_pins_its_adapter(base, files, tokens):
    pinned = {**files, "b": (files["b"][0], TaskCard(task="b", pinned=True))}
    with opened(base, pinned, 2) as session:
        for name in "abcd":
            assert session.use(name).ask(PROMPT, max_tokens=8).token_ids == tokens[name]
        assert "".join(session.loaded_adapters) == "bd"


def test_an_adapter_in_use_stays_until_its_answer_is_made(base, files, tokens):
    with opened(base, files, 1) as session:
        stream = session.use("a").stream(PROMPT, max_tokens=8)
        next(stream)
        with pytest.raises(DoesNotFitError, match="answer that is being made"):
            session.use("b")
        for _ in stream:
            pass
        assert stream.answer.token_ids == tokens["a"]
        assert session.use("b").ask(PROMPT, max_tokens=8).token_ids == tokens["b"]
        # One that has not begun loads its adapter again when it does.
        late = session.use("a").stream(PROMPT, max_tokens=8)
        session.use("b").ask(PROMPT, max_tokens=2)
        for _ in late:
            pass
        assert late.answer.token_ids == tokens["a"]
        left = session.use("a").stream(PROMPT, max_tokens=8)
        next(left)
        left.close()
        assert session.use("b").ask(PROMPT, max_tokens=8).token_ids == tokens["b"]


def test_several_at_once_must_fit_together(base, files):
    with opened(base, files, 2) as session:
        session.use({"a": 0.5, "b": 0.5}).ask(PROMPT, max_tokens=2)
        with pytest.raises(DoesNotFitError):
            session.use({"a": 0.5, "b": 0.5, "c": 1.0})
        session.use({"c": 0.5, "b": 0.5})
        assert set(session._shelf.loaded) == {"b", "c"}
        with pytest.raises(InputError):
            opened(base, files, -5)


def test_a_file_that_changed_is_not_loaded_again(base, files, tmp_path):
    copies = {}
    for name in "ab":
        copy = tmp_path / f"{name}.gguf"
        copy.write_bytes(files[name][0].read_bytes())
        copies[name] = (copy, None)
    with opened(base, copies, 1) as session:
        session.use("a").ask(PROMPT, max_tokens=2)
        session.use("b")
        copies["a"][0].write_bytes(files["c"][0].read_bytes())
        with pytest.raises(DamagedError, match="changed since"):
            session.use("a")
        assert session.adapter == "b"


def test_a_scale_given_to_use_is_tried(tmp_path):
    """The card's scale alone was: at another one values overflow, and answers were chosen from no numbers."""
    base = tiny_base(tmp_path / "base.gguf")
    architecture, keys, tensors = adapter_parts(base, alpha=100, rank=4)
    file = write_gguf(tmp_path / "a.gguf", architecture, keys, [(name, np.full_like(v, 30.0)) for name, v in tensors])
    with Session.of_files(base, {"a": (file, TaskCard(task="a", scale=1e-9))}, threads=1) as session:
        session.use("a").ask("hello", max_tokens=2)
        before = session.adapter
        for asked in ({"name": "a", "scale": 10.0}, {"name": {"a": -10.0}}):
            with pytest.raises(EngineError, match=r"scale -?10 the model's output is not a number"):
                session.use(**asked)
        assert session.adapter == before
        assert session.ask("hello", max_tokens=2).n_tokens


def test_a_base_with_values_that_are_no_numbers_gives_no_answer(tmp_path):
    """They are not looked for in every matrix; what is computed with them says it."""
    base = tiny_base(tmp_path / "base.gguf")
    place = GgufFile.open(base).tensors["blk.1.ffn_down.weight"]
    with base.open("r+b") as out:
        out.seek(place.offset_bytes)
        out.write(np.array([np.inf, np.nan], np.float32).tobytes())
    with Session.of_files(base, {}, threads=1) as session:
        for ask in (session.ask, lambda text: session.submit(text).result()):
            with pytest.raises(EngineError, match="not a number"):
                ask("hello")
