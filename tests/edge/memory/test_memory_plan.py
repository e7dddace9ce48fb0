"""The memory plan against llama.cpp's own figures, against real processes, and under a real ceiling."""

import dataclasses
import json
import re
import resource
import subprocess
import sys

import pytest
from build_gguf import tiny_adapter, tiny_base
from build_other import other_base
from slm_edge.benchmarks.made.random_base import make_shape
from slm_edge.benchmarks.proofs.memory_plan import can_make_groups, ceiling, compare, compare_full
from slm_edge.devices.catalogue.shapes import find_shape
from slm_edge.devices.catalogue.table_view import table_of
from slm_edge.edge.errors import DoesNotFitError, InputError
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.llama.binding import quiet_logs
from slm_edge.edge.llama.context import Context
from slm_edge.edge.llama.model import Model, cpu_features, repacked_tensors
from slm_edge.edge.memory.fit import fit, plan_session
from slm_edge.edge.memory.plan import MIB, ContextSize, plan_memory
from slm_edge.edge.pack.write import NewAdapter, build_pack
from slm_edge.edge.session.session import Session
from slm_edge.edge.system.machine import memory_limit_bytes
from slm_edge.edge.written import parse_bytes

WORK_BYTES = 128 * 768 * 292 // 256 + (512 << 10)
COMMAND = [sys.executable, "-m", "slm_edge.edge"]


@pytest.fixture(scope="module")
def base_path(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("plan") / "base.gguf", n_embd=256, n_ff=768, n_ctx_train_tokens=8192)


@pytest.fixture(scope="module")
def windowed_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("windows") / "base.gguf"
    return tiny_base(path, architecture="gemma3", n_embd=256, n_ff=768, n_ctx_train_tokens=8192)


@pytest.fixture(scope="module")
def base(base_path):
    return BaseInfo.open(base_path)


@pytest.mark.parametrize("flash_attention", ["on", "off"])
@pytest.mark.parametrize(("n_ctx", "n_batch", "kv_type"), [(2048, 128, "f16"), (8192, 512, "f16"), (300, 32, "f32")])
def test_buffers_are_those_that_llama_cpp_reports(base_path, base, n_ctx, n_batch, kv_type, flash_attention):
    on = flash_attention == "on"
    plan = plan_memory(
        base, n_ctx_tokens=n_ctx, n_batch_tokens=n_batch, kv_type=kv_type, flash_attention=on, n_threads=1
    )
    with Model.load(base_path) as model, quiet_logs() as log:
        Context(
            model,
            n_ctx_tokens=n_ctx,
            n_batch_tokens=n_batch,
            kv_type=kv_type,
            threads=1,
            flash_attention=flash_attention,
        ).close()
    said = {kind: float(size) for kind, size in re.findall(r"(KV|compute|output) buffer size = +([\d.]+)", log.text())}
    assert plan.kv_bytes / MIB == pytest.approx(said["KV"], abs=0.01)
    assert plan.outputs_bytes / MIB == pytest.approx(said["output"], abs=0.01)
    work_bytes = n_batch * 768 * 292 // 256 + (512 << 10)
    assert (plan.compute_bytes - work_bytes) / MIB == pytest.approx(said["compute"], rel=0.05, abs=0.06)


@pytest.mark.parametrize("flash_attention", ["on", "off"])
@pytest.mark.parametrize(("n_ctx", "n_batch", "n_seq"), [(2048, 128, 1), (8192, 512, 1), (300, 32, 1), (768, 128, 4)])
def test_so_are_those_of_windows(windowed_path, n_ctx, n_batch, n_seq, flash_attention):
    sizes = {"n_batch_tokens": n_batch, "n_outputs": n_seq, "n_seq": n_seq, "n_threads": 1}
    size = ContextSize.of(BaseInfo.open(windowed_path).file)
    kv_bytes, compute_bytes, _ = size.bytes(n_ctx, **sizes, flash_attention=flash_attention == "on")
    options = {"n_ctx_tokens": n_ctx * n_seq, "n_batch_tokens": n_batch, "n_seq_max": n_seq, "threads": 1}
    with Model.load(windowed_path) as model, quiet_logs() as log:
        Context(model, **options, flash_attention=flash_attention).close()
    said = re.findall(r"KV buffer size = +([\d.]+)", log.text())
    assert len(said) == 2
    assert kv_bytes / MIB == pytest.approx(sum(map(float, said)), abs=0.01)
    compute = float(re.findall(r"compute buffer size = +([\d.]+)", log.text())[0])
    work_bytes = n_batch * 768 * 292 // 256 + (512 << 10)
    assert (compute_bytes - work_bytes) / MIB == pytest.approx(compute, rel=0.05, abs=0.06)


