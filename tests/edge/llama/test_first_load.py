"""A file with what was not tried here is loaded in a child process first; what kills that is an error message."""

import json
import subprocess
import sys

import numpy as np
import pytest
from build_gguf import tiny_base
from gguf import GGUFValueType as Kind
from slm_edge.edge.errors import DamagedError, EngineError
from slm_edge.edge.files.cache import first_load_path
from slm_edge.edge.files.read import sha256_file
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.llama import first_load
from slm_edge.edge.llama.first_load import ensure_loads, try_first_load
from slm_edge.edge.session.session import Session

UNKNOWN_KEY = {"llama.made_up": (1, Kind.UINT32)}


def test_a_sound_file_is_tried_once(tmp_path, monkeypatch):
    base = tiny_base(tmp_path / "b.gguf", keys=UNKNOWN_KEY)
    with Session.of_files(base, {}, threads=1) as session:
        assert session.ask("hello", max_tokens=2).n_tokens
    record = first_load_path(sha256_file(base))
    assert json.loads(record.read_text())["engine"]

    def not_again(*_, **__):
        raise AssertionError("it was tried again")

    monkeypatch.setattr(subprocess, "run", not_again)
    ensure_loads(BaseInfo.open(base))
    # Another llama.cpp may die of it.
    record.write_text(json.dumps({"engine": "0.0 other"}))
    with pytest.raises(AssertionError, match="again"):
        ensure_loads(BaseInfo.open(base))


def test_a_proved_file_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(first_load, "try_first_load", None)
    ensure_loads(BaseInfo.open(tiny_base(tmp_path / "b.gguf")))


@pytest.mark.parametrize(
    "keys",
    [
        {"llama.rope.scaling.type": ("nope", Kind.STRING)},
        {"tokenizer.ggml.pre": ("whitespace", Kind.STRING)},
        {"llama.expert_used_count": (2, Kind.UINT32)},
        {"llama.attention.value_length": (8, Kind.UINT32), "llama.attention.key_length": (16, Kind.UINT32)},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_what_ends_llama_cpp_or_is_refused_by_it_is_an_error(keys, tmp_path):
    """Files that `check_base` refuses, to see what the child does with them."""
    base = tiny_base(tmp_path / "b.gguf", keys=keys)
    with pytest.raises((DamagedError, EngineError)) as caught:
        try_first_load(base, why=("made up",))
    if isinstance(caught.value, DamagedError):
        assert "SIGABRT" in str(caught.value) and "not tried before: made up" in caught.value.problems
    assert not first_load_path(sha256_file(base)).exists()


def test_a_file_that_gives_no_numbers_is_an_error(tmp_path):
    base = tiny_base(tmp_path / "b.gguf")
    with base.open("r+b") as file:
        info = GgufFile.open(base).tensors["blk.0.attn_q.weight"]
        file.seek(info.offset_bytes)
        file.write(np.full(100, np.nan, np.float32).tobytes())
    with pytest.raises(DamagedError, match="no number"):
        try_first_load(base)


def test_a_child_that_does_not_end_is_ended(tmp_path):
    with pytest.raises(DamagedError, match="does not end"):
        try_first_load(tiny_base(tmp_path / "b.gguf"), timeout_s=0.01)


def test_the_exit_code_says_damaged(slm_edge, tmp_path, monkeypatch):
    """On the command line: exit code 5, the reason, and no traceback."""
    from slm_edge.edge.pack.write import build_pack

    base = tiny_base(tmp_path / "b.gguf", keys=UNKNOWN_KEY)
    build_pack(tmp_path / "pack", base=base, adapters=[])
    real = subprocess.run

    def dies(command, **options):
        return real([sys.executable, "-c", "import os; os.abort()"], **options)

    monkeypatch.setattr(first_load.subprocess, "run", dies)
    code, _, err = slm_edge("run", "--pack", tmp_path / "pack", "hello")
    assert code == 5 and "SIGABRT" in err and "llama.made_up" in err
