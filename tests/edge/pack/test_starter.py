"""The pack that ships: whole, small, and its adapters act on the real base."""

import json
import subprocess
import sys

import pytest
from slm_edge.edge.files.cache import base_cache_path
from slm_edge.edge.gguf.adapter import check_adapter
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.pack.pack import Pack


def test_the_pack_is_whole_and_small():
    pack = Pack.open(None, verify=True)
    assert list(pack.adapters) == ["math", "code", "summarize"]
    assert sum(adapter.size_bytes for adapter in pack.adapters.values()) <= 20 << 20
    for name, adapter in pack.adapters.items():
        assert adapter.card.task == name
        assert adapter.card.licence
        record = json.loads((pack.folder / "training" / f"{name}.json").read_text())
        assert record["base"]["sha256"] == pack.base.sha256
        assert record["held_out_loss"]["adapter"] < record["held_out_loss"]["base"]


@pytest.mark.reference
def test_its_adapters_fit_the_real_base(starter_base):
    info = BaseInfo.open(starter_base)
    pack = Pack.open(None)
    assert info.fingerprint == pack.base.fingerprint
    for adapter in pack.adapters.values():
        assert check_adapter(adapter.path, info).n_pairs == 7 * info.n_layers


@pytest.mark.reference
def test_the_main_job(starter_base):
    """`slm-edge demo` on the real base: each adapter answers in its own form, the base alone otherwise."""
    place = base_cache_path(Pack.open(None).base.sha256)
    place.parent.mkdir(parents=True)
    place.symlink_to(starter_base)
    command = [sys.executable, "-m", "slm_edge.edge", "demo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)["answers"]
    by_adapter = {row["adapter"]: row["text"] for row in answers}
    assert "\n#### " in by_adapter["math"]
    assert by_adapter["code"].startswith("```python\ndef largest(")
    assert len(by_adapter["summarize"].split()) < 60
    assert "####" not in by_adapter[None]
