"""Right programs in the forms that models write: what their function needs is run, and their own trials are not."""

import pytest
from slm_edge.benchmarks.tasks import humaneval
from slm_edge.benchmarks.tasks.code_block import definitions

PROBLEM = {
    "task_id": "x",
    "prompt": "from typing import List\n\n\ndef f(xs: List[int]) -> int:\n    '''The sum.'''\n",
    "entry_point": "f",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
}
PROGRAMS = {
    "a table that a loop fills": """
        table = {}
        for i in range(10):
            table[i] = i
        def f(xs):
            return sum(table[x] for x in xs)
        """,
    "a part that is assigned": "memo = {}\nmemo[0] = 0\ndef f(xs):\n    return sum(xs) + memo[0]\n",
    "an attribute of the function": "def f(xs):\n    f.calls += 1\n    return sum(xs)\nf.calls = 0\n",
    "a method that changes it": "zero = []\nzero.append(0)\ndef f(xs):\n    return sum(xs) + zero[0]\n",
    "a variable of the module": "n = 0\ndef f(xs):\n    global n\n    n += 1\n    return sum(xs)\n",
    "one of two": """
        import sys
        if sys.version_info >= (3,):
            def f(xs):
                return sum(xs)
        else:
            def f(xs):
                return 0
        """,
    "a walrus": "(f := lambda xs: sum(xs))\n",
    "a method of a class": "class Solution:\n    def f(self, xs):\n        return sum(xs)\nf = Solution().f\n",
    "several at once": "f, g = (lambda xs: sum(xs)), None\n",
    "a trial that reads what is not there": "def f(xs):\n    return sum(xs)\nxs = open('/none')\nxs.close()\n",
    "a trial under the name of a parameter": "def f(xs):\n    return sum(xs)\nfor xs in open('/none'):\n    pass\n",
    "a trial in a loop": "def f(xs):\n    return sum(xs)\nfor xs in ([1], [2]):\n    assert f(xs) == 0\n",
    "a program": "def f(xs):\n    return sum(xs)\nif __name__ == '__main__':\n    print(f([1]))\n    input()\n",
}
FORMS = {
    "four backticks": "````python\n{}````",
    "a title": '```python title="a.py"\n{}```',
    "a quotation": "As asked:\n> ```python\n{>}> ```\n",
    "a list with tabs": "1. So:\n\t```python\n{\t}\t```",
    "thoughts in capitals": "<THINK>\n```python\ndef f(xs):\n    return 0\n```</THINK>\n```python\n{}```",
}


def passes(text):
    return humaneval.check(PROBLEM, humaneval.completion_of(PROBLEM, text)).passed


def plain(program):
    lines = program.split("\n")
    indent = len(lines[1]) - len(lines[1].lstrip()) if not lines[0] else 0
    return "\n".join(line[indent:] if line.startswith(" " * indent) else line.lstrip() for line in lines).lstrip("\n")


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_a_function_needs_is_kept(name):
    assert passes(f"```python\n{plain(PROGRAMS[name])}```")


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_an_answer(name):
    program = "def f(xs):\n    return sum(xs)\n"
    marked = {mark: "".join(f"{mark}{line}\n" for line in program.splitlines()) for mark in ("> ", "\t")}
    text = FORMS[name].replace("{}", program).replace("{>}", marked["> "]).replace("{\t}", marked["\t"])
    assert passes(text)


def test_wrong_ones_stay_wrong():
    assert not passes("```python\ntable = [1]\ntable.append(1)\ndef f(xs):\n    return sum(table)\n```")
    assert not passes("> ```python\n> def f(xs):\n>     return 1\n> ```")


def test_statements_that_call_the_function_are_trials():
    code = "seen = []\ndef f(xs):\n    return len(seen)\nseen.append(f([]))\nfor i in range(3):\n    seen.append(i)\n"
    kept = definitions(code, ["f"])
    assert "seen.append(f([]))" not in kept and "seen.append(i)" in kept
