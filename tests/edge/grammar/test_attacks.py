"""Rules that would end, hang or fill a process: each is refused in a few seconds, or works. Each case has a process of
its own, with a limit on its time and memory; a signal fails it."""

import json
import subprocess
import sys

import pytest
from build_gguf import tiny_base

CASES = {
    "100,000 nested brackets": "gbnf_grammar('root ::= ' + '(' * 100_000 + '\"a\"' + ')' * 100_000)",
    "a chain of 70,000 rules": "gbnf_grammar('root ::= a0\\n' + ''.join(f'a{i:x}::=a{i+1:x}\\n' for i in range(70_000)))",
    "a chain of rules within the bounds": "gbnf_grammar('root ::= a0\\n' + ''.join(f'a{i}::=((((a{i+1}))))\\n' for i in range(400)) + 'a400::=\"a\" root?')",
    "doubling rules": "gbnf_grammar('root ::= x0\\n' + ''.join(f'x{i} ::= x{i+1} x{i+1}\\n' for i in range(30)) + 'x30 ::= \"a\" | \"\"')",
    "doubling rules with recursion": "gbnf_grammar('root ::= x0\\n' + ''.join(f'x{i} ::= x{i+1} x{i+1}\\n' for i in range(30)) + 'x30 ::= \"a\" x0 | \"\"')",
    "two ways, 30 rules": "gbnf_grammar('root ::= x0\\n' + ''.join(f'x{i} ::= x{i+1} | x{i+1}\\n' for i in range(30)) + 'x30 ::= \"a\"')",
    "3,000 optional letters": "gbnf_grammar('root ::= ' + '\"a\"? ' * 3000)",
    "optional letters with recursion": "gbnf_grammar('root ::= ' + '\"a\"? ' * 20_000 + 'root?')",
    "90,000 alternatives": "gbnf_grammar('root ::= ' + ' | '.join(f'\"{i}\"' for i in range(90_000)))",
    "repetitions of repetitions": "gbnf_grammar('root ::= ' + '(' * 6 + '\"a\"' + '{0,2000} \"b\"?)' * 6 + ' root?')",
    "a class of much": "regex_grammar(r'(\\\\p{L}{0,1000}\\\\p{N}?){0,1000}' * 20)",
    "brackets in a regular expression": "regex_grammar('(' * 100_000 + 'a' + ')' * 100_000)",
    "five thousandfold": "regex_grammar('((((a{1000}){1000}){1000}){1000}){1000}')",
    "a chain of Lark rules": "lark_grammar('start: a0\\n' + ''.join(f'a{i}: a{i+1}\\n' for i in range(50_000)) + 'a50000: \"a\"')",
    "intersections": "lark_grammar('start: X\\nX: ' + ' & '.join(f'/(.*{chr(97+i%26)}.*){{0,{i+2}}}/' for i in range(40)))",
    "deep JSON in Lark": "lark_grammar('start: %json ' + '{\"items\":' * 5000 + '{}' + '}' * 5000)",
    "minLength": "schema_grammar({'type': 'string', 'minLength': 10**9})",
    "maxItems": "schema_grammar({'type': 'array', 'items': {'type': 'string'}, 'maxItems': 10**9})",
    "an enum of 60,000": "schema_grammar({'enum': [str(i) for i in range(60_000)]})",
    "patterns that are not apart": "schema_grammar({'allOf': [{'pattern': f'a{{0,{i+2}}}b'} for i in range(40)]})",
    "patternProperties": "schema_grammar({'patternProperties': {f'^p{i}$': {} for i in range(1500)}})",
    "a chain of definitions": "schema_grammar({'$defs': {f'a{i}': {'properties': {'x': {'$ref': f'#/$defs/a{i+1}'}}} for i in range(9000)} | {'a9000': {}}, '$ref': '#/$defs/a0'})",
    "optional properties": "schema_grammar({'properties': {f'p{i}': {'type': 'integer'} for i in range(2000)}})",
    "products": "schema_grammar({'allOf': [{'anyOf': [{'properties': {f'a{i}': {'const': j}}} for j in range(10)]} for i in range(10)]})",
    "itself": "schema_grammar({'$ref': '#'})",
    "itself and more": "schema_grammar({'allOf': [{'$ref': '#'}, {'type': 'object'}]})",
    "nested": "schema_grammar(__import__('json').loads('{\"items\":' * 900 + '{}' + '}' * 900))",
}
CODE = """
import random, resource, sys
import numpy as np
from slm_edge.edge.errors import SlmEdgeError
from slm_edge.edge.grammar.matcher import Grammar
from slm_edge.edge.grammar.rules import gbnf_grammar, lark_grammar, regex_grammar, schema_grammar
from slm_edge.edge.llama.vocab import Vocab
vocab = Vocab.open(sys.argv[1])
Grammar("root ::= [a-z]", vocab)
taken_bytes = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken_bytes + (400 << 20),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (12, 12))
try:
    grammar = Grammar(eval(sys.argv[2]), vocab)
    for _ in range(20):
        ids = [int(i) for i in np.flatnonzero(grammar.allowed()) if not vocab.is_end(int(i))]
        if not ids:
            break
        grammar.accept(ids[len(ids) // 2])
    print("works")
except SlmEdgeError as error:
    print(len(str(error)), "refused:", error)
"""


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_or_works(case, tmp_path_factory):
    base = tmp_path_factory.getbasetemp() / "attacked.gguf"
    if not base.exists():
        tiny_base(base)
    done = subprocess.run([sys.executable, "-c", CODE, str(base), CASES[case]], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])
    said = done.stdout.strip()
    assert said == "works" or int(said.split()[0]) < 600, said[:300]
    assert "backtrace" not in said


@pytest.mark.parametrize("engine", ["llama"])
def test_a_packs_own_grammar_is_an_error_of_one_line_or_two(engine, slm_edge, tmp_path):
    from build_gguf import tiny_adapter, tiny_pack  # noqa: PLC0415

    assert tiny_adapter and tiny_pack
    pack = tiny_pack(tmp_path)
    path = pack / "pack.json"
    data = json.loads(path.read_text())
    for row in data["adapters"].values() if isinstance(data["adapters"], dict) else data["adapters"]:
        row["card"]["grammar"] = "root ::= " + "(" * 100_000
        data["default_adapter"] = row.get("name", data["default_adapter"])
    data.pop("seal", None)
    path.write_text(json.dumps(data))
    code, out, err = slm_edge("run", "--pack", pack, "hi")
    assert code in (2, 5) and out == "" and "Traceback" not in err
