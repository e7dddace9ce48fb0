"""What fingers that come from Ollama and llama.cpp type, against a server that speaks the hub's protocol."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from build_gguf import tiny_adapter, tiny_base
from build_hub import serving
from slm_edge.edge.files.cache import blob_path
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.pack.pack import Pack, verify_folder
from slm_edge.edge.pack.write import NewAdapter, build_pack
from slm_edge.edge.store.store import Store

MODEL = "hf.co/org/tiny-GGUF:Q4_K_M"
SCORES = {"gsm8k": {"n": 100, "strict": {"value": 0.25, "low": 0.2, "high": 0.3, "base": 0.1}}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "tiny").mkdir()
    base = tiny_base(folder / "tiny" / "tiny-Q4_K_M.gguf")
    tiny_base(folder / "tiny" / "tiny-Q8_0.gguf", seed=5)
    tiny_adapter(folder / "style.gguf", base, seed=3, task="style")
    card = TaskCard(task="sums", description="adds | <b>numbers</b>", scores=SCORES, licence="MIT", data="none")
    build_pack(
        folder / "house",
        base=base,
        adapters=[NewAdapter("math", tiny_adapter(folder / "math.gguf", base), card)],
        copy_base=False,
        sources=[{"kind": "hub", "repo": "org/tiny-GGUF", "file": "tiny-Q4_K_M.gguf"}],
    )
    return folder


@pytest.fixture
def hub(made, tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "LLAMA_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HOME", str(tmp_path))
    repositories = {"org/tiny-GGUF": made / "tiny", "org/house": made / "house"}
    with serving(repositories, large="lfs", made=tmp_path / "made") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def typed(*words, **more):
    """A command line in a process of its own."""
    command = [sys.executable, "-m", "slm_edge.edge", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


def test_ollamas_day(hub, slm_edge):
    """run of a place on the hub, again offline, list, show, rm; ps is the server's."""
    assert slm_edge("ps")[0] == 0
    code, out, err = slm_edge("run", MODEL, "-n", 4, "-t", 1, "hi")
    assert code == 0 and out.strip(), err
    assert "is not here yet; it is fetched" in err
    hub.shutdown()
    code, again, err = slm_edge("run", MODEL, "-n", 4, "-t", 1, "hi")
    assert (code, again) == (0, out) and "fetched" not in err
    assert slm_edge("run", "-m", "hf:org/tiny-GGUF:Q4_K_M", "-p", "hi", "-n", 4, "-t", 1)[:2] == (0, out)
    code, out, _ = slm_edge("list")
    row = next(line for line in out.splitlines() if line.startswith(MODEL))
    assert "model" in row and "KiB" in row and "running" in row, "this process still uses it"
    code, out, _ = slm_edge("show", MODEL)
    assert code == 0 and "llama, 2 layers" in out and "from hf:org/tiny-GGUF:Q4_K_M at 0123456789ab" in out
    data = json.loads(slm_edge("show", MODEL, "--json")[1])
    assert data["n_ctx_train_tokens"] == 2048 and data["origin"]["commit"]
    assert slm_edge("rm", MODEL)[0] == 2, "it is in use"
    done = typed("rm", MODEL)
    assert done.returncode == 2 and "is in use" in done.stderr


def test_pull_list_rm_in_processes_of_their_own(hub, made):
    done = typed("pull", MODEL)
    assert done.returncode == 0 and f'slm-edge run {MODEL} "Hello"' in done.stdout
    assert "as it was" in typed("pull", MODEL).stdout
    first = typed("run", MODEL, "hi", "-n", "4", "-t", "1")
    assert first.returncode == 0 and first.stdout
    items = json.loads(typed("list", "--json").stdout)["items"]
    row = next(item for item in items if item["name"] == MODEL)
    assert row["size_bytes"] == (made / "tiny" / "tiny-Q4_K_M.gguf").stat().st_size
    assert row["last_used"] and not row["running"]
    assert {item["name"] for item in items if item["kind"] == "adapter"} == {
        "starter/math",
        "starter/code",
        "starter/summarize",
    }
    done = typed("rm", "hf:org/tiny-GGUF:Q4_K_M")
    assert done.returncode == 0 and "KiB freed" in done.stdout
    assert not list((Store().folder / "blobs" / "sha256").iterdir())
    assert typed("rm", MODEL).returncode == 2


