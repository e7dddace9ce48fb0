"""Leaving the group of processes: nothing of it may be alive when Python shuts down."""

import os
import subprocess
import sys

# torch._dynamo, which PEFT and transformers import, imports what would keep a group alive that was there before
LEAVES = """
import os, sys
from pathlib import Path
from slm_edge.train.run.ranks import Ranks

def threads():
    names = [Path(task, "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return sum("gloo" in name for name in names)

with Ranks("cpu") as ranks:
    import torch, torch._dynamo
    assert ranks.device("cpu") == "cpu"
    tensor = torch.full((4,), float(ranks.index + 1))
    assert ranks.sum_([tensor], [ranks.index, 2.0]) == [1.0, 4.0]
    assert tensor.tolist() == [3.0] * 4
    assert threads() > 0
# In one call, so that what the two processes write stays whole
os.write(1, b"%d " % threads())
"""


def test_no_thread_of_the_group_lives_on_after_it_is_left(tmp_path):
    (script := tmp_path / "leaves.py").write_text(LEAVES)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "0"]