@pytest.mark.parametrize("architecture", ["lfm2", "qwen35", "granitehybrid"])
@pytest.mark.parametrize(("n_ctx", "n_seq"), [(1024, 1), (512, 3)])
def test_so_are_those_of_states(tmp_path, architecture, n_ctx, n_seq):
    path = other_base(tmp_path, architecture)[1]
    size = ContextSize.of(BaseInfo.open(path).file)
    kv_bytes = size.bytes(n_ctx, n_batch_tokens=128, n_outputs=n_seq, n_seq=n_seq)[0]
    with Model.load(path) as model, quiet_logs() as log:
        Context(model, n_ctx_tokens=n_ctx * n_seq, n_batch_tokens=128, n_seq_max=n_seq, threads=1).close()
    said = re.findall(r"(KV|RS) buffer size = +([\d.]+)", log.text())
    assert [kind for kind, _ in said] == ["KV", "RS"]
    assert kv_bytes / MIB == pytest.approx(sum(float(n) for _, n in said), abs=0.011)
    assert not size.cuttable


@pytest.mark.parametrize("architecture", ["gemma3n", "gemma4"])
@pytest.mark.parametrize(("n_ctx", "n_batch", "n_seq"), [(2048, 128, 1), (768, 128, 3)])
def test_so_are_those_of_layers_that_read_the_keys_of_others(tmp_path, architecture, n_ctx, n_batch, n_seq):
    # Lengths of rows as in Gemma 4 E2B: four times as wide within as without.
    wider = {"hidden_size": 128, "intermediate_size": 512} if architecture == "gemma4" else {}
    path = other_base(tmp_path, architecture, **wider)[1]
    sizes = {"n_batch_tokens": n_batch, "n_outputs": n_seq, "n_seq": n_seq, "n_threads": 1}
    size = ContextSize.of(BaseInfo.open(path).file)
    kv_bytes, compute_bytes, _ = size.bytes(n_ctx, **sizes)
    with Model.load(path) as model, quiet_logs() as log:
        Context(model, n_ctx_tokens=n_ctx * n_seq, n_batch_tokens=n_batch, n_seq_max=n_seq, threads=1).close()
    said = re.findall(r"KV buffer size = +([\d.]+)", log.text())
    assert len(said) == 2
    assert kv_bytes / MIB == pytest.approx(sum(map(float, said)), abs=0.01)
    compute = float(re.findall(r"compute buffer size = +([\d.]+)", log.text())[0])
    work_bytes = n_batch * size.kept.n_ff * 292 // 256 + (512 << 10)
    assert (compute_bytes - work_bytes) / MIB == pytest.approx(compute, rel=0.05, abs=0.06)


def test_windows_make_long_contexts_cheap(windowed_path):
    """5 of 6 layers keep 40 tokens and one batch: 512 cells, not 8,192."""
    info = BaseInfo.open(windowed_path)
    plan = plan_memory(info, n_ctx_tokens=8192)
    assert plan.kv_bytes == (8192 + 5 * 512) * 2 * 2 * 64 * 2
    assert not plan_session(info, {"both_layouts": True, "n_ctx_tokens": 512}).choices.both_layouts