def test_ctrl_c_keeps_what_came(hub, made):
    hub.state.stall = "tiny-Q8_0.gguf"
    command = [sys.executable, "-m", "slm_edge.edge", "pull", "hf:org/tiny-GGUF:Q8_0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert hub.stalled.wait(60)
        downloads = Store().folder / "state" / "downloads"
        half = (made / "tiny" / "tiny-Q8_0.gguf").stat().st_size // 2
        while not any(path.stat().st_size == half for path in downloads.glob("*.part")):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert "stopped" in process.stderr.read()
    assert process.returncode == 130
    assert typed("pull", "hf:org/tiny-GGUF:Q8_0").returncode == 0
    assert hub.ranges["tiny-Q8_0.gguf"] == [None, f"bytes={half}-"]


def test_a_pack_of_the_hub_everywhere_where_a_pack_is_taken(hub, slm_edge, made, tmp_path):
    code, out, err = slm_edge("run", "hf:org/house", "-n", 4, "-t", 1, "hi")
    assert code == 0, err
    for words in (
        ("run", "--pack", "house", "hi", "-n", 4, "-t", 1),
        ("run", "house", "-p", "hi", "-n", 4, "-t", 1),
        ("run", "-m", "hf.co/org/house", "hi", "-n", 4, "-t", 1),
    ):
        assert slm_edge(*words)[:2] == (0, out)
    for words in (
        ("pack", "show", "house"),
        ("pack", "verify", "hf:org/house"),
        ("show", "hf:org/house"),
        ("verify", "house"),
        ("devices", "fit", "--pack", "house", "--device", "raspberry-pi-5-4gb"),
        ("demo", "--pack", "house", "--threads", 1),
    ):
        code, _, err = slm_edge(*words)
        assert code in (0, 1) and not err.startswith("slm-edge:"), err
    folder = Store().find("house")[1]
    code, _, err = slm_edge("pack", "remove", folder, "math")
    assert code == 2 and "change a copy" in err
    _, out, _ = slm_edge("show", "house")
    assert "score math on gsm8k: 0.25 strict, the base alone 0.1" in out
    assert "signature: not signed" in out and "from hf:org/house at 0123456789ab" in out
    (tmp_path / "text.txt").write_text("some text " * 40)
    words = ("bench", "perplexity", tmp_path / "text.txt", "--pack", "hf:org/house", "--ctx", 16, "--limit", 1)
    assert slm_edge(*words, "--out", tmp_path / "out")[0] == 0


def test_the_words_of_others_say_what_to_type(slm_edge):
    for word, hint in {
        "ls": "slm-edge list",
        "models": "slm-edge list",
        "inspect": "slm-edge show NAME",
        "remove": "slm-edge rm NAME",
        "download": "slm-edge pull REF",
    }.items():
        code, _, err = slm_edge(word)
        assert code == 2 and hint in err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("pull", "llama3.2"), "slm-edge pull hf.co/OWNER/REPO fetches a model of the hub"),
        (("run", "qwen2.5:0.5b", "hi"), "hf.co/OWNER/REPO one of the hub"),
        (("pull", "org/tiny-GGUF"), "did you mean hf.co/org/tiny-GGUF?"),
        (("run", "org/tiny-GGUF", "hi"), "did you mean hf.co/org/tiny-GGUF?"),
        (("pull", "hf:org/none"), "check the spelling"),
        (("pull", "http://example.org/pack.json"), "slm-edge pull --insecure"),
        (("pull", "https://example.org/model.gguf"), "download it, then slm-edge run FILE.gguf"),
        (("run", "-hf", "org/tiny-GGUF:Q4_K_M", "-p", "hi"), "type slm-edge run hf.co/org/tiny-GGUF:Q4_K_M"),
        (("pull", "ollama:llama3.2"), "hf.co/OWNER/REPO"),
        (("show", "nothing-here"), "slm-edge list shows what there is"),
        (("rm", "starter/math"), "it came with slm-edge"),
        (("verify", "nothing-here"), "is no GGUF file"),
    ],
)
def test_what_does_not_work_says_what_to_type(hub, slm_edge, words, hint):
    code, out, err = slm_edge(*words)
    assert code in (2, 8) and hint in err and out == ""


