"""A template that writes the date makes other prompts each day: answers of two days are two measurements.

Two places on Earth have two dates at any moment, so that the real command runs on two days.
"""

import json
import os
import subprocess
import sys

import pytest
from build_gguf import CHATML, tiny_adapter, tiny_base
from slm_edge.edge.pack.write import NewAdapter, build_pack

DATED = "{{ strftime_now('Today is %d %b %Y.') }}\n" + CHATML
# POSIX writes what is to be added to get UTC: 14 hours ahead, and 12 behind
DAYS = ("AHEAD-14", "BEHIND+12")
N_ITEMS = 4


def made(folder, template):
    base = tiny_base(folder / "base.gguf", chat_template=template)
    build_pack(folder / "pack", base=base, adapters=[NewAdapter("math", tiny_adapter(folder / "math.gguf", base))])
    rows = [{"question": f"{i} and {i}?", "answer": f"so\n#### {2 * i}"} for i in range(N_ITEMS)]
    (folder / "data" / "gsm8k").mkdir(parents=True)
    (folder / "data" / "gsm8k" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def bench(folder, zone, *more):
    command = [sys.executable, "-m", "slm_edge.edge", "bench", "gsm8k", "--pack", folder / "pack", "--adapter", "math"]
    command += ["--data", folder / "data", "--out", folder / "out", "--threads", "1", "--max-tokens", "6", "--json"]
    done = subprocess.run(
        [*map(str, command), *more], capture_output=True, text=True, env={**os.environ, "TZ": zone}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / "out" / "answers").glob("*.jsonl")}


def test_answers_of_two_days_are_not_joined(tmp_path):
    folder = made(tmp_path, DATED)
    first, said = bench(folder, DAYS[0])
    assert f"{N_ITEMS} of them new" in said
    of_the_first = files(folder)
    second, said = bench(folder, DAYS[1])
    assert f"{N_ITEMS} of them new" in said
    assert first["prompts_of_the_day"] > second["prompts_of_the_day"]
    both = files(folder)
    assert len(both) == 2 and of_the_first.items() <= both.items()
    # The same day again: nothing is asked again, and its answers are reported
    again, said = bench(folder, DAYS[0])
    assert "0 of them new" in said and files(folder) == both
    assert again["tasks"] == first["tasks"] and again["prompts_of_the_day"] == first["prompts_of_the_day"]


@pytest.mark.parametrize("template", [CHATML, "{% set date_string = '26 Jul 2024' %}{{ date_string }}" + CHATML])
def test_without_a_date_of_today_a_run_goes_on_the_next_day(tmp_path, template):
    folder = made(tmp_path, template)
    first, _ = bench(folder, DAYS[0])
    second, said = bench(folder, DAYS[1])
    assert "0 of them new" in said and len(files(folder)) == 1
    assert first["tasks"] == second["tasks"] and "prompts_of_the_day" not in second
