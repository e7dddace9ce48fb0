"""What may happen to a device: long use, files changed under our feet, two at once. Sudden death: test_kills.py."""

import os

import pytest
from build_gguf import tiny_adapter, tiny_base
from build_other import other_base
from build_soak import soak
from slm_edge.edge.errors import DamagedError, SlmEdgeError
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.session.session import Session
from slm_edge.edge.system.machine import CAN_LET_GO

SYSTEM = "Answer as the keeper of the light house would, in the words of the sea. " * 3


@pytest.mark.parametrize("both_layouts", [False, True] if CAN_LET_GO else [False])
def test_mixed_swaps_and_requests_stay_right_and_do_not_grow(tmp_path, both_layouts):
    # The long form: cd tests && python build_soak.py 10000
    # Allocators settle over the first hundreds of turns. Adapters or contexts that are not freed would be far more:
    # each turn loads or makes one of 100 KiB and more.
    # Two layouts have larger ones.
    assert soak(tmp_path, 300, both_layouts=both_layouts) < (24 if both_layouts else 8) << 20


def test_windows_stay_right_too(tmp_path):
    assert soak(tmp_path, 200, architecture="gemma3") < 16 << 20


@pytest.mark.parametrize("architecture", ["lfm2", "granitehybrid"])
def test_so_do_states(tmp_path, architecture):
    assert soak(tmp_path, 150, base=other_base(tmp_path, architecture)[1]) < 16 << 20


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
