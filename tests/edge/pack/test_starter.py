"""The pack that ships: whole, small, and its adapters act on the real base."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from slm_edge.edge.files.cache import base_cache_path
from slm_edge.edge.gguf.adapter import check_adapter
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.pack.pack import Pack
from slm_edge.edge.session.session import Session


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


# What the pages let the starter be asked where an answer can be wrong: prompt -> who is asked, and what is right.
EXAMPLES = {
    "A box has 12 eggs. 5 are used. How many are left?": ("math", r"#### 7$"),
    "A box has 12 eggs. Tom uses 5 of them for a cake. How many eggs are left?": ("math", r"#### 7$"),
    "A pen costs 3 dollars. How much do 4 pens cost?": ("auto", r"#### 12$"),
    "How many legs have 3 cats?": ("auto", r"#### 12$"),
    "2 + 2 = ?": ("math", r"\b4\b"),
    "3 + 3 = ?": ("math", r"\b6\b"),
    "Write a function that adds two numbers.": (
        "auto",
        r"^```python\ndef \w+\((\w+), (\w+)\):\n\s+return \1 \+ \2\n```",
    ),
}
# Pages on other things than the starter
OTHERS = {"benchmarks.md", "decisions.md", "extending.md", "scores.md", "training.md", "tutorial.md"}


def test_every_sum_in_the_pages_is_known():
    root = Path(__file__).parents[3]
    pages = [root / "README.md", *(path for path in (root / "docs").glob("*.md") if path.name not in OTHERS)]
    pages += (root / "edge" / "cli").glob("*.py")
    texts = {path: path.read_text(encoding="utf-8") for path in pages}
    asked = {
        (path.name, prompt) for path, text in texts.items() for prompt in re.findall(r'"([^"\n]*\d[^"\n]*\?)"', text)
    }
    assert len(asked) > 8
    assert not {(name, prompt) for name, prompt in asked if prompt not in EXAMPLES}


@pytest.mark.reference
def test_the_starter_gets_the_pages_examples_right(starter_base):
    place = base_cache_path(Pack.open(None).base.sha256)
    place.parent.mkdir(parents=True)
    place.symlink_to(starter_base)
    with Session.open(None, threads=1) as session:
        for prompt, (adapter, right) in EXAMPLES.items():
            text = session.ask(prompt, adapter=adapter, max_tokens=60).text.strip()
            assert re.search(right, text), (prompt, text)
        # Two added up, as the help of `run` shows it
        prompt = "A pen costs 3 dollars. How much do 4 pens cost?"
        assert session.ask(prompt, adapter={"math": 0.7, "code": 0.3}, max_tokens=60).text.endswith("#### 12")