def test_a_second_context_for_answers_at_once_too(base_path, base):
    sizes = {"n_batch_tokens": 128, "n_outputs": 4, "n_seq": 4, "n_threads": 1}
    kv_bytes, compute_bytes, outputs_bytes = ContextSize.of(base.file).bytes(700, **sizes)
    with Model.load(base_path) as model, quiet_logs() as log:
        Context(model, n_ctx_tokens=4 * 768, n_batch_tokens=128, n_seq_max=4, threads=1).close()
    said = {kind: float(size) for kind, size in re.findall(r"(KV|compute|output) buffer size = +([\d.]+)", log.text())}
    assert kv_bytes / MIB == pytest.approx(said["KV"], abs=0.01)
    assert outputs_bytes / MIB == pytest.approx(said["output"], abs=0.01)
    assert (compute_bytes - WORK_BYTES) / MIB == pytest.approx(said["compute"], rel=0.05, abs=0.06)


@pytest.mark.skipif("AVX2" not in cpu_features(), reason="which types are repacked is known by heart for AVX2 only")
def test_what_is_repacked_is_what_llama_cpp_repacks(base_path, tmp_path):
    from slm_edge.benchmarks.made.random_base import make_base
    from slm_edge.edge.gguf.types import GgmlType

    for kind, expected in ((GgmlType.Q4_0, True), (GgmlType.Q8_0, False)):
        path = make_base(tmp_path / f"{kind.name}.gguf", like=base_path, type=kind)
        file = BaseInfo.open(path).file
        with quiet_logs() as log, Model.load(path):
            pass
        said = re.search(r"CPU_REPACK model buffer size = +([\d.]+)", log.text())
        planned = sum(info.size_bytes for info in repacked_tensors(file, cpu_features()))
        assert (said is not None) is expected
        assert planned / MIB == pytest.approx(float(said[1]) if said else 0, abs=0.02)


def test_features_decide_what_is_repacked(base):
    assert plan_memory(base, features=()).repacked_bytes == 0
    assert plan_memory(base, features=("AVX2",)).repacked_bytes == 0  # F32 stays as it is everywhere


def test_the_plan_is_within_5_percent_of_a_process(base_path, windowed_path, starter_base):
    for path in (base_path, windowed_path, starter_base):
        row = compare(path, {"mmap": True, "repack": True}, threads=1)
        assert row["plan_over_peak"] == pytest.approx(1, abs=0.05), row


def test_so_is_the_plan_of_a_published_shape_that_no_file_was_read_for(tmp_path):
    shape = find_shape("smollm2-135m")
    path = make_shape(tmp_path / "shape.gguf", shape, "q4_0")
    row = compare(path, {"mmap": False, "repack": True}, threads=1, table=table_of(shape, "q4_0"))
    assert row["plan_over_peak"] == pytest.approx(1, abs=0.05), row


def test_a_shape_may_have_another_files_tokenizer(base_path, base, tmp_path):
    n_vocab = len(base.file.get("tokenizer.ggml.tokens"))
    shape = dataclasses.replace(find_shape("smollm2-135m"), n_layers=1, n_vocab=n_vocab)
    path = make_shape(tmp_path / "shape.gguf", shape, "q8_0", base_path)
    with Session.of_files(path, {}, threads=1) as session, Session.of_files(base_path, {}, threads=1) as source:
        assert session.prompt_tokens("hello world") == source.prompt_tokens("hello world")
        assert session.ask("hello", max_tokens=2).n_tokens == 2
    with pytest.raises(InputError, match=f"has {n_vocab} tokens, the shape 49152"):
        make_shape(tmp_path / "other.gguf", find_shape("smollm2-135m"), "q8_0", base_path)
    assert not (tmp_path / "other.gguf").exists()


def test_a_run_at_the_planned_ceiling_ends_well_and_below_it_is_refused(starter_base):
    if not can_make_groups():
        pytest.skip("no control group of memory can be made here (root is needed)")
    row = ceiling(starter_base, threads=1)
    assert (row["exit_at_plan"], row["exit_at_60_percent"]) == (0, 4), row
    assert "does not fit into" in row["refusal"]


