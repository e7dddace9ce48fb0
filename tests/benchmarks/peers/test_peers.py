"""The command that measures ours beside others, short: ours and `llama_cpp.Llama` on a tiny base, with an adapter."""

import json

import pytest
from build_gguf import tiny_adapter, tiny_base
from click.testing import CliRunner
from slm_edge.benchmarks.peers import __main__ as peers

SHORT = ["--runs", "2", "--decode", "8", "--skip", "prompt 512", "--skip", "prompt 1200", "--skip", "together 8"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")
    base = tiny_base(folder / "base.gguf")
    tiny_adapter(folder / "math.gguf", base)
    return folder


def run(files, *options):
    arguments = [files / "base.gguf", *options, *SHORT, "--json"]
    done = CliRunner().invoke(peers.main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout.splitlines()[-1])


def test_each_contender_is_measured_in_turns(files):
    found = run(files, "--lora", files / "math.gguf", "--only", "ours", "--only", "llama-cpp-python")
    both = {"ours", "llama-cpp-python"}
    assert {*found["contenders"]} == both
    for what in ("prompt 128", "prompt 128, adapter", "swap", "together 4, new", "together 4, repeated"):
        by_name = found["results"][what]
        assert {*by_name} == both
        assert all(row["figure"]["min"] > 0 for row in by_name.values())
        assert by_name["llama-cpp-python"]["ratio"]["median"] > 0
    assert all(facts["peak_bytes"] > 0 for facts in found["contenders"].values())


def test_who_is_not_installed_is_named_and_the_others_go_on(files, tmp_path):
    found = run(files, "--only", "ours", "--only", "openvino", "--python", tmp_path / "none")
    assert {*found["contenders"]} == {"ours"}
    assert "make peers" in found["unable"]["openvino"]
