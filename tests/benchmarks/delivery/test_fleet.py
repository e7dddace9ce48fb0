"""The fleet of `benchmarks.delivery.fleet` in short: what is good reaches all, what is bad none for long."""

import json
import subprocess
import sys


def test_a_small_fleet():
    command = [sys.executable, "-m", "slm_edge.benchmarks.delivery.fleet", "--devices", "2", "--kills", "6"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert not told["broken"] and told["n_killed"] == 6
    assert told["n_back_by_themselves"] == 2
    assert [row["versions"] for row in told["phases"]][-1] == {"1.4": 2}
    assert told["phases"][3]["versions"] == {"1.1": 2}
