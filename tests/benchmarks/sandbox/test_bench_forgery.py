"""A program that writes the judge's answers itself: what it sends is a value or a failure, and nothing in the judge."""

import math
import os
import textwrap
from collections import Counter, OrderedDict, deque
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction

import pytest
from slm_edge.benchmarks.sandbox.sandbox import Limits, missing_layers, run_program
from slm_edge.benchmarks.sandbox.wire import MAX_FRAME_BYTES, Failed, Held, WireError, decode, encode, receive, send

LIMITS = Limits(cpu_s=2, wall_s=60, memory_bytes=256 << 20)
# What a forger needs: frames written to the judge, whatever it asks
FORGER = """
import json, os, struct
def frame(body):
    return struct.pack("=I", len(body)) + body
def answer(*parts):
    return frame(json.dumps(parts).encode())
def write(data):
    while data:
        data = data[os.write(4, data):]
READY = answer("ready", ["f"], [])
write(READY + FORGED)
while os.read(3, 4096):
    pass
os._exit(0)
"""


@pytest.fixture(autouse=True, scope="module")
def confined():
    if missing := missing_layers():
        pytest.skip(f"this system confines no code ({', '.join(missing)})")


def forge(forged, tests, limits):
    return run_program(FORGER.replace("FORGED", forged), tests, names=["f"], limits=limits)


# Of wrong programs: shapes that a pass was forged for, and others
SHAPES = [
    ["assert f(1) == 2", "assert f(2) == 3"],
    ["assert 'abc' == f(1)", "assert f([1, 2]) == {'a': [1]}"],
    ["assert abs(f(2) - 12.566) < 1e-3"],
    ["assert 3 in f(1)"],
    ["assert f(1)[0] == 7"],
    ["assert f(2) > 7 and f(2) - 1 == 3"],
    ["assert set(f(3)) == {1}"],
    ["assert f(1) in (2, 3)"],
    ["assert sorted(f(1)) == [1, 2]"],
    ["assert isinstance(f(1), int) and f(1) == 2"],
    ["assert math.isclose(f(1), 3)"],
    ["x = [3, 1]\nassert f(x) == [1, 3] and x == [3, 1]"],
    ["assert list(f(3)) == [0, 1, 2]"],
    ["assert f({'a': 1}) == {'a': 2}"],
    ["assert str(f(1)) == '2'"],
    ["assert all(f(x) == x + 1 for x in range(3))"],
    ["assert list(map(f, [1, 2])) == [2, 3]"],
    ["assert all(map(lambda x: f(x) == x + 1, [1, 2]))"],
    ["try:\n    f(1)\nexcept ValueError:\n    pass\nelse:\n    assert False"],
    ["try:\n    f(1)\n    wrong = True\nexcept Exception:\n    wrong = False\nassert not wrong"],
    ["try:\n    f(1)\nexcept:\n    pass\nelse:\n    assert False"],
    ["def check(candidate):\n    assert candidate([1.0], 0.3) == True\n    assert candidate([], 1) == 5\ncheck(f)"],
]
# What the frame says, with no value in it that a program could not return: each must fail in every shape
FORGERIES = {
    "no JSON": "frame(b'\\x80\\x04cfractions\\nFraction\\n.') * 64",
    "a pickle that patches a class": "frame(b'\\x80\\x04\\x8c\\x09fractions\\x8c\\x08Fraction\\x93N}\\x8c\\x06__eq__"
    "\\x8c\\x08builtins\\x8c\\x05slice\\x93s\\x86b0\\x8c\\x05valueK\\x01\\x86.') * 64",
    "passed": "answer('passed') * 64",
    "ok": "answer('ok') * 64 + b'ok\\n' * 64",
    "ready again": "answer('ready', ['f'], []) * 64",
    "no name": "answer() * 64",
    "a class": "answer('value', {'class': 'Fraction'}) * 64",
    "a class by its path": "answer('value', {'class': 'builtins.object'}) * 64",
    "a tag that is none": "answer('value', {'__class__': 'object'}) * 64",
    "two tags": "answer('value', {'tuple': [1], 'list': [2]}) * 64",
    "no hex": "answer('value', {'int': 'x'}) * 64",
    "a denominator of 0": "answer('value', {'fraction': [1, 0]}) * 64",
    "an object without a number": "answer('value', {'object': [0]}) * 64",
    "an end of loops": "answer('error', ['StopIteration', 'Exception'], '') * 64",
    "an end of programs": "answer('error', ['SystemExit', 'BaseException'], '0') * 64",
    "an error that is none": "answer('error', ['print', 'exit', 'nothing'], '') * 64",
    "an error of another shape": "answer('error', [['ValueError']], '') + answer('error', 'ValueError', 5) * 64",
    "deep": "frame(b'[\"value\",' + b'[' * 100000 + b']' * 100000 + b']') * 3",
    "deep but JSON": "frame(b'[\"value\",' + b'[' * 300 + b']' * 300 + b']') * 64",
    "deep tags": "frame(b'[\"value\",' + b'{\"tuple\":[' * 300 + b']}' * 300 + b']') * 64",
    "huge": "struct.pack('=I', 1 << 31)",
    "huge and whole": "frame(b'[\"value\",[' + b'[],' * (5 << 20) + b'0]]')",
    "a long number": "frame(b'[\"value\",' + b'9' * 100000 + b']') * 64",
    "half a frame": "answer('value', 1)[:-1]",
    "nothing": "b''",
    "surrogates": 'frame(b\'["value","\\xed\\xa0\\x80"]\') * 64',
}


