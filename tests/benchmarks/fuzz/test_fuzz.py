"""Fuzzing in short, and the proof that it finds what it is for: readers that raise, hang, fill memory or die."""

import json
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slm_edge.benchmarks.fuzz.__main__ import KINDS, keep
from slm_edge.benchmarks.fuzz.runner import Limits, Run
from slm_edge.edge.errors import InputError

N_CASES = 150


@pytest.mark.parametrize("kind", KINDS)
def test_readers_survive(kind, tmp_path):
    run = Run(KINDS[kind](), seed=20, run_every=25)
    found = [f"{finding}\n{finding.text}" for finding in run.cases(range(N_CASES), tmp_path)]
    assert not found, "\n".join(found)
    assert run.n_cases == N_CASES
    # Neither does everything pass, nor is everything refused at the door.
    passed = run.counts["passed"] + run.counts["passed and ran"]
    assert N_CASES * 0.05 < passed < N_CASES * 0.95, run.counts


class Planted:
    """A reader with a fault for one case each; all others are read, or refused as they should be."""

    kind = "planted"

    def prepare(self, folder):
        (folder / "prepared").touch()

    def make(self, draw, folder):
        (folder / "x").write_text(str(draw.random()))

    def use(self, folder):
        number = float((folder / "x").read_text())
        case = next(case for case in range(20) if Run(self).draw(case).random() == number)
        if case == 3:
            raise KeyError("planted")
        if case == 5:
            while True:
                pass
        if case == 7:
            # No bytearray: a process that freed as much may have it without asking the system.
            return mmap.mmap(-1, 300 << 20)
        if case == 9:
            os.kill(os.getpid(), signal.SIGSEGV)
        if case == 11:
            os._exit(3)
        if case == 13:
            time.sleep(600)
        if case == 15:
            try:
                return mmap.mmap(-1, 300 << 20)
            except OSError:
                raise InputError("memory is not the user's mistake") from None
        if case % 2:
            raise InputError("refused")
        return case

    def run(self, folder):
        return None


def test_each_planted_fault_is_found_and_the_run_goes_on(tmp_path):
    run = Run(Planted(), limits=Limits(seconds=0.5))
    found = {finding.case: finding for finding in run.cases(range(20), tmp_path)}
    ends = {3: "exception", 5: "hang", 7: "memory", 9: "signal", 11: "exit", 13: "hang", 15: "memory"}
    assert {case: finding.end for case, finding in found.items()} == ends
    assert run.counts["passed"] == 10 and run.counts["InputError"] == 3
    assert "KeyError: 'planted'" in found[3].text and "SIGSEGV" in found[9].text
    assert "--seed 0 --case 9: signal" in str(found[9])

    kept = keep(run, found[3], tmp_path / "out")
    assert json.loads((kept / "finding.json").read_text())["case"] == 3
    # What was kept is what was read.
    assert float((kept / "case" / "x").read_text()) == run.draw(3).random()


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_is_made_of_its_number_alone(kind, tmp_path):
    made = []
    for name in ("one", "two"):
        run = Run(KINDS[kind](), seed=4)
        (tmp_path / name / "case").mkdir(parents=True)
        run.target.prepare(tmp_path / name)
        if name == "two":
            random.random()
        run.target.make(run.draw(7), tmp_path / name / "case")
        files = sorted(path for path in (tmp_path / name / "case").rglob("*") if path.is_file())
        made.append([(path.name, path.read_bytes()) for path in files])
    assert made[0] == made[1] and made[0]


def test_the_command(tmp_path):
    command = [sys.executable, "-m", "slm_edge.benchmarks.fuzz", "rows", "--cases", "5", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rows, seed 0: 5 cases in ")
    assert not Path(tmp_path / "out").exists()
