"""Answers that keep to a grammar or a JSON schema, and what is no grammar."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from build_gguf import tiny_adapter, tiny_pack
from grammar_walks import accepts, byte_ids
from slm_edge.edge.errors import EngineError, InputError
from slm_edge.edge.grammar.matcher import Grammar
from slm_edge.edge.grammar.rules import (
    lark_grammar,
    read_grammar,
    read_lark,
    read_schema,
    regex_grammar,
    schema_grammar,
)
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


def test_files_that_are_no_schema_or_grammar(tmp_path):
    file = tmp_path / "x"
    contents = (
        (b"{", "JSON"),
        (b"[1]", "object"),
        (b"\xff", "UTF-8"),
        (b'{"type": "no"}', "schema"),
        (b'{"minimum": NaN}', "only numbers"),
    )
    for content, words in contents:
        file.write_bytes(content)
        with pytest.raises(InputError, match=words) as caught:
            read_schema(file)
        assert str(file) in str(caught.value)
    file.write_bytes(b"\xef\xbb\xbfroot ::= foo")
    with pytest.raises(InputError, match="'foo' in 'root'") as caught:
        read_grammar(file)
    assert str(file) in str(caught.value)
    for read in (read_schema, read_grammar, read_lark):
        with pytest.raises(InputError, match="no such file"):
            read(tmp_path / "absent")


def test_files_without_an_end_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/zero")
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)
    (tmp_path / "loop").symlink_to("loop")
    for name, words in (("fifo", "FIFO"), ("link", "device"), ("sparse", "large"), ("loop", "read"), (".", "folder")):
        for read in (read_schema, read_grammar, read_lark):
            with pytest.raises(InputError, match=words):
                read(tmp_path / name)


def test_the_mask_agrees_with_one_token_at_a_time(base):
    with Vocab.open(base) as vocab:
        grammar = Grammar('root ::= "the" [0-9]', vocab)
        masked = grammar.mask(np.zeros(vocab.n_tokens, np.float32))
        allowed = {token_id for token_id in range(vocab.n_tokens) if grammar.allows(token_id)}
        assert set(np.flatnonzero(np.isfinite(masked))) == allowed
        assert {vocab.piece(token_id) for token_id in allowed} == {b"t", b"th"}
        grammar.close()


def test_tokens_that_nobody_would_choose_are_allowed_as_well(base):
    """A text that is sure to come may be spelt in any tokens: the model, not the tokenizer, says which."""
    with Vocab.open(base) as vocab:
        masked = Grammar('root ::= "the "', vocab).allowed()
        assert {vocab.piece(int(i)) for i in np.flatnonzero(masked)} == {b"t", b"th"}
        assert {
            vocab.piece(int(i)) for i in np.flatnonzero(Grammar(schema_grammar({"const": "the"}), vocab).allowed())
        } == {b'"'}


def test_special_tokens_are_no_text_and_have_names(base):
    with Vocab.open(base) as vocab:
        everything = Grammar("root ::= .*", vocab).allowed()
        special = {i for i in range(vocab.n_tokens) if not vocab.piece(i)}
        assert special - {int(i) for i in np.flatnonzero(everything)} == special - set(vocab.ends())
        start = vocab.encode("<|im_start|>")[0]
        for grammar in ('root ::= <|im_start|> "a"', f'root ::= <[{start}]> "a"'):
            assert np.flatnonzero(Grammar(grammar, vocab).allowed()).tolist() == [start]
        rules = lark_grammar('start: <|im_start|> "a"')
        assert np.flatnonzero(Grammar(rules, vocab).allowed()).tolist() == [start]
        with pytest.raises(InputError, match="nobody"):
            Grammar(lark_grammar("start: <|nobody|>"), vocab)


def test_the_state_ends_with_the_answer_and_not_before(base):
    with Vocab.open(base) as vocab:
        grammar, a = Grammar('root ::= "a" "a"?', vocab), vocab.encode("a")[0]
        assert not grammar.allows(vocab.eos_id)
        assert grammar.n_allowed([a, a, a]) == 2
        for _ in range(2):
            assert grammar.n_allowed([a, vocab.eos_id]) >= 1
            grammar.accept(a)
        assert {int(i) for i in np.flatnonzero(grammar.allowed())} == set(vocab.ends())
        assert grammar.allows(vocab.eos_id) and not grammar.allows(a) and grammar.n_allowed([]) == 0
        grammar.accept(vocab.eos_id)
        with pytest.raises(EngineError):
            Grammar('root ::= "a"', vocab).accept(vocab.eos_id)


def test_rows_longer_and_shorter_than_the_vocabulary(base):
    """Graphs and checkpoints pad their last layer."""
    with Vocab.open(base) as vocab:
        grammar = Grammar("root ::= [a-h]", vocab)
        whole = grammar.mask(np.zeros(vocab.n_tokens, np.float32))
        assert np.array_equal(grammar.mask(np.zeros(vocab.n_tokens + 7, np.float32))[:-7], whole)
        assert np.array_equal(grammar.mask(np.zeros(200, np.float32)), whole[:200])
        assert not np.isfinite(grammar.mask(np.zeros(vocab.n_tokens + 7, np.float32))[-7:]).any()


@pytest.mark.parametrize(
    "text, right, wrong",
    [
        (r"^\d{3}$", "123", "12"),
        ("(?i)yes|no", "YES", "yesno"),
        ("a/b\\/c", "a/b/c", "a/b"),
        ("^a|b$", "b", "ab"),
        ("a\nb", "a\nb", "a b"),
        ("ü[^a]+", "übß", "ü"),
    ],
)
def test_a_regular_expression_is_the_whole_answer(base, text, right, wrong):
    with Vocab.open(base) as vocab:
        ids = byte_ids(vocab)
        assert accepts(regex_grammar(text), vocab, ids, right.encode())
        assert not accepts(regex_grammar(text), vocab, ids, wrong.encode())


def test_lark_with_json_in_it(session):
    rules = lark_grammar('start: "legs: " %json {"type": "integer", "minimum": 2, "maximum": 8}')
    assert re.fullmatch("legs: [2-8]", session.ask("the world", grammar=rules, max_tokens=30).text)


@pytest.mark.parametrize(
    "rules, words",
    [
        (lark_grammar("start: foo"), "foo"),
        (lark_grammar("begin: /a/"), "start"),
        (regex_grammar("(a"), "regex"),
        (regex_grammar("a{5,2}"), "repetition"),
        (regex_grammar(r"\bword"), "look"),
        (schema_grammar({"$ref": "#"}), "nothing keeps to it"),
        (schema_grammar({"type": "string", "minLength": 3, "maxLength": 2}), ""),
    ],
)
def test_rules_that_cannot_be_used_are_one_short_error(session, rules, words):
    n_turns = session._lane.turn
    with pytest.raises(InputError, match="cannot be used") as caught:
        session.ask("the world", grammar=rules)
    assert words in str(caught.value) and len(str(caught.value)) < 600 and "backtrace" not in str(caught.value)
    # No prompt was computed for it.
    assert session._lane.turn == n_turns


def test_without_rules_nothing_of_it_is_imported(base, tmp_path):
    pack = tiny_pack(tmp_path)
    code = (
        "import sys; from slm_edge.edge.cli.main import main\n"
        f"sys.argv = ['slm-edge', 'run', '--pack', {str(pack)!r}, '--max-tokens', '3', *sys.argv[1:], 'hello']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted(name for name in sys.modules if name.startswith('llguidance')))\n"
    )
    for options, imported in (([], False), (["--regex", "[0-9]"], True)):
        done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, encoding="utf-8", check=True)
        assert (done.stdout.splitlines()[-1] != "[]") is imported, done.stdout