def test_a_file_is_run_and_not_pulled(hub, slm_edge, made):
    file = made / "tiny" / "tiny-Q8_0.gguf"
    assert slm_edge("run", file, "hi", "-n", 2, "-t", 1)[0] == 0
    code, _, err = slm_edge("pull", file)
    assert code == 2 and "there is nothing to fetch" in err and f'slm-edge run {file} "Hello"' in err
    assert "llama, 2 layers" in slm_edge("show", file)[1]


def test_a_base_stays_while_a_pack_needs_it(hub, slm_edge, made, tmp_path):
    local = tmp_path / "local"
    shutil.copytree(made / "house", local)
    assert slm_edge("pull", local)[0] == 0
    sha256 = Pack.open(local).base.sha256
    items = json.loads(slm_edge("list", "--json")[1])["items"]
    row = next(item for item in items if item["kind"] == "base")
    assert row["used_by"][0] == str(local) and row["name"] == "tiny-Q4_K_M.gguf"
    done = typed("prune")
    assert done.stdout == "0 B freed\n", done.stderr
    done = typed("rm", "tiny-Q4_K_M.gguf")
    assert done.returncode == 2 and str(local) in done.stderr
    shutil.rmtree(local)
    for key in (Store().folder / "state" / "used").iterdir():
        shutil.rmtree(key)
    done = typed("prune", "--dry-run")
    assert sha256[:12] in done.stdout and blob_path(sha256).is_file()
    assert "freed" in typed("prune").stdout and not blob_path(sha256).exists()


def test_verify_finds_a_flipped_bit_offline_and_pull_mends_it(hub, made):
    assert typed("pull", "hf:org/house").returncode == 0
    assert typed("pull", MODEL).returncode == 0
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = typed("verify", env=offline)
    assert done.returncode == 0 and "house" in done.stdout and "damaged" not in done.stdout
    sha256 = Pack.open(Store().find("house")[1]).base.sha256
    blob = blob_path(sha256)
    blob.chmod(0o644)
    with blob.open("r+b") as stream:
        stream.seek(blob.stat().st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, 1)
        stream.write(bytes([byte ^ 1]))
    done = typed("verify", "--json", env=offline)
    assert done.returncode == 5
    bad = [item for item in json.loads(done.stdout)["items"] if item["problems"]]
    assert [item["name"] for item in bad] == [MODEL, "house"]
    assert typed("pull", MODEL).returncode == 0
    assert typed("verify").returncode == 0


def test_verify_reads_what_is_linked_from_another_programs_cache_too(hub, made, tmp_path):
    """Such a file has two links, and none of them in a pack."""
    base = made / "tiny" / "tiny-Q4_K_M.gguf"
    sha256 = Pack.open(made / "house").base.sha256
    theirs = tmp_path / "hf" / "hub" / "models--x--y" / "blobs" / sha256
    theirs.parent.mkdir(parents=True)
    shutil.copy(base, theirs)
    assert typed("pull", made / "house").returncode == 0
    theirs.write_bytes(b"changed by its owner")
    if blob_path(sha256).stat().st_nlink > 1:
        done = typed("verify", "--json")
        bad = [item["digest"] for item in json.loads(done.stdout)["items"] if item["problems"]]
        assert (done.returncode, bad) == (5, [sha256])


