"""`slm-edge profile` on a tiny pack: document and schema, files written, assertions, comparisons, calibration."""

import copy
import html
import html.parser
import json
import os
import re
import subprocess
import sys
from decimal import Decimal

import jsonschema
import pytest
from build_gguf import tiny_adapter, tiny_base
from slm_edge.devices.catalogue.catalogue import find_device
from slm_edge.devices.catalogue.shapes import find_shape
from slm_edge.devices.catalogue.workload import Workload
from slm_edge.devices.cli.profile import load_schema, parse_seconds
from slm_edge.devices.machine.sensors import Sensors
from slm_edge.devices.predict.predict import AdapterCost, Calibration, Predictor
from slm_edge.devices.predict.unit_factors import calibrate, load_calibration, save_calibration, work_dict, work_of
from slm_edge.devices.profile import charts
from slm_edge.devices.profile import html as profile_html
from slm_edge.devices.profile.compare import check_comparable, compare
from slm_edge.devices.profile.profile import Request, run_profile
from slm_edge.devices.profile.text import failed_assertions, jsonl, metrics, table
from slm_edge.edge.errors import InputError, UnsupportedError
from slm_edge.edge.gguf.file import GgufFile

# A context of 1024 leaves room for the depth of 512 that `--quick` measures.
OPTIONS = ["--quick", "--threads", "1", "--context", "1024"]


def slm_edge(*args):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "slm_edge.edge", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    base = tiny_base(folder / "base.gguf")
    adapter = tiny_adapter(folder / "math.gguf", base)
    result = slm_edge("pack", "build", "-o", str(folder / "pack"), "--base", str(base), "--adapter", f"math={adapter}")
    assert result.returncode == 0, result.stderr
    return folder / "pack"


@pytest.fixture(scope="module")
def profile(pack):
    """One run with every output."""
    out = pack.parent
    files = ["--out", str(out / "p.json"), "--html", str(out / "r.html"), "--jsonl", str(out / "p.jsonl")]
    tests = ["--assert", "decode_tokens_per_s>=0.001", "--assert", "math.first_token_s<=1e6"]
    result = slm_edge("profile", "--pack", str(pack), *OPTIONS, *files, *tests, "--sustain", "2s", "--json")
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert data == json.loads((out / "p.json").read_text())
    return data


