"""The same engine over onnxruntime: answers of a session alone, rows that stay, answers laid aside, files replaced."""

import pytest
from build_gguf import tiny_adapter, tiny_base
from slm_edge.edge import Engine, EngineError
from slm_edge.edge.llama.abort import AbortFlag
from slm_edge.edge.llama.sampling import Sampler, Sampling
from slm_edge.edge.onnx.session import OnnxSession
from slm_edge.export.onnx.adapter import export_onnx_adapter
from slm_edge.export.onnx.base import export_onnx

PROMPTS = [f"the world number {i} " + "and this " * (i * 5 % 17) for i in range(6)]
LONG = "and the other is in the sea, " * 25


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    base = tiny_base(folder / "base.gguf")
    onnx = export_onnx(base, folder / "onnx", kind="f32").base
    files = {}
    for seed, name in enumerate("abc", 1):
        adapter = tiny_adapter(folder / f"{name}.gguf", base, seed=seed, task=name)
        files[name] = folder / f"{name}.onnx_adapter"
        export_onnx_adapter(adapter, onnx, files[name])
    return folder / "onnx", files


@pytest.fixture(scope="module")
def alone(made):
    with OnnxSession.of_files(made[0], {name: (file, None) for name, file in made[1].items()}, threads=1) as session:
        yield lambda prompt, name, **settings: session.ask(prompt, adapter=name, **settings).token_ids


@pytest.fixture
def engine(made):
    files = {name: (made[1][name], None) for name in "ab"}
    with Engine.of_session(lambda: OnnxSession.of_files(made[0], files, threads=1), parallel=2) as engine:
        yield engine


def test_answers_are_those_of_a_session_alone(engine, alone):
    names = ["a", "b", None, {"a": 0.5, "b": 2.0}]
    asked = [(prompt, name, 6 + 5 * i) for i, prompt in enumerate(PROMPTS) for name in names]
    tickets = [engine.submit(prompt, name, max_tokens=n, key="me" if n % 2 else "") for prompt, name, n in asked]
    gone = engine.submit(LONG, "a", max_tokens=500)
    gone.cancel()
    for (prompt, name, n), ticket in zip(asked, tickets, strict=True):
        assert ticket.result().token_ids == alone(prompt, name, max_tokens=n), (prompt, name)
    with pytest.raises(EngineError, match="cancelled"):
        gone.result()
    stats = engine.stats()
    assert (stats.n_answered, stats.n_failed, stats.n_cancelled) == (len(asked), 0, 1)
    # Four flows over two rows: some waited aside.
    assert stats.n_parked > 0 and stats.parked_bytes == 0


def test_penalties_of_each_answer_in_a_batch_are_its_own(engine, alone):
    bent = [{"frequency_penalty": 1.5}, {"repeat_penalty": 1.5}, {"logit_bias": {40: 9.0}}, {}]
    tickets = [engine.submit(PROMPTS[3], "a", max_tokens=14, **how) for how in bent]
    answers = [ticket.result().token_ids for ticket in tickets]
    assert answers == [alone(PROMPTS[3], "a", max_tokens=14, **how) for how in bent]
    assert len(set(answers)) == len(bent)


def test_a_flag_ends_the_part_of_a_prompt_that_is_being_computed(made, alone):
    """That part counts as nothing; what was there before stays, and so do other rows."""
    with OnnxSession.of_files(made[0], {"a": (made[1]["a"], None)}, threads=1) as session:
        request = session.request(LONG * 4, session.choice_of("a"), None, {"max_tokens": 5})
        prompt, sections = request.prompt, session.sections(session.choice_of("a"), request.prompt)
        rows = session.row_maker()(2, session.n_ctx_tokens)
        other = [token_id + 1 for token_id in prompt]
        assert list(rows.fill(1, other, sections, True))[-1] == len(other)
        flag = AbortFlag()
        filling = rows.fill(0, prompt, sections, True, flag)
        assert next(filling) == 0
        first = next(filling)
        flag.set()
        with pytest.raises(EngineError, match="onnxruntime") as ended:
            next(filling)
        assert "terminate" in str(ended.value.problems).lower()
        assert rows.kept(0, prompt, sections, True) == first < len(prompt) - 1
        assert rows.kept(1, other, sections, True) == len(other) - 1
        assert list(rows.fill(0, prompt, sections, True))[-1] == len(prompt)
        assert rows.sample(Sampler(Sampling()), -1) == alone(LONG * 4, "a", max_tokens=1)[0]


def test_a_row_keeps_what_was_computed_in_it(engine, alone):
    first = engine.submit(LONG, "a", max_tokens=20).result()
    again = engine.submit(LONG, "a", max_tokens=20).result()
    assert (first.n_kept_tokens, again.n_kept_tokens) == (0, first.n_prompt_tokens - 1)
    assert engine.submit(LONG, "b", max_tokens=3).result().n_kept_tokens == 0
    assert engine.submit(LONG, "a", key="me", max_tokens=3).result().n_kept_tokens == 0
    assert first.token_ids == again.token_ids == alone(LONG, "a", max_tokens=20)


def test_an_answer_to_the_end_of_the_context_stays_beside_others(made, alone):
    files = {name: (made[1][name], None) for name in "ab"}
    with Engine.of_session(
        lambda: OnnxSession.of_files(made[0], files, threads=1, n_ctx_tokens=64), parallel=2
    ) as engine:
        full = engine.submit("the world", "a", max_tokens=500).result()
        assert full.stop_reason in ("context", "end")
        for _ in range(2):
            answer = engine.submit("the sea", "a", max_tokens=20).result()
            assert answer.token_ids == alone("the sea", "a", max_tokens=20)


def test_a_file_is_replaced_while_an_answer_runs(engine, made, alone):
    running = engine.submit(PROMPTS[1], "a", max_tokens=60)
    pieces = running.read()
    next(pieces)
    digest = engine.load("a", made[1]["c"])
    after = engine.submit(PROMPTS[1], "a", max_tokens=60)
    assert after.digest == digest != running.digest
    assert after.result().token_ids == alone(PROMPTS[1], "c", max_tokens=60)
    assert running.result().token_ids == alone(PROMPTS[1], "a", max_tokens=60)
    assert list(engine.stats().loaded_bytes) == ["a"]