def each_caught(how):
    """All shapes as one test that holds where none of them does, whatever they raise."""
    parts = [f"def shape_{i}():\n" + textwrap.indent("\n".join(tests), "    ") for i, tests in enumerate(SHAPES)]
    loop = "for shape in [{}]:\n    try:\n        shape()\n    except {}:\n        continue\n    assert False, shape"
    names = ", ".join(f"shape_{i}" for i in range(len(SHAPES)))
    return "\n".join(["import math", *parts, loop.format(names, how)])


@pytest.mark.parametrize("name", FORGERIES)
def test_no_frame_passes(name):
    limits = replace(LIMITS, run_s=1) if name in ("nothing", "half a frame") else LIMITS
    for tests in (SHAPES[0], [each_caught("BaseException")]):
        found = forge(FORGERIES[name], tests, limits)
        assert not found.passed, tests
        assert found.reason
        assert "shape" not in found.reason


VALUES = [
    "float('nan')", "float('inf')", "True", "None", "[]", "{'decimal': 'NaN'}", "{'decimal': 'sNaN'}",
    "{'counter': []}", "{'object': 0}",
    "{'iterator': []}", "{'slice': [None, None, None]}", "{'int': '0x' + 'f' * 9000}", "{'keys': [0]}",
    "[float('nan')]", "{'dict': [[float('nan'), 1]]}", "{'class': 'int'}", "'x'",
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_no_value_is_equal_to_what_it_is_not(value):
    """The same odd value for every question: an honest program may return it as well, and it is wrong."""
    found = forge(f"answer('value', {value}) * 64", [each_caught("BaseException")], LIMITS)
    assert found.passed, found.reason


@pytest.mark.parametrize(
    "body",
    [
        "class Yes:\n    def __eq__(self, other):\n        return True\n    __hash__ = None\nresult = Yes()",
        "class Yes(int):\n    def __eq__(self, other):\n        return True\nresult = Yes()",
        "class Yes(list):\n    def __eq__(self, other):\n        return True\nresult = Yes()",
        "class Yes(dict):\n    def __eq__(self, other):\n        return True\nresult = Yes()",
        "class Yes(str):\n    def __eq__(self, other):\n        return True\nresult = Yes()",
        "import unittest.mock\nresult = unittest.mock.ANY",
        "from fractions import Fraction\nFraction.__eq__ = lambda a, b: True\nresult = Fraction(1, 3)",
        "class Meta(type):\n    def __eq__(self, other):\n        return True\nclass Yes(metaclass=Meta):\n    pass\n"
        "result = Yes",
    ],
)
def test_no_comparison_of_the_program_runs(body):
    for wanted in ("assert f(1) == 2", "assert f(1) == [2]", "assert not f(1) != 2", "assert [f(1)] == [2]"):
        found = run_program(f"{body}\ndef f(x):\n    return result\n", [wanted], limits=LIMITS)
        assert not found.passed, wanted
    found = run_program(f"{body}\ndef f(x):\n    return [{{'a': result}}]\n", ["assert f(1) == [{'a': 2}]"])
    assert not found.passed


def test_a_failure_that_a_test_catches_is_still_one():
    caught = "try:\n    f(1)\nexcept BaseException:\n    pass"
    for program in ("import os\ndef f(x):\n    os._exit(0)\n", "def f(x):\n    raise SystemExit(0)\n"):
        found = run_program(program, [caught], limits=LIMITS)
        assert not found.passed
    late = run_program("import time\ndef f(x):\n    time.sleep(60)\n", [caught], limits=Limits(run_s=1))
    assert (late.passed, late.reason) == (False, "time: clock limit")


def test_errors_that_a_test_expects():
    test = [
        "try:\n    f(-1)\nexcept ValueError as error:\n    assert 'negative' in str(error)\nelse:\n    assert False"
    ]
    raising = "class Odd(ValueError):\n    pass\ndef f(x):\n    raise {}('negative')\n"
    assert run_program(raising.format("ValueError"), test).passed
    assert run_program(raising.format("Odd"), test).passed
    for wrong in ("TypeError", "SystemExit", "StopIteration"):
        assert wrong in run_program(raising.format(wrong), test).reason
    assert not run_program("def f(x):\n    return 'negative'\n", test).passed


SAME = [
    None, True, 0, -1, 10**5000, -(10**5000), 1 << 63, -(1 << 63), 1.5, -0.0, math.inf, -math.inf, 5e-324, "", "ü\0\n",
    "\ud800", "\ud83d\ude00", "\U0001f600", b"\0\xff",
    bytearray(b"x"), (), (1, (2,)), [], [[]], {1, 2}, frozenset({(1, 2)}),
    set(), {"a": [1], 2: {}, (1, 2): None, None: 0.5, True: "x"}, {}, 2 - 3j, complex(math.inf, -0.0), range(1, 9, 2),
    slice(1, None), Decimal("1.10"), Decimal("Infinity"), Decimal(10) ** 6000, Fraction(-1, 3),
    Counter("aab"), Counter(),
    OrderedDict(b=1, a=2), deque([1, 2], 3), deque(), date(2024, 2, 29), datetime(2024, 1, 1, 2, 3, 4, 5, UTC),
    datetime(1, 1, 1), time(1, 2, tzinfo=timezone(timedelta(hours=-3))), timedelta(-1, 5, 7), UTC, int, type(None),
    [int, (str,)],
]  # fmt: skip


def test_values_come_back_as_they_were():
    read, write = os.pipe()
    for value in SAME:
        send(write, "value", value)
        kind, back = receive(read)
        assert (kind, type(back)) == ("value", type(value))
        assert back == value
        assert isinstance(value, int) or repr(back) == repr(value)
    os.close(read)
    os.close(write)


def test_what_is_no_value():
    class Odd:
        pass

    held, odd = [], Odd()
    assert decode(encode([Odd, (odd, 1)], held), held) == [Odd, (odd, 1)]
    for odd in (Odd, Odd(), lambda: 0, math, print):
        with pytest.raises(WireError, match="cannot be passed"):
            encode({"a": odd})
    deep = loop = []
    for _ in range(300):
        deep = [deep]
    loop.append(loop)
    for value in (deep, loop):
        with pytest.raises(WireError, match="too deep"):
            encode(value)
    with pytest.raises(WireError, match="too large"):
        send(-1, "x" * MAX_FRAME_BYTES)
    assert math.isnan(decode(encode(math.nan)))


def test_an_object_of_the_program_is_only_handed_back():
    program = (
        "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n"
        "def f(pairs):\n    return [pair.a for pair in pairs]\ndef swapped(pair):\n    return Pair(pair.b, pair.a)\n"
    )
    assert run_program(program, ["assert f([Pair(1, 2), swapped(Pair(3, 4))]) == [1, 4]"]).passed
    for wrong in ("Pair(1, 2) == Pair(1, 2)", "Pair(1, 2) != 3", "Pair(1, 2)", "not Pair(1, 2)", "Pair(1, 2).a == 1"):
        assert not run_program(program, [f"try:\n    assert {wrong}\nexcept TypeError:\n    pass"]).passed, wrong
    with pytest.raises(Failed):
        bool(Held(0))


def test_what_a_setup_makes_is_the_tests_own():
    """A wrong program that changes what the tests expect, which is made beside it."""
    program = "def f(x):\n    return 5\nimport builtins\nbuiltins.sum = lambda *a: 5\n"
    assert not run_program(program, ["assert f(1) == wanted"], setup="wanted = sum([1, 2])").passed
    assert run_program("def f(x):\n    return 3\n", ["assert f(1) == wanted"], setup="wanted = sum([1, 2])").passed
    tree = "class Node:\n    def __init__(self, of):\n        self.of = of\ndef f(node):\n    return node.of\n"
    tests = ["assert f(root) == 1", "assert f(root) != 2"]
    assert run_program(tree, tests, setup="root = Node(1)").passed
    assert not run_program(tree, tests, setup="root = Node(2)").passed
    inside = (
        "import sys\nclass Node:\n    def __init__(self, of):\n        sys._getframe(1).f_globals['f'] = lambda n: 2\n"
    )
    assert not run_program(inside, tests, setup="root = Node(1)").passed


def test_a_builtin_is_not_the_programs_answer():
    assert "NameError" in run_program("", ["assert sum([1, 2]) == 3"]).reason
    assert run_program("def sum(x):\n    return 3\n", ["assert sum([1, 2]) == 3"]).passed
