"""Joules per correct answer: sensors laid out as the kernel's, a run that goes on, counters that go round their end."""

import json
from dataclasses import dataclass

import pytest
from slm_edge.benchmarks.report.html import html
from slm_edge.benchmarks.report.report import make_report
from slm_edge.benchmarks.report.text import markdown
from slm_edge.benchmarks.scores.answers import AnswerFile
from slm_edge.benchmarks.scores.cells import Column, Wanted, plan
from slm_edge.benchmarks.scores.energy import Joules, energy_rows
from slm_edge.benchmarks.scores.runner import run_cell
from slm_edge.benchmarks.tasks.registry import task
from slm_edge.devices.machine.sensors import Sensors

RAPL, INA = "class/powercap/intel-rapl:0", "class/hwmon/hwmon3"
RANGE_UJ = 262143328850


def lay(root, files):
    for name, text in files.items():
        path = root / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # In one step, as the kernel changes a value: the thread that reads must not see an empty file
        aside = path.with_name("aside")
        aside.write_text(f"{text}\n")
        aside.replace(path)


@pytest.fixture
def machine(tmp_path):
    """A laptop's package counter, 12 J before its end, and a board's rail of 6.048 W."""
    start_uj = RANGE_UJ - 12_000_000
    lay(tmp_path, {f"{RAPL}/name": "package-0", f"{RAPL}/max_energy_range_uj": RANGE_UJ, f"{RAPL}/energy_uj": start_uj})
    lay(tmp_path, {f"{INA}/name": "ina3221", f"{INA}/in1_label": "VDD_IN", f"{INA}/in1_input": "5040"})
    lay(tmp_path, {f"{INA}/curr1_input": "1200"})
    return tmp_path


def sensors_of(root):
    return Sensors(root, lambda words: None)


def spend(root, joules):
    path = root / "sys" / RAPL / "energy_uj"
    path.write_text(str((int(path.read_text()) + round(joules * 1e6)) % RANGE_UJ))


@dataclass
class Said:
    text: str
    n_prompt_tokens: int = 9
    n_tokens: int = 3
    stop_reason: str = "end"


@pytest.fixture
def cell(tmp_path):
    data = tmp_path / "data" / "gsm8k"
    data.mkdir(parents=True)
    rows = [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(8)]
    (data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [made] = plan([task("gsm8k")], None, [Column(None)], tmp_path / "data", Wanted())
    # As of a pack: an endpoint's machine isn't this one
    made.identity["base_sha256"] = "ab"
    return made


def answers_of(machine, right):
    """A generator that takes 5 J for each answer; those in `right` are right."""

    def generate(cell, items, on_done):
        for i, item in enumerate(items):
            spend(machine, 5)
            on_done(i, Said(f"#### {item.truth['answer'] if item.id in right else 'x'}"))

    return generate


def test_a_run_that_goes_on_is_counted_once(machine, cell, tmp_path):
    """5 J an answer over two runs with 100 J between them, the counter going round its end in the first."""
    right = {item.id for item in cell.items[2:4]}
    for n in (3, 8):
        seconds = iter(range(0, 1000, 2))
        with Joules(sensors_of(machine), every_s=600, clock=lambda of=seconds: next(of)) as joules:
            shorter = type(cell)(**{**cell.__dict__, "n": n})
            spend(machine, 100)
            run_cell(shorter, tmp_path / "answers", answers_of(machine, right), joules.totals)
    with AnswerFile(tmp_path / "answers", cell.identity) as answers:
        rows = {row["sensor"]: row for row in energy_rows(answers.records.values(), cell.task.metrics[0])}
    package = rows["RAPL package-0"]
    assert (package["joules"], package["n_answers"]) == (pytest.approx(40), 8)
    assert package["joules_per_answer"] == pytest.approx(5)
    assert package["joules_per_correct"] == pytest.approx(20)
    assert "not memory modules" in package["includes"]
    # 2 s of this clock for each answer
    assert rows["ina3221 VDD_IN"]["joules"] == pytest.approx(6.048 * 2 * 8)
    report = make_report([cell], tmp_path / "answers", {"pack": {"name": "p", "base": {"file": "b", "sha256": "ab"},
                         "adapters": {}}}, made_at="now", command="x")  # fmt: skip
    assert "RAPL package-0 (the processor's package" in markdown(report)
    assert "gsm8k x base 20 (5 an answer)" in markdown(report)
    assert "20 <small>RAPL package-0</small>" in html(report)


def test_without_sensors_it_is_not_available(cell, tmp_path):
    with Joules(sensors_of(tmp_path)) as joules:
        assert joules.totals() == {}
        (tmp_path / "sys" / RAPL).mkdir(parents=True)
        lay(tmp_path, {f"{RAPL}/energy_uj": 5})
        run_cell(cell, tmp_path / "answers", answers_of(tmp_path, ()), joules.totals)
    with AnswerFile(tmp_path / "answers", cell.identity) as answers:
        assert energy_rows(answers.records.values(), cell.task.metrics[0]) == []
        assert "energy_j" not in answers.path.read_text()
    about = {"pack": {"name": "p", "base": {"file": "b", "sha256": "ab"}, "adapters": {}}}
    report = make_report([cell], tmp_path / "answers", about, made_at="now", command="x")
    assert "Joules per correct answer: not available" in markdown(report)
    assert report["cells"][0]["energy"] == []
    assert "not available" in html(report)


def test_none_right_and_scores_that_are_not_of_right_and_wrong(machine, cell, tmp_path):
    with Joules(sensors_of(machine), every_s=600) as joules:
        run_cell(cell, tmp_path / "answers", answers_of(machine, ()), joules.totals)
    with AnswerFile(tmp_path / "answers", cell.identity) as answers:
        records = list(answers.records.values())
    assert energy_rows(records, cell.task.metrics[0])[0]["joules_per_correct"] is None
    words = next(metric for metric in task("dolly").metrics if not metric.binary)
    assert energy_rows(records, words)[0]["joules_per_correct"] is None


def test_power_is_read_while_it_runs(machine):
    """The thread's readings count for the time between them: 6.048 W, then 0.84 W."""
    at = [0.0]
    with Joules(sensors_of(machine), every_s=0.001, clock=lambda: at[0]) as joules:
        at[0] = 10.0
        assert joules.totals()["ina3221 VDD_IN"] == pytest.approx(60.48)
        lay(machine, {f"{INA}/in1_input": "700"})
        while joules._powers["ina3221 VDD_IN"] > 1:
            pass
        at[0] = 20.0
        assert joules.totals()["ina3221 VDD_IN"] == pytest.approx(60.48 + 8.4)
