"""Rules that would end, hang or fill a process: each is refused in a few seconds, or works. Each case has a process of
its own, with a limit on its time and memory; a signal fails it."""

import json
import subprocess
import sys

import pytest
from build_gguf import tiny_adapter, tiny_base
from slm_edge.edge.errors import InputError
from slm_edge.edge.files.read import sha256_file
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.pack.manifest import render
from slm_edge.edge.pack.write import NewAdapter, build_pack


def chain(n, sign, end="\n"):
    return "".join(f"a{i}{sign}a{i + 1}{end}" for i in range(n))


def doubled(n, sign, last):
    return "root ::= x0\n" + "".join(f"x{i} ::= x{i + 1}{sign}x{i + 1}\n" for i in range(n)) + f"x{n} ::= {last}\n"


def nested(n, begin, end, inside=""):
    return begin * n + inside + end * n


def names(n, schema):
    return {f"p{i}": schema for i in range(n)}


# What makes rules, and of what.
CASES = {
    "100,000 nested brackets": ("gbnf", "root ::= " + nested(100_000, "(", ")", '"a"')),
    "a chain of 70,000 rules": ("gbnf", f'root ::= a0\n{chain(70_000, "::=")}a70000::="a"'),
    "a chain of rules within the bounds": (
        "gbnf",
        f"root ::= a0\n{chain(400, '::=((((', '))))' + chr(10))}a400 ::= root?",
    ),
    "a repetition that runs backwards": ("gbnf", 'root ::= "a"{5,2}'),
    "doubling rules": ("gbnf", doubled(30, " ", '"a" | ""')),
    "doubling rules with recursion": ("gbnf", doubled(30, " ", '"a" x0 | ""')),
    "two ways, 30 rules": ("gbnf", doubled(30, " | ", '"a"')),
    "3,000 optional letters": ("gbnf", "root ::= " + '"a"? ' * 3000),
    "optional letters with recursion": ("gbnf", "root ::= " + '"a"? ' * 20_000 + "root?"),
    "90,000 alternatives": ("gbnf", "root ::= " + " | ".join(f'"{i}"' for i in range(90_000))),
    "repetitions of repetitions": ("gbnf", "root ::= " + nested(6, "(", '{0,2000} "b"?)', '"a"') + " root?"),
    "classes of much": ("regex", r"(\p{L}{0,1000}\p{N}?){0,1000}" * 20),
    "brackets in a regular expression": ("regex", nested(100_000, "(", ")", "a")),
    "a thousandfold five times": ("regex", nested(5, "(", "){1000}", "a")),
    "a chain of Lark rules": ("lark", f'start: a0\n{chain(50_000, ": ")}a50000: "a"'),
    "intersections": (
        "lark",
        "start: X\nX: " + " & ".join(f"/(.*{chr(97 + i % 26)}.*){{0,{i + 2}}}/" for i in range(40)),
    ),
    "deep JSON in Lark": ("lark", "start: %json " + nested(5000, '{"items":', "}", "{}")),
    "minLength": ("schema", {"type": "string", "minLength": 10**9}),
    "maxItems": ("schema", {"type": "array", "items": {"type": "string"}, "maxItems": 10**9}),
    "an enum of 60,000": ("schema", {"enum": [str(i) for i in range(60_000)]}),
    "a pattern of much": ("schema", {"pattern": "^a{99999999999999999999}$"}),
    "patterns at once": ("schema", {"allOf": [{"pattern": f"a{{0,{i + 2}}}b"} for i in range(40)]}),
    "patternProperties": ("schema", {"patternProperties": {f"^p{i}$": {} for i in range(1500)}}),
    "a chain of definitions": (
        "schema",
        {
            "$defs": {f"a{i}": {"properties": {"x": {"$ref": f"#/$defs/a{(i + 1) % 9000}"}}} for i in range(9000)},
            "$ref": "#/$defs/a0",
        },
    ),
    "optional properties": ("schema", {"properties": names(2000, {"type": "integer"})}),
    "products": (
        "schema",
        {"allOf": [{"anyOf": [{"properties": names(i, {"const": j})} for j in range(9)]} for i in range(9)]},
    ),
    "itself": ("schema", {"$ref": "#"}),
    "itself and more": ("schema", {"allOf": [{"$ref": "#"}, {"type": "object"}]}),
    "nested": ("schema", json.loads(nested(150, '{"items":', "}", "{}"))),
}
CODE = """
import json, resource, sys
import numpy as np
from slm_edge.edge.errors import SlmEdgeError
from slm_edge.edge.grammar.matcher import Grammar
from slm_edge.edge.grammar import rules
from slm_edge.edge.llama.vocab import Vocab
vocab = Vocab.open(sys.argv[1])
Grammar("root ::= [a-z]", vocab)
taken_bytes = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken_bytes + (400 << 20),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (12, 12))
try:
    make, content = json.load(sys.stdin)
    grammar = Grammar(getattr(rules, f'{make}_grammar')(content), vocab)
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
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(base)], input=json.dumps(CASES[case]), capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])
    said = done.stdout.strip()
    assert said == "works" or int(said.split()[0]) < 600, said[:300]
    assert "backtrace" not in said


@pytest.mark.parametrize(
    "rules",
    [
        {"grammar": "root ::= " + "(" * 100_000},
        {"schema": {"items": {"uniqueItems": True}}},
        {"schema": {"type": {"a": []}, "format": "date"}},
        {"grammar": "root ::= foo"},
    ],
)
def test_a_packs_own_rules_are_checked_when_it_is_built_and_when_it_answers(rules, slm_edge, tmp_path):
    base = tiny_base(tmp_path / "base.gguf")
    file, card = tiny_adapter(tmp_path / "a.gguf", base), TaskCard.of({"task": "a"} | rules)
    with pytest.raises(InputError, match="grammar"):
        build_pack(tmp_path / "refused", base=base, adapters=[NewAdapter("a", file, card)], default_adapter="a")
    assert not (tmp_path / "refused").exists()
    build_pack(tmp_path / "pack", base=base, adapters=[NewAdapter("a", file)], default_adapter="a")
    (made,) = (path for path in (tmp_path / "pack").rglob("*.json") if path.name != "pack.json")
    manifest, old = tmp_path / "pack" / "pack.json", sha256_file(made)
    made.write_text(json.dumps(card.as_dict()))
    data = json.loads(manifest.read_text().replace(old, sha256_file(made)))
    del data["seal"]
    manifest.write_text(render(data))
    code, out, err = slm_edge("run", "--pack", tmp_path / "pack", "hi")
    assert (code, out) == (2, ""), err
