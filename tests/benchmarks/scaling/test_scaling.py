"""The commands that measure how cost grows, short, on a tiny base."""

import json

import pytest
from build_gguf import tiny_base
from click.testing import CliRunner
from slm_edge.benchmarks.scaling.__main__ import main


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("scaling") / "base.gguf")


def run(*arguments):
    done = CliRunner().invoke(main, [str(argument) for argument in (*arguments, "--runs", 2)], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout.splitlines()[-1])["points"]


def test_sizes(base):
    (point,) = run("size", base, "--prompt", 32, "--decode", 4)
    assert point["file_bytes"] == base.stat().st_size
    assert point["token_ms"]["min"] > 0 and point["per_unit"] == {"prompt_ms": 1.0, "token_ms": 1.0}


def test_depths(base):
    short, long = run("context", base, "--depth", 256, "--depth", 640, "--decode", 2)
    assert (short["depth_tokens"], long["depth_tokens"]) == (256, 640)
    # The longer prompt's time holds the shorter one's.
    assert long["prompt_ms"]["min"] > short["prompt_ms"]["min"] > 0


def test_adapters(base):
    one, five = run("adapters", base, "--count", 1, "--count", 5, "--swaps", 2)
    assert (one["adapters"], five["adapters"]) == (1, 5)
    assert min(one["swap_ms"]["min"], five["known_swap_ms"]["min"], five["open_ms"]["min"]) > 0


def test_clients(base):
    one, three = run("clients", base, "--clients", 1, "--clients", 3)
    assert (one["clients"], three["clients"]) == (1, 3)
    assert min(one["tokens_per_s"]["min"], three["tokens_per_s"]["min"]) > 0