def test_a_budget_gives_up_what_was_not_asked_for_and_nothing_else(base):
    full = plan_memory(base, mmap=False)
    assert fit(base, full.total_bytes * 2).choices.n_ctx_tokens == 2048
    totals = []
    for budget in range(full.total_bytes, full.total_bytes // 2, -(MIB // 4)):
        try:
            plan = fit(base, budget)
        except DoesNotFitError as error:
            least = error
            break
        assert plan.total_bytes <= budget
        least_budget = budget
        totals.append((plan.choices.n_ctx_tokens, plan.choices.kv_type))
    assert totals == sorted(totals, key=lambda row: -row[0])
    assert totals[-1][0] == 512
    assert re.search(r"at least [\d.]+ MiB would do", str(least))
    assert "process" in str(least)
    with pytest.raises(DoesNotFitError, match="a context of 512 tokens fits"):
        fit(base, least_budget, n_ctx_tokens=8192)
    assert fit(base, full.total_bytes * 2, n_ctx_tokens=4096, kv_type="f16", mmap=True).choices.n_ctx_tokens == 4096


def test_adapters_count_within_their_budget(base):
    one = plan_session(base, {"adapter_budget_bytes": 5 * MIB}, [4 * MIB, 4 * MIB])
    both = plan_session(base, {}, [4 * MIB, 4 * MIB])
    none = plan_session(base, {"adapter_budget_bytes": 0}, [4 * MIB])
    assert none.adapters_bytes == 0 < one.adapters_bytes < both.adapters_bytes
    assert both.adapters_bytes >= 8 * MIB


def test_the_plan_of_everything_at_once_is_within_5_percent_of_a_process(starter_base):
    """An adapter, prefixes kept up to their budget, answers at once in a second context."""
    row = compare_full(starter_base, rank=16, threads=1)
    assert row["plan_over_peak"] == pytest.approx(1, abs=0.05), row


def test_a_session_does_what_was_planned(base_path, base):
    least = fit(base, plan_memory(base).total_bytes - MIB)
    with Session.of_files(base_path, {}, threads=1, ram_bytes=least.total_bytes) as session:
        assert session.plan.total_bytes <= least.total_bytes
        assert session.n_ctx_tokens == session.context.n_ctx_tokens == session.plan.choices.n_ctx_tokens
        assert session.ask("hello", max_tokens=3).n_tokens > 0


@pytest.mark.parametrize(
    ("text", "size"), [("1G", 1 << 30), ("900M", 900 << 20), ("1.5GiB", 3 << 29), ("7k", 7168), ("123", 123)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1G", "1T", "G", "1 G B", "1e9", "0.0M"])
def test_what_is_no_size(text):
    with pytest.raises(InputError, match="not a size of memory"):
        parse_bytes(text)


def test_limits_of_control_groups(tmp_path):
    infinite = resource.RLIM_INFINITY
    if any(resource.getrlimit(kind)[0] != infinite for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)):
        pytest.skip("this shell has limits of its own")
    own = tmp_path / "own"
    own.write_text("0::/a/b\n4:cpu,memory:/c\n")
    assert memory_limit_bytes(tmp_path, own) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit_bytes(tmp_path, own) is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_limit_bytes(tmp_path, own) is None
    (tmp_path / "memory.max").write_text("1048576\n")
    assert memory_limit_bytes(tmp_path, own) == 1 << 20
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "memory.max").write_text("65536\n")
    assert memory_limit_bytes(tmp_path, own) == 65536
    (tmp_path / "memory" / "c").mkdir()
    (tmp_path / "memory" / "c" / "memory.limit_in_bytes").write_text("4096\n")
    assert memory_limit_bytes(tmp_path, own) == 4096


def test_run_with_ram(base_path, tmp_path):
    adapter = NewAdapter("math", tiny_adapter(tmp_path / "a.gguf", base_path))
    build_pack(tmp_path / "pack", base=base_path, adapters=[adapter], default_adapter="math")

    def run(*arguments):
        command = [*COMMAND, "run", "--pack", str(tmp_path / "pack"), "--threads", "1", "--json", *arguments, "hello"]
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=False)

    assert run("--ram", "1G", "--max-tokens", "3").returncode == 0
    refused = run("--ram", "20M")
    assert refused.returncode == 4
    assert json.loads(refused.stdout)["error"]["kind"] == "DoesNotFitError"
    assert run("--ram", "much").returncode == 2
