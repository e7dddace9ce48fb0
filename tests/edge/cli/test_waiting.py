"""What is said while something takes long, without a terminal too."""

import subprocess
import sys

SLOW = """
import time
from slm_edge.edge.console import awaited, progress, waiting

with waiting(lambda: "quick"):
    pass
seen = 0
def words():
    global seen
    seen += 1
    return "slow"
with waiting(words, after_s=0.01, every_s=0.01):
    while seen < 2:
        time.sleep(0.01)
print(list(awaited(iter(["a", "b"]), "x")), list(awaited([], "x")))
with progress("counting", 4) as advance:
    advance(3, text="three")
"""


def test_long_work_is_told_and_short_work_is_not():
    done = subprocess.run([sys.executable, "-c", SLOW], capture_output=True, encoding="utf-8", check=True, timeout=60)
    lines = done.stderr.splitlines()
    assert len(lines) >= 2 and all(line.startswith("slow … (") for line in lines)
    assert done.stdout == "['a', 'b'] []\n"


def test_progress_without_a_terminal_is_a_line():
    from slm_edge.edge.console import _progress_line

    assert _progress_line("counting", 3, 4, "three") == "counting 75 % three"
    assert _progress_line("counting", 3, None, "") == "counting"