def test_the_document_is_as_its_schema_says(profile):
    schema = load_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(profile, schema)
    printed = slm_edge("profile", "--schema")
    assert json.loads(printed.stdout) == schema
    for key in ("cases", "memory", "sensors"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({name: value for name, value in profile.items() if name != key}, schema)


def test_it_measured_the_base_and_the_adapter(profile, pack):
    base, math = profile["cases"]
    assert (profile["model"]["file"], profile["model"]["name"]) == ("base.gguf", "base")
    assert (base["adapter"], math["adapter"]) == (None, "math")
    assert math["load_s"] > 0 and math["n_pairs"] == 14
    for case in profile["cases"]:
        assert [row["n_prompt_tokens"] for row in case["prefill"]] == [32, 256]
        assert [row["depth_tokens"] for row in case["decode"]] == [0, 512]
        for row in case["decode"]:
            assert len(row["tokens_per_s"]["samples"]) == 3
            gaps = row["inter_token_s"]
            assert len(gaps["samples"]) == 3 * row["n_tokens"]
            assert gaps["p50"] <= gaps["p95"] <= gaps["p99"]
    (swap,) = profile["swaps"]
    assert (swap["from"], swap["to"]) == (None, "math")
    assert swap["first_kept_tokens"] < 128 < 256 <= swap["back_kept_tokens"] < swap["n_prompt_tokens"]
    memory = profile["memory"]
    assert 0 < memory["uss_bytes"] <= memory["pss_bytes"] <= memory["rss_bytes"] <= memory["peak_rss_bytes"]
    assert profile["load"]["warm_s"] > 0
    assert profile["sustained"]["rows"] and profile["setup"]["threads"] == 1
    assert "energy_j" in profile["sensors"] and "energy" in profile["sustained"]
    table = GgufFile.open(next(pack.glob("*.gguf"))).tensors
    assert work_of(profile["model"]["work"]).n_weights == sum(t.n_values for t in table.values() if len(t.shape) == 2)


def test_the_jsonl_has_llama_benchs_fields(profile, pack):
    rows = [json.loads(line) for line in (pack.parent / "p.jsonl").read_text().splitlines()]
    assert jsonl(profile).splitlines() == (pack.parent / "p.jsonl").read_text().splitlines()
    assert len(rows) == 2 * (2 + 2)
    for row in rows:
        assert {"build_commit", "cpu_info", "model_filename", "n_prompt", "n_gen", "n_depth", "avg_ns"} <= row.keys()
        assert len(row["samples_ns"]) == len(row["samples_ts"]) == 3
        n = row["n_prompt"] or row["n_gen"]
        assert row["samples_ts"][0] == pytest.approx(n / row["samples_ns"][0] * 1e9, rel=1e-3)


class Checker(html.parser.HTMLParser):
    """Gathers tags and what they would fetch."""

    def __init__(self):
        super().__init__()
        self.tags, self.fetched = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href", "srcset")]


def test_the_report_is_one_file_of_charts(profile, pack):
    text = (pack.parent / "r.html").read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.tags.count("svg") >= 4
    assert not checker.fetched and "url(" not in text and "script" not in checker.tags
    assert "prefers-color-scheme:dark" in text
    hostile = copy.deepcopy(profile)
    hostile["model"]["name"] = hostile["cases"][1]["adapter"] = "<script>alert(1)</script>"
    hostile["machine"]["device"] = "<img src=x>"
    checker = Checker()
    checker.feed(profile_html.report(hostile))
    assert "script" not in checker.tags and "img" not in checker.tags


@pytest.mark.parametrize("most", [0.0, 0.013, 1, 2.49, 4, 9.99, 10, 99, 102, 256, 307, 486, 1024, 48_600])
def test_axes_have_round_steps(most):
    steps = [Decimal(str(value)) for value in charts.steps_to(most)]
    assert 3 <= len(steps) <= 7
    assert steps == [steps[1] * i for i in range(len(steps))]
    assert steps[-1] >= Decimal(str(most)) and (most == 0 or steps[-2] < Decimal(str(most)))
    counted = charts.steps_to(most, whole=True)
    assert all(value == int(value) for value in counted) and counted[-1] >= most and 2 <= len(counted) <= 7
    # 1, 2, 2.5 or 5 times a power of ten
    assert steps[1].normalize().as_tuple().digits in ((1,), (2,), (2, 5), (5,))


def test_charts_have_figures_and_words(profile):
    text = profile_html.report(profile)
    shown = set(re.findall(r"<text[^>]*>([^<]+)</text>", text))
    for case in profile["cases"]:
        for row in [*case["prefill"], *case["decode"]]:
            assert charts.figure(row["tokens_per_s"]["median"]) in shown
    for key in ("decode", "prefill", "between", "memory"):
        assert profile_html.GOOD[key].split(":")[0] in html.unescape(text)
    # Two points at one place do not hide each other's figure.
    drawn = charts.lines([("a", [(0, 10.0), (8, 5)]), ("b", [(0, 10.1), (8, 5)])], "x")
    heights = re.findall(r"y=([\d.]+) text-anchor=start", drawn)
    assert len(heights) == 2 and abs(float(heights[0]) - float(heights[1])) >= charts.FIGURE_HEIGHT
    # The lowest figure of a column stands beside its point where the axis's figures are below.
    low = charts.lines([("a", [(0, 90.0), (8, 3)]), ("b", [(0, 80.0), (8, 2)]), ("c", [(0, 70.0), (8, 1)])], "x")
    heights = [float(height) for height in re.findall(r"class=figure x=[\d.]+ y=([\d.]+)", low)]
    assert len(heights) == 6 and max(heights) <= charts.HEIGHT - charts.BOTTOM + 4
    crowd = charts.lines([(name, [(5, 10 + i / 50), (8, 1)]) for i, name in enumerate("abc")], "x")
    places = re.findall(r"class=figure x=([\d.]+) y=([\d.]+)", crowd)[:3]
    assert len(set(places)) == 3
    many = charts.lines([("a", [(i, i) for i in range(100)])], "x")
    assert many.count("<circle") == 0 and "style='fill" not in many


def test_what_is_not_read_is_said_once(profile):
    quiet = copy.deepcopy(profile)
    for when in ("before", "after"):
        quiet["sensors"][when] = dict.fromkeys(quiet["sensors"][when])
    quiet["sensors"] |= {"energy_j": None, "samples": []}
    quiet["machine"]["firmware"] = None
    text = profile_html.report(quiet)
    assert "not read here: temperature, power, throttling, energy" in text
    assert "firmware" not in text and "°C" not in text
    quiet["sensors"]["samples"] = [{"at_s": i, "temperature_c": {"cpu": 40.0 + i}} for i in range(3)]
    assert profile_html.GOOD["temperature"] in profile_html.report(quiet)


def test_assertions(profile, pack):
    known = metrics(profile)
    assert known["decode_tokens_per_s"] == min(known["base.decode_tokens_per_s"], known["math.decode_tokens_per_s"])
    assert failed_assertions(profile, ["decode_tokens_per_s>=1e12", "peak_rss_bytes<=1e15"])[0].startswith("decode")
    with pytest.raises(InputError) as caught:
        failed_assertions(profile, ["decode>=8", "peak_rss_bytes<>3"])
    assert len(caught.value.problems) == 2
    result = slm_edge("profile", "--pack", str(pack), "--assert", "nonsense")
    assert result.returncode == 2 and "nonsense" in result.stderr


def changed(profile, factor, spread=0.001):
    """A profile whose rates are `factor` times as high, its repeats `spread` apart."""
    other = copy.deepcopy(profile)
    for case in other["cases"]:
        for row in [*case["prefill"], *case["decode"]]:
            middle = factor * row["tokens_per_s"]["median"]
            row["tokens_per_s"]["samples"] = [middle * (1 + spread * (i - 2)) for i in range(5)]
    return other


def test_compare_tells_a_difference_from_noise(profile):
    steady = changed(profile, 1.0)
    assert {row["verdict"] for row in compare(steady, changed(profile, 1.2))} == {"faster"}
    assert {row["verdict"] for row in compare(steady, changed(profile, 0.8))} == {"slower"}
    assert {row["verdict"] for row in compare(steady, changed(profile, 1.2, spread=0.3))} == {"within the noise"}
    for row in compare(steady, changed(profile, 1.2)):
        assert row["low"] <= 1.2 <= row["high"] and row["ratio"] == pytest.approx(1.2)
    check_comparable(profile, steady)
    steady["machine"]["device"] = "another"
    steady["setup"]["threads"] = 7
    with pytest.raises(UnsupportedError) as caught:
        check_comparable(profile, steady)
    assert len(caught.value.problems) == 2


def test_a_profile_calibrates(profile):
    """A unit whose truth is known, written as a profile: the truth is found again, and other models are predicted."""
    device = find_device("raspberry-pi-5-8gb")
    truth = Calibration(decode=0.8, prefill={"repack": 0.7}, kv_part=0.25, pair_s=2e-5)
    unit = Predictor(device, calibration=truth)
    work = Workload.of_shape(find_shape("llama-3.2-1b"), "q4_0")
    adapter = AdapterCost(int(11.27e6), 34 / 32, 112)

    def case(name, tuned):
        decode = [
            {
                "depth_tokens": depth,
                "n_tokens": 64,
                "tokens_per_s": {"median": unit.decode(work, threads=4, depth_tokens=depth + 32, **tuned).tokens_per_s},
            }
            for depth in (0, 1024)
        ]
        rate = unit.prefill(work, n_prompt_tokens=512, threads=4).tokens_per_s
        prefill = [{"n_prompt_tokens": 512, "tokens_per_s": {"median": rate}}]
        sizes = {"adapter_bytes": adapter.n_bytes if name else 0, "n_pairs": 112 if name else 0}
        return {"adapter": name, "decode": decode, "prefill": prefill, **sizes}

    known = copy.deepcopy(profile)
    known["model"]["work"] = json.loads(json.dumps(work_dict(work)))
    known["setup"] |= {"threads": 4, "threads_batch": 4, "repack": True}
    known["cases"] = [case(None, {}), case("math", {"adapter": adapter})]
    found = calibrate(known, device)
    assert found.decode == pytest.approx(truth.decode, rel=0.02)
    assert found.prefill == {"repack": pytest.approx(0.7, rel=0.01)}
    assert found.kv_part == pytest.approx(truth.kv_part, rel=0.05)
    assert found.pair_s == pytest.approx(truth.pair_s, rel=0.25)
    other = Workload.of_shape(find_shape("qwen2.5-1.5b"), "q4_k_m")
    for depth in (0, 2000):
        there = unit.decode(other, threads=4, depth_tokens=depth)
        here = Predictor(device, calibration=found).decode(other, threads=4, depth_tokens=depth)
        assert here.tokens_per_s == pytest.approx(there.tokens_per_s, rel=0.05)
    # What this model's kernel does not tell, a probe of the unit does.
    both = calibrate(known, device, Calibration(prefill={"repack": 9.0, "plain": 0.6}))
    assert both.prefill == {"repack": found.prefill["repack"], "plain": 0.6}
    # Where a probe has timed the types, what is left of the profile's tokens is the layers'.
    cycles = {"q4_0": 0.9, "q4_k": 0.7, "q6_k": 1.2}
    truth = Calibration(decode=0.9, prefill={"repack": 0.7}, kv_part=0.25, layer_s=3e-4, cycles=cycles)
    unit = Predictor(device, calibration=truth)
    known["cases"] = [case(None, {})]
    by_types = Calibration(decode=0.9, prefill={"repack": 1.0, "plain": 1.0}, cycles=cycles)
    found = calibrate(known, device, by_types)
    assert found.layer_s == pytest.approx(3e-4, rel=0.05) and found.decode == pytest.approx(0.9, rel=0.01)
    for depth in (0, 2000):
        there = unit.decode(other, threads=4, depth_tokens=depth)
        here = Predictor(device, calibration=found).decode(other, threads=4, depth_tokens=depth)
        assert here.tokens_per_s == pytest.approx(there.tokens_per_s, rel=0.03)
    save_calibration("raspberry-pi-5-8gb", found)
    assert load_calibration("raspberry-pi-5-8gb") == found
    with pytest.raises(InputError, match="not a profile"):
        calibrate({"kind": "else"}, device)


def test_calibrated_on_one_model_another_is_predicted_and_measured(pack):
    """The benchmark's command on tiny bases: every rate of the base and the adapter, with what was made of it."""
    base = str(pack.parent / "base.gguf")
    command = [
        sys.executable,
        "-m",
        "slm_edge.benchmarks.proofs.forecast",
        base,
        base,
        "--threads",
        "1",
        "--repeats",
        "2",
    ]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert [row["adapter"] for row in data["rows"]] == [None] * 4 + ["rank 16"] * 4
    for row in data["rows"]:
        assert row["error"] == pytest.approx(row["predicted_per_s"] / row["measured_per_s"] - 1)
        assert row["inside"] == (row["low"] <= row["measured_per_s"] <= row["high"])
    assert data["summary"]["decode"]["n"] == data["summary"]["prompt"]["n"] == 4
    assert set(data["calibration"]["prefill"]) == {"repack", "plain"}


def test_emulation_limits_and_says_what_it_does_not(pack):
    result = slm_edge("profile", "--pack", str(pack), *OPTIONS, "--emulate", "raspberry-pi-4b-1gb", "--adapter", "none")
    assert result.returncode == 0, result.stderr
    assert "Speed is NOT emulated" in result.stderr
    # A name without a size of RAM is the smallest that is sold.
    result = slm_edge("profile", "--pack", str(pack), *OPTIONS, "--emulate", "pi4", "--adapter", "none")
    assert "emulating Raspberry Pi 4B, 1GB" in result.stderr
    result = slm_edge("profile", "--pack", str(pack), "--emulate", "raspberry-pi-9")
    assert result.returncode == 2


def test_joules_per_token_come_from_the_machines_sensors(pack, tmp_path):
    """A profile over a tree as the kernel's: a chip of 6 W, and a RAPL counter that moves 10 J at a time."""
    chip, zone = tmp_path / "sys/class/hwmon/hwmon0", tmp_path / "sys/class/powercap/intel-rapl:0"
    files = {chip / "name": "ina3221", chip / "in1_label": "VDD_IN", chip / "in1_input": "5000"}
    files |= {chip / "curr1_input": "1200", zone / "name": "package-0", zone / "max_energy_range_uj": "262143328850"}
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    reads = 0

    class Moving(Sensors):
        def energy_counters(self):
            nonlocal reads
            reads += 1
            (zone / "energy_uj").write_text(str(262_140_000_000 + reads * 10_000_000 % 262_143_328_850))
            return super().energy_counters()

    request = Request(pack=pack, adapters=("none",), quick=True, threads=1, n_ctx_tokens=128, sustain_s=2)
    profile = run_profile(request, Moving(tmp_path, lambda words: None))
    sustained = profile["sustained"]
    n_tokens, seconds = sum(row["n_tokens"] for row in sustained["rows"]), sustained["rows"][-1]["at_s"]
    used = {row["sensor"]: row["joules_per_token"] for row in sustained["energy"]}
    assert used == {
        "RAPL package-0": pytest.approx(10 / n_tokens),
        "ina3221 VDD_IN": pytest.approx(6 * seconds / n_tokens),
    }
    assert "J/token, RAPL package-0: the processor's package" in table(profile)
    jsonschema.validate(profile, load_schema())
    # Set before, before and after the sustained load, after.
    assert profile["sensors"]["energy_j"] == {"RAPL package-0": pytest.approx(30)}
    silent = {**sustained, "energy": None}
    assert "J/token not available" in table({**profile, "sustained": silent})


def test_times():
    assert (parse_seconds("90s"), parse_seconds("5m"), parse_seconds("30")) == (90, 300, 30)
    with pytest.raises(InputError):
        parse_seconds("soon")
