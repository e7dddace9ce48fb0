"""What a mapped base leaves in memory where weights are copied into a faster layout; Ctrl-C while it is loaded."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from slm_edge.benchmarks.made.random_base import make_shape
from slm_edge.devices.catalogue.shapes import find_shape
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.llama.mapped_pages import let_go
from slm_edge.edge.llama.model import copied_spans, cpu_features, repacked_tensors
from slm_edge.edge.memory.fit import fit, maps_well, plan_session
from slm_edge.edge.memory.plan import plan_memory
from slm_edge.edge.session.session import Session
from slm_edge.edge.system.machine import CAN_LET_GO

pytestmark = [
    pytest.mark.skipif(not CAN_LET_GO, reason="pages are let go on Linux alone"),
    pytest.mark.skipif(not cpu_features() & {"AVX2", "DOTPROD"}, reason="this CPU has no faster layout of Q4_0"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Random Q4_0 weights in the shape of the starter's base, nearly all of which are repacked."""
    return make_shape(tmp_path_factory.mktemp("shape") / "base q4_0.gguf", find_shape("smollm2-135m"), "q4_0")


CHILD = """
import json, re, sys
from pathlib import Path
from slm_edge.edge.llama.context import Context
from slm_edge.edge.llama.model import Model
path, spans = json.loads(sys.argv[1])
with Model.load(path, copied=spans) as model:
    status = Path("/proc/self/status").read_text()
    with Context(model, n_ctx_tokens=256, threads=1) as context:
        context.decode([1, 2, 3], 0)
        logits = context.logits()
    print(json.dumps({
        "file_bytes": 1024 * int(re.search(r"RssFile:\\s+(\\d+)", status)[1]),
        "logits": [float(value) for value in logits[:64]],
    }))
"""


def loaded(path, spans):
    run = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([str(path), spans])], capture_output=True, encoding="utf-8"
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_what_was_copied_from_leaves_the_process_and_nothing_else_does(base):
    spans = copied_spans(BaseInfo.open(base))
    copied_bytes = sum(end - start for start, end in spans)
    assert copied_bytes > 0.5 * base.stat().st_size
    kept, gone = loaded(base, []), loaded(base, spans)
    assert kept["file_bytes"] - gone["file_bytes"] == pytest.approx(copied_bytes, rel=0.03)
    assert gone["logits"] == kept["logits"]


def test_the_spans_are_those_of_the_copied_tensors(base):
    info = BaseInfo.open(base)
    inside = set()
    for start, end in copied_spans(info):
        inside |= {name for name, row in info.file.tensors.items() if start <= row.offset_bytes < end}
    copied = {row.name for row in repacked_tensors(info.file, cpu_features())}
    assert inside == copied - {"token_embd.weight"}


def test_pages_that_were_let_go_come_back(tmp_path):
    import mmap

    path = tmp_path / "a file"
    path.write_bytes(bytes(range(256)) * 4096)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        whole = mapped[:]
        status = Path("/proc/self/smaps")

        def resident_kib():
            return int(re.search(rf"{re.escape(str(path))}\nSize:.*?\nRss:\s+(\d+)", status.read_text(), re.DOTALL)[1])

        before = resident_kib()
        # Half a page at either end belongs to others as well
        assert let_go(path, [(100, len(whole) - 100)]) == len(whole) - 2 * mmap.PAGESIZE
        assert (before, resident_kib()) == (1024, 2 * mmap.PAGESIZE // 1024)
        assert mapped[:] == whole
    assert let_go(path, [(0, len(whole))]) == 0


# In a process of its own: the handler remembers for good that it was called.
INTERRUPTED = """
import json, signal, sys
from slm_edge.edge.llama.binding import interrupt
from slm_edge.edge.llama.model import Model
path, spans = json.loads(sys.argv[1])
Model.load(path, copied=spans).close()
signal.signal(signal.SIGALRM, interrupt)
n_ended = 0
for delay_s in (0.005, 0.01, 0.02, 0.03, 0.05):
    signal.setitimer(signal.ITIMER_REAL, delay_s)
    try:
        Model.load(path, copied=spans).close()
    except KeyboardInterrupt:
        n_ended += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
# Nothing of it is left for the next one
Model.load(path, copied=spans).close()
print(n_ended)
"""


def test_ctrl_c_while_a_base_is_loaded_ends_it(base):
    given = json.dumps([str(base), copied_spans(BaseInfo.open(base))])
    run = subprocess.run([sys.executable, "-c", INTERRUPTED, given], capture_output=True, encoding="utf-8")
    assert (run.returncode, run.stderr) == (0, "")
    assert int(run.stdout) > 0


def test_a_base_is_mapped_where_the_page_cache_has_room_for_all_of_it(base):
    info = BaseInfo.open(base)
    mapped, read = plan_memory(info, mmap=True), plan_memory(info, mmap=False)
    assert mapped.total_bytes == pytest.approx(read.total_bytes, rel=0.02)
    assert mapped.passing_bytes > 0 == read.passing_bytes
    enough_bytes = mapped.total_bytes + mapped.passing_bytes
    assert maps_well(mapped, enough_bytes)
    assert not maps_well(mapped, enough_bytes - 1)
    asked = {"n_ctx_tokens": 2048, "kv_type": "f16", "repack": True, "n_batch_tokens": 256}
    assert fit(info, enough_bytes, **asked).choices.mmap
    assert not fit(info, enough_bytes - 1, **asked).choices.mmap
    # Where pages cannot be let go, copies would stand beside them
    stays = plan_memory(info, mmap=True, lets_go=False)
    assert stays.total_bytes > 1.2 * mapped.total_bytes
    assert not maps_well(stays, 1 << 40)
    # Nothing to copy: mapped however little memory there is
    assert maps_well(plan_memory(info, mmap=True, features=()), 0)


def test_a_session_maps_it_and_says_so(base):
    with Session.of_files(base, {}, threads=1) as session:
        assert session.plan.choices.mmap
        assert session.plan.total_bytes == plan_session(session.base, {"threads": 1}).total_bytes
