"""Answers that keep to a grammar or a JSON schema, and what is no grammar."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from build_gguf import tiny_adapter, tiny_base
from slm_edge.edge.errors import InputError
from slm_edge.edge.llama.grammar import Grammar, read_grammar, read_schema, schema_grammar
from slm_edge.edge.llama.vocab import Vocab
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.session.session import Session

SCHEMA = {
    "type": "object",
    "properties": {"legs": {"enum": [2, 4, 8]}, "tame": {"type": "boolean"}},
    "required": ["legs", "tame"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("grammar") / "base.gguf")


@pytest.fixture(scope="module")
def session(base):
    with Session.of_files(base, {}, threads=1) as opened:
        yield opened


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.5, "seed": 3}, {"temperature": 1.5, "seed": 4}])
def test_a_schema_gives_json_that_it_allows(session, settings):
    answer = session.ask("the world", max_tokens=60, grammar=schema_grammar(SCHEMA), **settings)
    assert answer.stop_reason == "end"
    data = json.loads(answer.text)
    assert sorted(data) == ["legs", "tame"]
    assert data["legs"] in (2, 4, 8)
    assert isinstance(data["tame"], bool)


def test_gbnf_with_more_than_ascii(session):
    answer = session.ask("the world", max_tokens=30, grammar='root ::= ("ü" | "日本") [0-9]{3}')
    assert re.fullmatch(r"(ü|日本)[0-9]{3}", answer.text)
    assert answer.stop_reason == "end"


def test_the_choice_among_what_is_allowed_is_the_models(session):
    prompt = session.prompt_tokens("the world")
    letters = {session.model.vocab.encode(letter)[0]: letter for letter in "abcdefgh"}
    session.context.clear()
    session.context.decode(prompt, 0)
    logits = session.context.logits()
    best = letters[max(letters, key=lambda token_id: logits[token_id])]
    with Session.of_files(session.base.file.path, {}, threads=1) as fresh:
        assert fresh.ask("the world", grammar="root ::= [a-h]").text == best


def test_without_a_grammar_nothing_changes(session):
    assert session.ask("the world", max_tokens=9, grammar="").text == session.ask("the world", max_tokens=9).text


def test_requests_that_are_batched_keep_to_it(session):
    done = [session.submit("the world", max_tokens=9, grammar='root ::= "yes" | "no"') for _ in range(2)]
    assert {pending.result().text for pending in done} <= {"yes", "no"}


def test_the_task_cards_own(base, tmp_path):
    adapter = tiny_adapter(tmp_path / "a.gguf", base)
    card = TaskCard.of({"task": "legs", "schema": SCHEMA, "max_tokens": 60})
    assert TaskCard.of(json.loads(json.dumps(card.as_dict()))) == card
    with Session.of_files(base, {"legs": (adapter, card)}, threads=1) as session:
        assert set(json.loads(session.use("legs").ask("the world").text)) == {"legs", "tame"}
    with pytest.raises(InputError) as caught:
        TaskCard.of({"task": "x", "schema": [1], "grammar": 7})
    assert len(caught.value.problems) >= 2


@pytest.mark.parametrize(
    "text",
    ["", " ", "root ::= foo", 'root ::= root "a"', 'x ::= "a"', 'root ::= ("a"', "root ::= [a-", "\0", 'root := "a"'],
)
def test_what_is_no_grammar_is_one_error_and_nothing_on_stderr(base, text, capfd):
    with Vocab.open(base) as vocab, pytest.raises(InputError):
        Grammar(text, vocab)
    assert capfd.readouterr().err == ""


def test_the_parsers_own_words_are_in_the_error(base):
    with Vocab.open(base) as vocab, pytest.raises(InputError) as caught:
        Grammar("root ::= foo", vocab)
    assert "foo" in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nothing"},
        {"$ref": "#/nowhere"},
        {"type": "string", "pattern": "a"},
        {"properties": 5},
        {"items": {"minimum": 3}},
    ],
)
def test_schemas_that_cannot_be_used(schema):
    with pytest.raises(InputError, match="JSON schema"):
        schema_grammar(schema)


def test_files_that_are_no_schema_or_grammar(tmp_path):
    file = tmp_path / "x"
    for content, words in ((b"{", "JSON"), (b"[1]", "object"), (b"\xff", "UTF-8"), (b'{"type": "no"}', "schema")):
        file.write_bytes(content)
        with pytest.raises(InputError, match=words):
            read_schema(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_grammar(tmp_path / "absent")


def test_the_mask_agrees_with_one_token_at_a_time(base):
    with Vocab.open(base) as vocab:
        grammar = Grammar('root ::= "the" [0-9]', vocab)
        masked = grammar.mask(np.zeros(vocab.n_tokens, np.float32))
        allowed = {token_id for token_id in range(vocab.n_tokens) if grammar.allows(token_id)}
        assert set(np.flatnonzero(np.isfinite(masked))) == allowed
        assert {vocab.piece(token_id) for token_id in allowed} == {b"t", b"th"}
        grammar.close()


def test_the_converter_comes_without_the_package_around_it():
    code = (
        "import sys; from slm_edge.edge.llama.grammar import schema_grammar\n"
        "schema_grammar({'type': 'integer'}); print('llama_cpp' in sys.modules, 'llama_cpp.llama' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.split() == ["False", "False"]
