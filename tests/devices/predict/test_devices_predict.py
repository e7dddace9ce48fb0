"""The catalogue and the prediction: facts have sources, answers have numbers, errors keep their bounds."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from slm_edge.devices.catalogue.catalogue import devices, find_device, find_sizes, match_device, variants
from slm_edge.devices.catalogue.shapes import find_shape
from slm_edge.devices.catalogue.workload import Workload
from slm_edge.devices.predict.constants import Constants
from slm_edge.devices.predict.evaluate import Residual, half_width
from slm_edge.devices.predict.fit import Target, Wish, judge
from slm_edge.devices.predict.predict import Calibration, Predictor
from slm_edge.devices.predict.published import read_rows
from slm_edge.edge.errors import InputError
from slm_edge.edge.gguf.types import GgmlType


def slm_edge(*args):
    return subprocess.run([sys.executable, "-m", "slm_edge.edge", *args], capture_output=True, text=True, timeout=120)


def evaluate(*args):
    command = [sys.executable, "-m", "slm_edge.devices.predict.evaluate", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", devices())
def test_every_device_predicts_and_every_fact_has_a_source(name):
    device = devices()[name]
    assert all(fact.source for fact in device.facts.values())
    work = Workload.of_shape(find_shape("llama-3.2-1b"), "q4_0")
    predictor = Predictor(device)
    speed = predictor.decode(work, depth_tokens=100)
    assert 0 < speed.low < speed.tokens_per_s < speed.high
    # Not more bytes than the memory has, in the estimate itself.
    assert speed.tokens_per_s * work.streamed_bytes / 1e9 < device.number("theoretical_gb_per_s")
    assert predictor.prefill(work).tokens_per_s > speed.tokens_per_s
    if device.like:
        assert device.like in devices()


def test_a_published_row_lies_in_the_interval():
    """Qwen2.5-0.5B Q4_0 on a Pi 5: 34.22 tokens/s at 2 threads, 28.92 at 4; prompts of 128 326.5/s (836d571)."""
    predictor = Predictor(find_device("raspberry-pi-5-2gb"))
    work = Workload.of_shape(find_shape("qwen2.5-0.5b"), "q4_0")
    for threads, measured in ((2, 34.22), (4, 28.92)):
        speed = predictor.decode(work, threads=threads, depth_tokens=64)
        assert speed.low < measured < speed.high
    assert predictor.best_threads(work) == 2
    prefill = predictor.prefill(work, n_prompt_tokens=128)
    assert prefill.low < 326.5 < prefill.high


def test_a_calibration_scales_and_narrows():
    work = Workload.of_shape(find_shape("qwen2.5-1.5b"), "q4_k_m")
    device = find_device("intel-i5-8250u-8gb")
    before = Predictor(device).decode(work)
    after = Predictor(device, calibration=Calibration(decode=0.5)).decode(work)
    assert after.tokens_per_s == pytest.approx(0.5 * before.tokens_per_s, rel=1e-6)
    assert after.high / after.low < before.high / before.low


def test_depth_and_adapters_cost():
    work = Workload.of_shape(find_shape("llama-3.2-1b"), "q4_0")
    device = find_device("raspberry-pi-5-8gb")
    plain = judge(device, Target.of_shape(find_shape("llama-3.2-1b"), "q4_0"), Wish())
    tuned = judge(device, Target.of_shape(find_shape("llama-3.2-1b"), "q4_0"), Wish(adapter_rank=16))
    # 11.27 million values at rank 16 (ExecuTorch's README: 1B, all seven linear matrices).
    assert work.lora_weights(16) == pytest.approx(11.27e6, rel=0.001)
    assert tuned.decode.tokens_per_s < plain.decode.tokens_per_s
    assert tuned.prefill.tokens_per_s < plain.prefill.tokens_per_s
    assert plain.decode_full.tokens_per_s < plain.decode.tokens_per_s
    assert tuned.plan.total_bytes > plain.plan.total_bytes


def test_ids_and_labels():
    assert find_device("raspberry-pi-5-4gb").ram_bytes == 4 << 30
    assert find_device("raspberry-pi-zero-2-w-512mb").ram_bytes == 512 << 20
    assert match_device("Raspberry Pi 5 2GB").id == "raspberry-pi-5"
    assert match_device("Apple M4 Max CPU (12P+4E)").id == "apple-m4-max"
    assert match_device("Cray-1") is None
    assert find_device("raspberry-pi-4").id == "raspberry-pi-4b"
    assert find_device("raspberry-pi-4-2gb").id == "raspberry-pi-4b-2gb"
    with pytest.raises(InputError, match="not sold with"):
        find_device("raspberry-pi-5-3gb")
    with pytest.raises(InputError, match="no device"):
        find_device("raspberry-pi-6")
    assert variants(devices()["raspberry-pi-4b"])[0].id == "raspberry-pi-4b-1gb"


@pytest.mark.parametrize(
    ("name", "id_"),
    [
        ("pi5 8gb", "raspberry-pi-5-8gb"),
        ("rpi5-8gb", "raspberry-pi-5-8gb"),
        ("Raspberry Pi 5 8 GB", "raspberry-pi-5-8gb"),
        ("raspberry-pi-400", "raspberry-pi-400-4gb"),
        ("pi 500+", "raspberry-pi-500-plus-16gb"),
        ("macbook air m2 16gb", "apple-m2-16gb"),
        ("i7-8700 16gb", "intel-i7-8700-16gb"),
    ],
)
def test_sizes_are_named_as_people_do(name, id_):
    assert [device.id for device in find_sizes(name)] == [id_]


def test_a_device_without_a_size_is_all_its_sizes_and_no_name_is_answered_with_three():
    assert [device.ram_bytes >> 30 for device in find_sizes("pi5")] == [1, 2, 4, 8, 16]
    for name in ("macbook", "raspberry pi 6", "iphone 12", "snapdragon 8 gen 1"):
        with pytest.raises(InputError) as raised:
            find_sizes(name)
        near = raised.value.hint.partition("near: ")[2].partition(". ")[0].split(", ")
        assert 1 <= len(near) <= 3 and set(near) <= set(devices()), raised.value.hint
    with pytest.raises(InputError) as raised:
        find_sizes("Cray-1")
    assert "near" not in raised.value.hint


def test_a_prompt_costs_more_the_longer_and_by_its_layout():
    """Published of one model: 28.67 and 23.91 tokens/s of 512 and 4,096 tokens on an i3-1315U, a ratio of 0.83."""
    work = Workload.of_shape(find_shape("llama-3.2-3b"), "q4_k_m")
    predictor = Predictor(find_device("intel-i3-1315u"))
    short, long = (predictor.prefill(work, n_prompt_tokens=n).tokens_per_s for n in (512, 4096))
    assert long / short == pytest.approx(23.91 / 28.67, abs=0.05)
    # Q4_K on a board with dot product: laid out anew since 2025-12, 2.6 times faster in llama.cpp #19360 for Q6_K.
    pi = Predictor(find_device("raspberry-pi-5"))
    before = pi.prefill(work, laid_out=pi.device.cores.repacked_in("2025-06")).tokens_per_s
    assert pi.device.cores.repacked_in("2025-06") == {"q4_0", "iq4_nl"}
    assert 1.8 < pi.prefill(work).tokens_per_s / before < 3.0


def test_the_smallest_size_that_fits_is_taken_and_said():
    result = slm_edge("devices", "fit", "--device", "pi5", "--model", "llama 3.1 8b q8_0")
    assert result.returncode == 0, result.stderr
    assert "on Raspberry Pi 5, 16GB: fits" in result.stdout
    assert "1, 2, 4, 8 GB are too little; 16 GB fits" in result.stdout
    answer = json.loads(slm_edge("devices", "fit", "--device", "pi5", "--model", "qwen2.5:0.5b", "--json").stdout)
    assert answer["device"] == "raspberry-pi-5-1gb" and answer["runs"]
    assert [size["fits"] for size in answer["sizes"]] == [True] * 5


def test_hub_names_and_their_quantisation():
    for name in (
        "bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M",
        "llama 3.2 3b q4_k_m",
        "llama3.2:3b-instruct-q4_K_M",
        "hf.co/meta-llama/Llama-3.2-3B-Instruct",
    ):
        result = slm_edge("devices", "fit", "--device", "pi5 8gb", "--model", name, "--json")
        assert result.returncode == 0, result.stderr
        answer = json.loads(result.stdout)
        assert (answer["model"], answer["quantisation"]) == ("llama-3.2-3b", "q4_k_m")
    result = slm_edge("devices", "fit", "--device", "pi5", "--model", "llama 3.2 3b q4_k_m", "--quant", "q8_0")
    assert result.returncode == 2 and "--quant" in result.stderr
    result = slm_edge("devices", "fit", "--device", "pi5", "--model", "qwen3.5")
    assert result.returncode == 2 and result.stderr.count("qwen") <= 4


def test_what_was_not_proved_or_does_not_run_is_said():
    result = slm_edge("devices", "fit", "--device", "pi5 8gb", "--model", "gemma-2-2b")
    assert result.returncode == 0
    assert ": fits\n" in result.stdout and "the architecture gemma2, which was not proved here" in result.stdout
    result = slm_edge("devices", "fit", "--device", "iphone 15 pro", "--model", "qwen2.5-0.5b")
    assert result.returncode == 0 and "not for iOS" in result.stdout and "decode" in result.stdout


def test_a_busy_machine_is_not_probed_and_nothing_is_kept(tmp_path):
    """With as many endless loops as cores, a forecast for `this` gives memory alone and leaves no probe behind."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        environment = {**os.environ, "SLM_EDGE_CACHE": str(tmp_path)}
        command = [sys.executable, "-m", "slm_edge.edge", "devices", "fit", "--model", "smollm2-135m"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert result.returncode == 0, result.stderr
    assert "RAM" in result.stdout and "tokens/s" not in result.stdout
    assert "not forecast: other processes keep" in result.stdout and "busy" in result.stderr
    assert not list(tmp_path.rglob("probe.json"))


def test_a_probe_of_a_busy_machine_cannot_be_kept(tmp_path, monkeypatch):
    from slm_edge.devices.machine.probe import Probe, kept_probe, save_probe, this_device

    monkeypatch.setenv("SLM_EDGE_CACHE", str(tmp_path))
    device = this_device({1: 10.0})
    with pytest.raises(InputError, match="busy"):
        save_probe(Probe(device, Calibration(decode=1.0), 5.0, others_cores=1.5))
    assert kept_probe() is None
    save_probe(Probe(device, Calibration(decode=1.0), 5.0, others_cores=0.02))
    assert kept_probe().device.read_curve() == {1: 10.0}


def test_fit_says_what_fits_and_exits_1_where_nothing_does():
    small = ("devices", "fit", "--device", "raspberry-pi-3b-plus", "--model", "llama-3.2-3b", "--quant", "q8_0")
    result = slm_edge(*small, "--json")
    assert result.returncode == 1
    answer = json.loads(result.stdout)
    assert not answer["fits"] and answer["nearest"]["fits"]
    assert answer["nearest"]["memory"]["total_bytes"] <= answer["usable_ram_bytes"] < answer["memory"]["total_bytes"]
    result = slm_edge("devices", "fit", "--device", "raspberry-pi-5-4gb", "--model", "llama-3.2-1b", "--explain")
    assert result.returncode == 0
    assert "how it is computed" in result.stdout and "GB/s" in result.stdout
    result = slm_edge("devices", "fit", "--all", "--model", "qwen2.5-0.5b", "--quant", "q4_0")
    assert result.returncode == 0
    assert "raspberry-pi-zero-2-w-512mb" in result.stdout
    assert result.stdout.count("apple-m4-max") == 1 and "e+0" not in result.stdout
    result = slm_edge("devices", "fit", "--device", "raspberry-pi-5", "--model", "llama-3.2-1b", "--quant", "q4_9")
    assert result.returncode == 2
    assert "q4_0" in result.stderr


def test_rows_are_flagged(tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text(
        "device,model,params_b,quant,size_mib,threads,pp_tps,pp_n,tg_tps,tg_n,engine,version,doubtful,notes\n"
        "Rock 5B (RK3588),cogito-v1-preview-llama-3B,3.6,Q4_0,,4,,,150,128,llama.cpp,,,\n"
        "Raspberry Pi 5 8GB,OLMoE-1B-7B,,Q4_0,3744,4,50,512,13,128,llama.cpp,,,MoE\n"
        "Raspberry Pi 5 8GB,qwen2.5:1.5b,1.5,Q4_K_M,940,,13,37,7.5,,ollama,,,\n"
    )
    impossible, experts, good = read_rows(table)
    assert impossible.flag.startswith("impossible")
    assert "dense" in experts.flag
    assert good.flag is None
    with pytest.raises(InputError, match="not a table"):
        (tmp_path / "x.csv").write_text("a,b\n1,2\n")
        read_rows(tmp_path / "x.csv")


def test_a_table_without_a_usable_row_is_refused(tmp_path):
    table = tmp_path / "measurements.csv"
    table.write_text(
        "device,model,params_b,quant,size_mib,threads,pp_tps,pp_n,tg_tps,tg_n,engine,version,doubtful,notes\n"
        "Raspberry Pi 5 8GB,OLMoE-1B-7B,,Q4_0,3744,4,50,512,13,128,llama.cpp,,,MoE\n"
    )
    result = evaluate(table)
    assert result.returncode == 2 and "no row can be held" in result.stderr and "Traceback" not in result.stderr
    assert slm_edge("devices", "evaluate", str(table)).returncode == 2


@pytest.mark.reference
def test_the_bounds_hold_on_rows_that_were_left_out(shared_data):
    result = evaluate(shared_data / "devices" / "measurements.csv", "--json")
    assert result.returncode == 0, result.stderr
    kinds = json.loads(result.stdout)["kinds"]
    assert kinds["decode_prior"]["median_error"] <= 0.20
    assert kinds["decode_calibrated"]["median_error"] <= 0.10
    assert kinds["prefill_prior"]["median_error"] <= 0.15
    assert kinds["prefill_board"]["median_error"] <= 0.15
    assert kinds["prefill_calibrated"]["median_error"] <= 0.15
    assert len(kinds) == 7
    for kind, row in kinds.items():
        assert row["inside_90_interval"] >= 0.895, kind


def test_an_interval_from_few_boards_holds_for_the_next_one():
    """Boards whose rows err together: of 2,000 new ones, 90 % lie within what four others make, and not far more."""
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        boards = random.normal(0, 0.2, 5)
        rows = [
            Residual(SimpleNamespace(board=board), error + random.normal(0, 0.05))
            for board, error in enumerate(boards[:4])
            for _ in range(3)
        ]
        inside += abs(boards[4] + random.normal(0, 0.05)) <= half_width(rows)
    assert 0.88 <= inside / 2000 <= 0.95


def test_the_fitted_constants_are_sane():
    from slm_edge.devices.predict.constants import fitted

    constants = fitted()
    assert isinstance(constants, Constants)
    assert 0.3 < constants.theory_part < constants.read_part < 1
    assert set(constants.boards) <= set(devices())
    assert constants.half("decode", "calibrated") < constants.half("decode", "prior")


def test_a_probe_finds_the_rate_of_each_kernel_again():
    """A unit whose truth is known, timed type by type: models of several types are then predicted."""
    from slm_edge.devices.machine.probe import calibration_of
    from slm_edge.devices.machine.probe_kernels import N_DECODE, N_PROMPT, KernelRates

    device = find_device("raspberry-pi-5-8gb")
    cycles = {"q4_0": 0.3, "q4_1": 0.5, "q5_0": 0.9, "q8_0": 0.4, "q4_k": 0.6, "q6_k": 1.1}
    macs = {"q4_0": 9.0, "q4_1": 2.5, "q5_0": 2.0, "q8_0": 7.0, "q4_k": 5.0, "q6_k": 4.0}
    truth = Calibration(decode=1.0, prefill={"repack": 1.0, "plain": 1.0}, cycles=cycles, macs_per_cycle=macs)
    unit = Predictor(device, calibration=truth)
    rates = {}
    for label in cycles:
        n = 150_000_000
        work = Workload(label, {GgmlType[label.upper()]: n}, n, 0, n, n_embd=1024, n_layers=12)
        token_s = [1 / unit.decode(work, threads=t, depth_tokens=N_DECODE / 2).tokens_per_s for t in (4, 1)]
        prompt_s = N_PROMPT / unit.prefill(work, n_prompt_tokens=N_PROMPT, threads=4).tokens_per_s
        rates[label] = KernelRates(work, *token_s, prompt_s)
    found = calibration_of(device, rates, 4)
    assert found.cycles == pytest.approx(cycles, rel=0.02)
    assert found.macs_per_cycle == pytest.approx(macs, rel=0.02)
    assert found.decode == pytest.approx(1.0, rel=0.02)
    here = Predictor(device, calibration=found)
    for label in ("q4_0", "q4_k_m", "q5_0", "q8_0"):
        work = Workload.of_shape(find_shape("qwen2.5-1.5b"), label)
        for threads in (1, 4):
            there = unit.decode(work, threads=threads).tokens_per_s
            assert here.decode(work, threads=threads).tokens_per_s == pytest.approx(there, rel=0.03)
        there = unit.prefill(work, threads=4).tokens_per_s
        assert here.prefill(work, threads=4).tokens_per_s == pytest.approx(there, rel=0.03)
    # A type that was not timed follows the others of its class.
    assert here.macs_per_s(GgmlType.Q5_1, 4) > 0


def test_the_probes_model_is_one(tmp_path):
    """llama.cpp loads and computes it, and its table says what it weighs."""
    from slm_edge.devices.machine.probe import isa_class, this_device
    from slm_edge.devices.machine.probe_kernels import PROBED_TYPES, write_model
    from slm_edge.edge.gguf.file import GgufFile
    from slm_edge.edge.llama.context import Context
    from slm_edge.edge.llama.model import Model

    for label in PROBED_TYPES:
        path = tmp_path / f"{label}.gguf"
        write_model(path, label, n_layers=1)
        work = Workload.of_file(GgufFile.open(path))
        assert [kind.name.lower() for kind in work.weights_by_type] == [label]
        with Model.load(path) as model, Context(model, n_ctx_tokens=256, threads=1) as context:
            context.decode([1, 2, 3], 0)
            logits = context.logits()
            assert abs(logits).max() > 0 and (logits == logits).all()
    device = this_device({1: 10.0})
    assert device.n_cores >= 1 and device.cores.name == isa_class()
    assert 0 < device.usable_bytes < device.ram_bytes
    assert Predictor(device).decode(work).tokens_per_s > 0


def test_cores_are_told_apart_by_what_the_kernel_says():
    """As /proc/cpuinfo has it on a Pi 5, a Radxa Zero 3, a Pi 4, an N100 and a desktop."""
    from slm_edge.devices.machine.probe import isa_class

    arm = "Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm{}\nCPU part\t: {}\n"
    x86 = "model name\t: {}\nflags\t\t: fpu avx avx2 fma f16c avx_vnni\n"
    assert isa_class(arm.format(" asimddp", "0xd0b"), "aarch64", "Linux") == "neon-dotprod"
    assert isa_class(arm.format(" asimddp", "0xd05"), "aarch64", "Linux") == "neon-dotprod-a55"
    assert isa_class(arm.format("", "0xd08"), "aarch64", "Linux") == "neon"
    assert isa_class(arm.format(" asimddp i8mm", "0xd81"), "aarch64", "Linux") == "neon-i8mm"
    assert isa_class(x86.format("Intel(R) N100"), "x86_64", "Linux") == "avx2-small"
    assert isa_class(x86.format("Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz"), "x86_64", "Linux") == "avx2"
