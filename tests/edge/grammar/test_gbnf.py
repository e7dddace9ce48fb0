"""GBNF means what it means in llama.cpp: the same texts are allowed, checked against llama.cpp's own grammar engine."""

import contextlib
import ctypes
import os
from pathlib import Path

import numpy as np
import pytest
from grammar_walks import accepts, byte_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from slm_edge.edge.errors import InputError
from slm_edge.edge.grammar.rules import gbnf_grammar
from slm_edge.edge.llama.binding import lib


def llama_accepts(text, vocab, ids, data):
    """The same of llama.cpp's own engine, one byte after the other; None where it takes no such grammar."""
    llama = lib()
    with Path(os.devnull).open("wb") as nothing:
        kept = os.dup(2)
        os.dup2(nothing.fileno(), 2)
        try:
            sampler = llama.llama_sampler_init_grammar(vocab.handle, text.encode(), b"root")
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    if not sampler:
        return None

    def allows(token_id):
        row = np.zeros(1, [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        row["id"] = token_id
        first = ctypes.cast(row.ctypes.data, llama.llama_token_data_p)
        array = llama.llama_token_data_array(data=first, size=1, selected=-1, sorted=False)
        llama.llama_sampler_apply(sampler, ctypes.byref(array))
        return bool(np.isfinite(row["logit"][0]))

    try:
        for byte in data:
            if not allows(ids[byte]):
                return False
            llama.llama_sampler_accept(sampler, ids[byte])
        return allows(vocab.eos_id)
    finally:
        llama.llama_sampler_free(sampler)


JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
CASES = [
    (r'root ::= "\u0041\u00e4\U0001F642" [\u0041-\u0043] "\x42"', ["Aä🙂AB", "Aä🙂DB"]),
    ('root ::= Foo foo-bar foo\nFoo ::= "a"\nfoo ::= "b"\nfoo-bar ::= "c"', ["acb", "aca"]),
    ('root ::= a b c\na ::= [a-z]+\nb ::= [a-z0-9]+\nc ::= "(" root ")" | ""', ["ab", "a", "abc", "ab(ab)", "ab(a)"]),
    ("root ::= . .", ["a\n", "\n\n", "é€", "a"]),
    (r"root ::= [^a] [^\]\[\\] [-b] [a-]", ["b\n-a", "b]-a", "a\n-a"]),
    ('root ::= "a\tb" ( "x"\n | "y" # or "z"\n ) # end', ["a\tbx", "a\tby", "a\tbz"]),
    (JSON, ['{"a":1, "b" : [1,2,{"x":"\\u00e4é"}]}', '{"a":01}', "{}", '{"a": 1.5e+3}', '{"a":1', '{"a":"x\ny"}']),
    ('root ::= ("ab" | "c"){2,3} x{2} y?\nx::= [0-9]\ny ::= ("!"*)*', ["abc12", "cc1", "abcabc12", "cccc12", "cc12!!"]),
    ('root ::= (("a"+)+)+ "b"', ["aab", "b", "ab"]),
    ('root ::= ("abc" | [a-z]+ "x") "!" root?', ["abc!", "abx!", "abcx!", "abd!abc!", "abx!abc!"]),
    ('root ::= "a" |', ["a", "", "b"]),
    ('root ::= a\na ::= "x"\na ::= "y"', ["x", "y"]),
    ('root ::= x* "b"\nx ::= "a"?', ["aab", "b", "a"]),
    ('root ::= [b-é] | x\nx ::= "a" | ("é" | [b-é])', ["é", "c", "ê"]),
    (
        "root ::= a0 a0\n" + "".join(f'a{i} ::= "(" a{i + 1} | "é" | [b-é]\n' for i in range(120)) + 'a120 ::= "!"',
        ["éb", "((c(", "((c(é"],
    ),
    ('root ::= "/" [/*] "//" "\\x"', []),
]


@pytest.mark.parametrize("text, answers", CASES, ids=range(len(CASES)))
def test_the_same_texts_as_llama_cpp(vocab, text, answers):
    ids = byte_ids(vocab)
    for answer in answers:
        expected = llama_accepts(text, vocab, ids, answer.encode())
        assert accepts(gbnf_grammar(text), vocab, ids, answer.encode()) is expected, answer
    if not answers:
        with pytest.raises(InputError):
            gbnf_grammar(text)


atoms = st.sampled_from(['"a"', '"ab"', '"b"', '""', "[a-b]", "[^a]", ".", '"é"', "[b-é]", "x", "y", "z", "x", "y"])
parts = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(" ".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({' | '.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,3}", "{2,}"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(
    rules=st.tuples(parts, parts, parts),
    answers=st.lists(st.text("abé(", max_size=6), min_size=1, max_size=8, unique=True),
)
def test_the_same_texts_as_llama_cpp_of_any_grammar(vocab, rules, answers):
    root, x, y = rules
    text = f'root ::= {root}\nx ::= "a" | {x.replace("x", "y")}\ny ::= "b" ({y})? | "("\nz ::= "a" z?\n'
    ids = byte_ids(vocab)
    for answer in answers:
        expected = llama_accepts(text, vocab, ids, answer.encode())
        if expected is None:
            # llama.cpp refuses rules that begin with themselves, and repetitions of much.
            with contextlib.suppress(InputError):
                accepts(gbnf_grammar(text), vocab, ids, answer.encode())
            return
        try:
            found = accepts(gbnf_grammar(text), vocab, ids, answer.encode())
        except InputError as error:
            assert "nothing keeps to it" in str(error), text
            found = False
        assert found is expected, (text, answer)


@pytest.mark.parametrize(
    "text, words",
    [
        ("root := 'a'", "::= is missing"),
        ("root ::= [a-", "has no end"),
        ('root ::= "a', "has no end"),
        ('root ::= ("a"', "closing bracket"),
        ('root ::= "a"{5,2}', "fewer than 5"),
        ('root ::= "a"{99999}', "2000 are possible"),
        ('root ::= "a"{99999999999999999999999}', "} is missing"),
        ('root ::= * "a"', "nothing before it"),
        (r'root ::= "\q"', "unknown escape"),
        (r'root ::= "\ud800"', "no character's number"),
        ("root ::= a", "'a' in 'root'"),
        ('a ::= "a"', "no rule named root"),
        ("root ::= [z-a]", "backwards"),
        ('root ::= "a" )', "line break"),
        ("root ::= " + "(" * 100_000, "brackets deeper"),
        ('root ::= "a"' + "+" * 200, "repetitions deeper"),
        ("root ::= a0\n" + "".join(f"a{i} ::= a{i + 1}\n" for i in range(2000)) + 'a2000 ::= ""', "chain"),
        ("".join(f'a{i} ::= "a"\n' for i in range(6000)), "5000 rules"),
        ("x" * (1 << 20) + "y", "bytes"),
        ("", "empty"),
        ('root ::= "\0"', "NUL"),
        ('root ::= "\ud800"', "surrogate"),
    ],
)
def test_what_is_no_gbnf_says_what_and_where(text, words):
    with pytest.raises(InputError) as caught:
        gbnf_grammar(text)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400
