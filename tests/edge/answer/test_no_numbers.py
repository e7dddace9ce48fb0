"""Output that is not a number ends the answer that it belongs to, and neither its neighbours nor any later one."""

import numpy as np
import pytest
from build_gguf import tiny_base
from slm_edge.edge import Engine
from slm_edge.edge.errors import EngineError
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.onnx.folder import DATA_FILE
from slm_edge.edge.onnx.session import OnnxSession
from slm_edge.edge.session.ngrams import Ngrams
from slm_edge.edge.session.session import Session
from slm_edge.export.onnx.base import export_onnx

PROMPTS = [f"the world number {i} and this " for i in range(6)]
SAMPLED = {"max_tokens": 10, "temperature": 0.8, "seed": 3}
GREEDY = {"max_tokens": 10}
RULES = {"max_tokens": 10, "grammar": 'root ::= [^"]*', "temperature": 0.8, "seed": 3}


def answers(session, settings):
    return [session.ask(prompt, **settings).token_ids for prompt in PROMPTS]


def token_of_the_first_alone(session, clean):
    """A token in the middle of the first answer that no other prompt or answer has, and the first's prompt neither."""
    others = {t for prompt in PROMPTS for t in session.prompt_tokens(prompt)}.union(*clean[1:])
    return next(token for token in clean[0][2:-1] if token not in others | set(clean[0][:2]))


def with_nan(path, base, token_id):
    """Writes NaN in place of a token's embedding, which is looked for as bytes."""
    info = GgufFile.open(base).tensors["token_embd.weight"]
    n_bytes = info.shape[0] * 4
    row = base.read_bytes()[info.offset_bytes + token_id * n_bytes :][:n_bytes]
    data = path.read_bytes()
    assert data.count(row) == 1
    path.write_bytes(data.replace(row, np.full(info.shape[0], np.nan, np.float32).tobytes()))


def check(opened, spoil, settings):
    """One answer fails each time, alone and among others; the rest are what they were."""
    with opened() as session:
        clean = answers(session, settings)
        token_id = token_of_the_first_alone(session, clean)
    spoil(token_id)
    with opened() as session:
        for _ in range(2):
            waiting = [session.submit(prompt, **settings) for prompt in PROMPTS]
            with pytest.raises(EngineError, match="not a number"):
                waiting[0].result()
            assert [pending.result().token_ids for pending in waiting[1:]] == clean[1:]
            with pytest.raises(EngineError, match="not a number"):
                session.ask(PROMPTS[0], **settings)
            assert [session.ask(prompt, **settings).token_ids for prompt in PROMPTS[1:]] == clean[1:]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED, {**SAMPLED, "top_k": 0}, RULES, {**RULES, "temperature": 0}])
@pytest.mark.parametrize("flash_attention", ["auto", "off"])
def test_in_the_middle_of_an_answer(tmp_path, flash_attention, settings):
    base = tiny_base(tmp_path / "base.gguf", tied=False)

    def opened():
        return Session.of_files(base, {}, threads=1, n_parallel=2, flash_attention=flash_attention)

    check(opened, lambda token_id: with_nan(base, base, token_id), settings)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED])
def test_in_the_middle_of_an_answer_of_onnxruntime(tmp_path, settings):
    base = tiny_base(tmp_path / "base.gguf", tied=False)
    folder = export_onnx(base, tmp_path / "onnx", kind="f32", packed=False).base.folder

    def opened():
        return OnnxSession.of_files(folder, {}, threads=1, n_parallel=2)

    check(opened, lambda token_id: with_nan(folder / DATA_FILE, base, token_id), settings)


@pytest.mark.parametrize("flash_attention", ["auto", "off"])
def test_in_the_middle_of_an_answer_of_an_engine(tmp_path, flash_attention):
    """Its rows keep what they computed, for the next request that begins alike."""
    base = tiny_base(tmp_path / "base.gguf", tied=False)

    def opened():
        return Session.of_files(base, {}, threads=1, flash_attention=flash_attention)

    with opened() as session:
        clean = answers(session, GREEDY)
        token_id = token_of_the_first_alone(session, clean)
    with_nan(base, base, token_id)
    with Engine.of_session(opened, parallel=3) as engine:
        for _ in range(2):
            tickets = [engine.submit(prompt, None, **GREEDY) for prompt in PROMPTS]
            with pytest.raises(EngineError, match="not a number"):
                tickets[0].result()
            assert [ticket.result().token_ids for ticket in tickets[1:]] == clean[1:]


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("flash_attention", ["auto", "off"])
def test_a_guess_that_overflows_costs_nothing_but_itself(tmp_path, monkeypatch, flash_attention, mode):
    """A token that is only guessed may give no numbers; the one that is chosen in its place goes on as ever."""
    base = tiny_base(tmp_path / "base.gguf", tied=False)
    options = {"threads": 1, "flash_attention": flash_attention}
    with Session.of_files(base, {}, **options) as session:
        clean = answers(session, GREEDY)
        token_id = token_of_the_first_alone(session, clean)
    with_nan(base, base, token_id)
    monkeypatch.setattr(Ngrams, "guess", lambda self, n_most: ([token_id] * n_most, 64))
    with Session.of_files(base, {}, speculate=mode, **options) as session:
        made = [session.ask(prompt, **GREEDY) for prompt in PROMPTS[1:]]
        assert [answer.token_ids for answer in made] == clean[1:]
        assert all(answer.n_drafted_tokens for answer in made) or mode == "exact"
        with pytest.raises(EngineError, match="not a number"):
            session.ask(PROMPTS[0], **GREEDY)
        assert session.ask(PROMPTS[1], **GREEDY).token_ids == clean[1]
