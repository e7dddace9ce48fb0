"""What a session keeps of a conversation: what is bit for bit the same, and with reuse="fast" the answers too."""

import pytest
from build_gguf import tiny_adapter, tiny_base
from slm_edge.edge import InputError
from slm_edge.edge.onnx.session import OnnxSession
from slm_edge.edge.session.session import Session
from slm_edge.export.onnx.base import export_onnx

LONG = "and the other is in the sea, " * 30
# Its letters are tokens of their own, so that an answer is read as it was written.
LETTERS = "root ::= [0-9] [0-9] [0-9] [0-9] [0-9]"


def talked(session, adapter=None):
    """Three turns: the answers, with what was kept of each prompt."""
    talk, answers = [], []
    for text in (LONG, "And then?", "Why?"):
        talk.append({"role": "user", "content": text})
        answers.append(session.ask(talk, adapter=adapter, grammar=LETTERS))
        talk.append({"role": "assistant", "content": answers[-1].text})
    return answers


def test_the_next_turn_keeps_the_answer_too(tmp_path):
    base = tiny_base(tmp_path / "base.gguf")
    files = {name: (tiny_adapter(tmp_path / f"{name}.gguf", base, seed=i), None) for i, name in enumerate("ab", 1)}
    with (
        Session.of_files(base, files, threads=1) as exact,
        Session.of_files(base, files, threads=1, reuse="fast") as fast,
    ):
        for name in ("a", "b", None, "a"):
            expected, answers = talked(exact, name), talked(fast, name)
            assert [one.token_ids for one in answers] == [one.token_ids for one in expected]
            for before, answer, other in zip(answers, answers[1:], expected[1:], strict=False):
                assert answer.n_kept_tokens == before.n_prompt_tokens + before.n_tokens
                assert other.n_kept_tokens <= before.n_prompt_tokens and other.n_kept_tokens % 128 == 0
        # Another adapter's are never kept.
        assert fast.ask(LONG, adapter="b", max_tokens=1).n_kept_tokens < len(fast.prompt_tokens(LONG)) - 1
    with pytest.raises(InputError, match="reuse"):
        Session.of_files(base, {}, reuse="most")


def test_windows_and_the_other_engine(tmp_path):
    windows = tiny_base(tmp_path / "windows.gguf", architecture="gemma3", n_ctx_train_tokens=4096)
    with (
        Session.of_files(windows, {}, threads=1) as exact,
        Session.of_files(windows, {}, threads=1, reuse="fast") as fast,
    ):
        assert [one.token_ids for one in talked(fast)] == [one.token_ids for one in talked(exact)]
    onnx = export_onnx(tiny_base(tmp_path / "base.gguf"), tmp_path / "onnx", kind="f32").base.folder
    with (
        OnnxSession.of_files(onnx, {}, threads=1) as exact,
        OnnxSession.of_files(onnx, {}, threads=1, reuse="fast") as fast,
    ):
        expected, answers = talked(exact), talked(fast)
        assert [one.token_ids for one in answers] == [one.token_ids for one in expected]
        assert answers[1].n_kept_tokens == answers[0].n_prompt_tokens + answers[0].n_tokens