def test_a_user_without_a_home():
    """Nothing but what is in the store needs one."""
    names = ("HOME", "SLM_EDGE_CACHE", "SLM_EDGE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    code = (
        "import os, pwd, sys\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody\n"
        "from slm_edge.edge.cli.source import looks_like_model\n"
        "from slm_edge.edge.pack.pack import Pack\n"
        "print(looks_like_model('hi'), Pack.open(None).origin)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "False None\n", done.stderr


@pytest.mark.parametrize("with_base", [False, True])
def test_push_to_a_folder_that_any_server_serves(hub, slm_edge, made, tmp_path, with_base):
    words = ["push", made / "house", tmp_path / "www"] + ["--with-base"] * with_base
    assert slm_edge("pull", made / "house")[0] == 0
    code, _, err = slm_edge(*words)
    assert code == 0, err
    card = (tmp_path / "www" / "README.md").read_text()
    assert "| math | gsm8k | 100 | strict | 0.25 (0.2 to 0.3) | 0.1 |" in card
    assert "license: mit" in card and "adds \\| \\<b\\>numbers" in card
    verify_folder(tmp_path / "www")
    assert (tmp_path / "www" / "tiny-Q4_K_M.gguf").exists() == with_base
    code, _, err = slm_edge(*words)
    assert code == 2 and "exists already" in err
    assert slm_edge(*words, "--force")[0] == 0
    with serving({"x/y": tmp_path / "www"}) as server:
        assert slm_edge("pull", server.file_url("x/y", "pack.json"), "--as", "mine")[0] == 0
    assert Pack.open(Store().find("mine")[1], verify=True).carries_base == with_base
    # The user's own pack and what was pushed are apart.
    assert (tmp_path / "www" / "adapters" / "math.gguf").stat().st_nlink == 1


@pytest.mark.parametrize("with_base", [False, True])
def test_push_to_the_hub_and_back(hub, made, tmp_path, with_base):
    hub.token = "hf_secret"
    environment = {**os.environ, "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_XET": "1"}
    assert typed("pull", made / "house", env=environment).returncode == 0
    assert "without a token" in typed("push", made / "house", "hf:me/my-house").stderr
    done = typed("push", made / "house", "hf:me/my-house", *["--with-base"] * with_base, env=environment)
    assert done.returncode == 0, done.stderr
    assert "slm-edge pull hf:me/my-house" in done.stdout
    there = tmp_path / "made" / "me" / "my-house"
    names = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    assert names == {"README.md", "pack.json", "adapters/math.gguf", "adapters/math.json"} | (
        {"tiny-Q4_K_M.gguf"} if with_base else set()
    )
    assert "slm-edge pull hf:me/my-house" in (there / "README.md").read_text()
    done = typed("pull", "hf:me/my-house", env=environment)
    assert done.returncode == 0, done.stderr
    version, folder = Store().find("house")
    assert version.origin.reference == "hf:me/my-house" and Pack.open(folder, verify=True).carries_base == with_base


def test_what_others_could_not_use_is_not_pushed(slm_edge, made, tmp_path):
    base = made / "tiny" / "tiny-Q4_K_M.gguf"
    build_pack(tmp_path / "own", base=base, adapters=[], copy_base=True)
    code, _, err = slm_edge("push", tmp_path / "own", tmp_path / "www")
    assert code == 2 and "--with-base puts the base in" in err
    assert not (tmp_path / "www").exists()
    assert slm_edge("push", tmp_path / "own", "https://host/pack.json")[0] == 2


def completed(*words):
    """What bash is told for Tab behind the last word."""
    environment = {
        **os.environ,
        "_SLM_EDGE_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["slm-edge", *words]),
        "COMP_CWORD": str(len(words)),
    }
    code = "import sys; sys.argv = ['slm-edge']; from slm_edge.edge.cli.main import cli; cli(prog_name='slm-edge')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_names_are_completed(hub):
    typed("pull", "hf:org/house")
    typed("pull", MODEL)
    assert "house" in completed("rm", "ho") and MODEL in completed("rm", "hf")
    assert "house" in completed("run", "--pack", "h")
    assert "house" in completed("run", "h")
    assert "starter" in completed("show", "st")


def test_a_model_with_adapter_files(hub, slm_edge, made):
    words = ("-n", 4, "-t", 1, "hi")
    code, plain, _ = slm_edge("run", MODEL, *words)
    code, styled, err = slm_edge("run", MODEL, "--lora", f"{made / 'style.gguf'}=2", *words)
    assert code == 0 and styled != plain, err
