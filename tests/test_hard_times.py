"""What may happen to a device: long use, files changed under our feet, two at once, death at any moment."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from build_gguf import tiny_adapter, tiny_base
from build_peft import pair, written_adapter
from build_soak import soak
from slm_edge.edge.adapter import check_adapter
from slm_edge.edge.base_info import BaseInfo
from slm_edge.edge.card import TaskCard
from slm_edge.edge.errors import DamagedError, SlmEdgeError
from slm_edge.edge.pack import Pack, verify_folder
from slm_edge.edge.prefix import Section, chunks_of
from slm_edge.edge.prefix_disk import PrefixDisk
from slm_edge.edge.session import Session

SYSTEM = "Answer as the keeper of the light house would, in the words of the sea. " * 3
# The long form: SLM_EDGE_KILLS=200 pytest tests/test_hard_times.py; and python build_soak.py 10000
N_KILLS = int(os.environ.get("SLM_EDGE_KILLS", "6"))


def test_mixed_swaps_and_requests_stay_right_and_do_not_grow(tmp_path):
    # Allocators settle over the first hundreds of turns. Adapters or contexts that are not freed would be far more:
    # each turn loads or makes one of 100 KiB and more.
    assert soak(tmp_path, 300) < 8 << 20


@pytest.fixture
def made(tmp_path):
    base = tiny_base(tmp_path / "base.gguf")
    return base, {"a": (tiny_adapter(tmp_path / "a.gguf", base), TaskCard(task="a", system=SYSTEM))}


@pytest.mark.parametrize("change", ["truncate", "overwrite", "delete", "replace"])
def test_a_base_that_changes_under_our_feet(made, tmp_path, change):
    base, files = made
    with Session.of_files(base, files, threads=1) as session:
        first = session.use("a").ask("hello", max_tokens=5)
        if change == "truncate":
            os.truncate(base, base.stat().st_size // 2)
        elif change == "overwrite":
            with base.open("r+b") as stream:
                stream.write(b"GGUF")
            os.utime(base, ns=(1, 1))
        elif change == "delete":
            base.unlink()
        else:
            os.replace(tiny_base(tmp_path / "other.gguf", seed=9), base)
        if change in ("truncate", "overwrite"):
            with pytest.raises(DamagedError, match="while it was in use"):
                session.ask("hello", max_tokens=5)
        else:
            # We have the old file open: whatever stands at its place now is not ours.
            assert session.ask("hello", max_tokens=5).token_ids == first.token_ids
    if change in ("truncate", "delete"):
        with pytest.raises(SlmEdgeError):
            Session.of_files(base, files, threads=1)


def test_two_sessions_on_one_pack_and_one_prefix_cache(made, tmp_path):
    base, files = made
    options = {"threads": 1, "prefix_cache": tmp_path / "kv"}
    with Session.of_files(base, files, **options) as one, Session.of_files(base, files, **options) as two:
        for turn in range(3):
            answers = [session.use("a").ask("hello", max_tokens=5).token_ids for session in (one, two)]
            assert answers[0] == answers[1], turn
            one.use(None).ask("hello", max_tokens=2)
        assert one.prefixes.disk.fault is two.prefixes.disk.fault is None
    assert len(list((tmp_path / "kv").glob("*.kv"))) == 1


def killed_at_random(program, arguments, check, rng, longest_s):
    """Starts a program again and again, kills it at a random moment, and checks what it left."""
    for _ in range(N_KILLS):
        child = subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE)
        assert child.stdout.readline()
        time.sleep(float(rng.uniform(0, longest_s)))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        check()


WRITE_PREFIXES = """
import itertools, sys
from pathlib import Path
import numpy as np
from slm_edge.edge.prefix import Section, chunks_of
from slm_edge.edge.prefix_disk import PrefixDisk
from slm_edge.edge.prefix_store import Snapshot
disk = PrefixDisk(Path(sys.argv[1]), "d", cap_bytes=10_000_000)
print("ready", flush=True)
for i in itertools.count():
    tokens = list(range(i % 9, i % 9 + 40))
    disk.offer(Snapshot(tokens, chunks_of([Section(40)]), np.full(2_000_000, i % 9, np.uint8)))
    disk.flush()
"""


def test_kill_9_while_prefixes_are_written(tmp_path):
    def check():
        disk = PrefixDisk(tmp_path, "d", cap_bytes=10_000_000)
        for i in range(9):
            found = disk.load(list(range(i, i + 40)), chunks_of([Section(40)]))
            assert found is None or (found.blob.size == 2_000_000 and (found.blob == i).all())
        assert disk.fault is None

    killed_at_random(WRITE_PREFIXES, [tmp_path], check, np.random.default_rng(1), 0.15)


BUILD_PACK = """
import sys
from slm_edge.edge.cli import main
print("ready", flush=True)
sys.argv = ["slm-edge", "pack", "build", "-o", sys.argv[1], "--base", sys.argv[2], "--adapter", f"a={sys.argv[3]}"]
main()
"""


def test_kill_9_while_a_pack_is_built(made, tmp_path):
    base, files = made
    out = tmp_path / "pack"

    def check():
        if out.exists():
            verify_folder(out)
            with Session.open(Pack.open(out), threads=1) as session:
                session.use("a").ask("hello", max_tokens=1)
            os.rename(out, tmp_path / f"done-{time.monotonic_ns()}")

    killed_at_random(BUILD_PACK, [out, base, files["a"][0]], check, np.random.default_rng(2), 0.5)


EXPORT_LORA = """
import sys
from slm_edge.edge.cli import main
print("ready", flush=True)
sys.argv = ["slm-edge", "export", "lora", sys.argv[1], "--base", sys.argv[2], "-o", sys.argv[3]]
main()
"""


def test_kill_9_while_an_adapter_is_exported(made, tmp_path):
    base, _ = made
    tensors = pair("model.layers.0.self_attn.q_proj", 64, 64) | pair("model.layers.1.self_attn.q_proj", 64, 64)
    peft, out = written_adapter(tmp_path / "peft", tensors), tmp_path / "out.gguf"
    info = BaseInfo.open(base)

    def check():
        if out.exists():
            assert check_adapter(out, info).n_pairs == 2
            out.unlink()

    killed_at_random(EXPORT_LORA, [peft, base, out], check, np.random.default_rng(3), 0.5)
    done = subprocess.run(
        [sys.executable, "-c", EXPORT_LORA, peft, base, out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    check()
