"""Architectures without a row, mixtures of experts among them: each is tried, runs and swaps; its memory is planned."""

import json
import os
import re

import pytest
from build_archs import ARCHS, MOES, N_EMBD, N_EXPERTS, N_FF, arch_adapter, arch_base, parts_of
from build_gguf import write_gguf
from build_other import other_base
from click.testing import CliRunner
from gguf import GGUFValueType
from slm_edge.devices.catalogue.workload import Workload
from slm_edge.edge.cli.main import cli
from slm_edge.edge.errors import InputError, UnsupportedError
from slm_edge.edge.gguf.adapter import check_adapter
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.llama.binding import lib, quiet_logs
from slm_edge.edge.llama.context import Context
from slm_edge.edge.llama.model import Model, cpu_features, repacked_tensors
from slm_edge.edge.memory.plan import MIB, ContextSize
from slm_edge.edge.session.session import Session
from slm_edge.export.lora.lora import export_lora

PROMPT = "the world and the rest of it, again and again. " * 8


@pytest.fixture
def base(request, tmp_path):
    return arch_base(tmp_path / "base.gguf", request.param)


@pytest.mark.parametrize("base", ARCHS, indirect=True)
def test_it_is_tried_runs_and_swaps(base):
    info = BaseInfo.open(base)
    experts = f" with {N_EXPERTS} experts" if info.architecture in MOES else ""
    assert info.unproved[0] == f"the architecture {info.architecture}{experts}"
    two = {name: (arch_adapter(base.with_name(f"{name}.gguf"), base, seed=i), None) for i, name in enumerate("ab")}
    with Session.of_files(base, two, threads=1) as session:
        answers = [session.use(name).ask(PROMPT, max_tokens=8) for name in ("a", "b", None, "a", None)]
    assert [answers[i].token_ids for i in (3, 4)] == [answers[i].token_ids for i in (0, 2)]
    assert answers[3].n_kept_tokens > 100
    assert len({tuple(answer.token_ids) for answer in answers[:3]}) == 3


@pytest.mark.parametrize("base", ARCHS, indirect=True)
def test_its_memory_is_what_llama_cpp_allocates(base):
    size = ContextSize.of(BaseInfo.open(base).file)
    kv_bytes, compute_bytes, _ = size.bytes(512, n_batch_tokens=128, n_threads=1)
    with Model.load(base) as model, quiet_logs() as log:
        assert size.cuttable == model.memory.cuttable
        Context(model, n_ctx_tokens=512, n_batch_tokens=128, threads=1).close()
    said = re.findall(r"KV buffer size = +([\d.]+)", log.text())
    assert kv_bytes / MIB == pytest.approx(sum(map(float, said)), abs=0.01)
    assert compute_bytes / MIB > 0.95 * float(re.findall(r"compute buffer size = +([\d.]+)", log.text())[0])


@pytest.mark.parametrize("base", MOES, indirect=True)
def test_of_experts_a_token_reads_its_share(base):
    file = BaseInfo.open(base).file
    blocks = {name: info.n_values for name, info in file.tensors.items() if name.startswith("blk.")}
    matrices = {name: n for name, n in blocks.items() if len(file.tensors[name].shape) > 1}
    experts = sum(n for name, n in matrices.items() if "_exps." in name)
    assert experts >= 2 * 3 * N_EMBD * N_FF * N_EXPERTS
    # Two of the four
    assert Workload.of_file(file).block_weights == sum(matrices.values()) - experts // 2


@pytest.mark.skipif("AVX2" not in cpu_features(), reason="which types are repacked is known by heart for AVX2 only")
@pytest.mark.parametrize("architecture", ["olmoe", "gpt-oss", "gemma4"])
def test_experts_are_repacked_and_tables_are_not(tmp_path, architecture):
    if architecture in ARCHS:
        made = arch_base(tmp_path / "base.gguf", architecture, n_layers=4)
    else:
        made = other_base(tmp_path, architecture)[1]
    params = lib().llama_model_quantize_default_params()
    params.ftype = params.token_embedding_type = params.output_tensor_type = 2
    with quiet_logs():
        assert lib().llama_model_quantize(os.fsencode(made), os.fsencode(tmp_path / "q4_0.gguf"), params) == 0
    file = GgufFile.open(tmp_path / "q4_0.gguf")
    with quiet_logs() as log, Model.load(file.path):
        pass
    planned = sum(info.size_bytes for info in repacked_tensors(file, cpu_features()))
    said = re.findall(r"CPU_REPACK model buffer size = +([\d.]+)", log.text())
    assert planned / MIB == pytest.approx(float(said[0]), abs=0.011)


@pytest.mark.parametrize("base", ["olmoe"], indirect=True)
def test_pairs_of_experts_are_checked(base, tmp_path):
    path, info = arch_adapter(tmp_path / "a.gguf", base), BaseInfo.open(base)
    assert "blk.1.ffn_down_exps.weight" in check_adapter(path, info).targets
    keys, tensors = parts_of(path)
    fewer = [(name, values[:2] if "ffn_up_exps.weight.lora_a" in name else values) for name, values in tensors]
    of_one = [(name, values[0] if "_exps" in name else values) for name, values in tensors]
    for wrong in (fewer, of_one):
        with pytest.raises(InputError, match=r"must be \[64, 4, 4\]"):
            check_adapter(write_gguf(tmp_path / "wrong.gguf", "olmoe", keys, wrong), info)


@pytest.mark.parametrize("base", ["qwen3moe"], indirect=True)
def test_a_pack_of_experts(base, tmp_path):
    runner = CliRunner()
    adapter = arch_adapter(tmp_path / "a.gguf", base)
    options = ["pack", "build", "-o", tmp_path / "pack", "--base", base, "--adapter", f"math={adapter}"]
    result = runner.invoke(cli, [*map(str, options)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    shown = runner.invoke(cli, ["pack", "show", str(tmp_path / "pack")], catch_exceptions=False).output
    assert f"the architecture qwen3moe with {N_EXPERTS} experts" in shown
    run = ["run", "--pack", str(tmp_path / "pack"), "--adapter", "math", "--max-tokens", "4", "--json", "hello"]
    assert json.loads(runner.invoke(cli, run, catch_exceptions=False).stdout)["n_tokens"] > 0
    with pytest.raises(UnsupportedError, match="a row would say which matrix is which"):
        export_lora(tmp_path, base, tmp_path / "out.gguf")


@pytest.mark.parametrize("base", ["olmoe"], indirect=True)
def test_more_experts_used_than_there_are_is_refused(base, tmp_path):
    keys, tensors = parts_of(base)
    keys["olmoe.expert_used_count"] = (9, GGUFValueType.UINT32)
    with pytest.raises(InputError, match="expert_used_count is more than its expert_count, 4"):
        BaseInfo.open(write_gguf(tmp_path / "wrong.gguf", "olmoe", keys, tensors))
