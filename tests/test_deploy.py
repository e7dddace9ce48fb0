"""What deploy/ and .github/ say, against the commands, options and files that there are."""

import importlib.util
import os
import platform
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from slm_edge.edge.cli.serve import DEFAULT_PORT, serve
from slm_edge.edge.errors import InputError
from slm_edge.edge.serve.keys import Keys, new_key

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"


def containers():
    """Name -> the words behind the image's entry point, and how long it may take to end."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["slm-edge"]
    yield "compose", compose["command"], int(compose["stop_grace_period"].removesuffix("s"))
    pods = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    spec = next(one for one in pods if one["kind"] == "Deployment")["spec"]["template"]["spec"]
    yield "kubernetes", spec["containers"][0]["args"], spec["terminationGracePeriodSeconds"]
    image = (DEPLOY / "Containerfile").read_text()
    yield "image", re.findall(r'"([^"]*)"', image.split("\nCMD ")[1]), 45


@pytest.mark.parametrize(("words", "end_s"), [pytest.param(*row, id=name) for name, *row in containers()])
def test_containers_call_serve_as_it_is(words, end_s):
    assert words[0] == "serve"
    given = serve.make_context("serve", words[1:]).params
    # Others reach it, with a key, and no answer is cut.
    assert given["hosts"] == ("0.0.0.0",) and given["keys"] is not None and given["port"] in (None, DEFAULT_PORT)
    assert given["drain_s"] < end_s


def test_ports_users_and_folders_agree():
    image = (DEPLOY / "Containerfile").read_text()
    assert f"EXPOSE {DEFAULT_PORT}" in image and f"127.0.0.1:{DEFAULT_PORT}/health/live" in image
    (user,) = re.findall(r"USER (\d+):\1", image)
    pods = [one for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()) if one["kind"] == "Deployment"]
    spec = pods[0]["spec"]["template"]["spec"]
    assert str(spec["securityContext"]["runAsUser"]) == user
    assert spec["containers"][0]["volumeMounts"][0]["mountPath"] in image
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["slm-edge"]
    assert compose["volumes"][0].partition(":")[2] in image
    # Only this machine reaches it until somebody decides otherwise.
    assert compose["ports"] == [f"127.0.0.1:{DEFAULT_PORT}:{DEFAULT_PORT}"]


def test_keys_that_are_mounted_are_taken(tmp_path):
    """Kubernetes mounts a secret with the mode that the manifest says, for root and the group of the pod."""
    pods = [one for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()) if one["kind"] == "Deployment"]
    spec = pods[0]["spec"]["template"]["spec"]
    (mode,) = [one["secret"]["defaultMode"] for one in spec["volumes"] if "secret" in one]
    assert mode & 0o040 and spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsGroup"]
    path = tmp_path / "keys"
    new_key(path, "me")
    path.chmod(mode)
    assert Keys.open(path).names == ["me"]
    # What it has where the manifest says nothing
    path.chmod(0o644)
    with pytest.raises(InputError, match="can be read"):
        Keys.open(path)


def test_kubernetes_takes_its_manifest():
    validate = pytest.importorskip("kubernetes_validate")
    for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()):
        validate.validate(one, "1.31", strict=True)


def test_the_action_and_the_job_agree():
    action = yaml.safe_load((ROOT / ".github/actions/export/action.yml").read_text())
    run = action["runs"]["steps"][-1]
    assert {value for value in run["env"].values() if "inputs." in value} == {
        f"${{{{ inputs.{name} }}}}" for name in ("hf", "peft", "out")
    }
    job = (ROOT / ".ci/export-job").read_text()
    assert "BIN" in run["run"] and "${BIN:-" in job
    assert set(re.findall(r"inputs\.([\w-]+)", (ROOT / ".github/actions/export/action.yml").read_text())) == {
        *action["inputs"]
    }
    uses = [
        step["uses"]
        for path in (ROOT / ".github/workflows").glob("*.yml")
        for work in yaml.safe_load(path.read_text())["jobs"].values()
        for step in work["steps"]
        if step.get("uses", "").startswith("./")
    ]
    assert uses == ["./.github/actions/export"]


def test_scripts_that_are_called_are_there():
    texts = [path.read_text() for path in [*(ROOT / ".github").rglob("*.yml"), *DEPLOY.iterdir(), ROOT / "Makefile"]]
    called = {found for text in texts for found in re.findall(r"\.ci/[\w.-]+", text)}
    assert called and all((ROOT / name).is_file() for name in called)
    tag = next(line for line in texts if "github.ref_name" in line)
    pattern = re.search(r"grep -qx (.+) pyproject.toml", tag)[1]
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert shlex.split(pattern)[0].replace("${TAG#v}", version) in (ROOT / "pyproject.toml").read_text()


def test_libraries_built_apart_become_a_wheel_that_pip_takes(tmp_path):
    source, libraries = tmp_path / "source", tmp_path / "bin"
    for folder in (source / "llama_cpp", source / "vendor/llama.cpp", libraries):
        folder.mkdir(parents=True)
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 9.8.7\n")
    for name in ("LICENSE.md", "vendor/llama.cpp/LICENSE", "llama_cpp/__init__.py", "llama_cpp/llama_cpp.py"):
        (source / name).write_text(name)
    for name in ("libggml.so.0.25.3", "libllama.so.0.5.0", "libggml-cpu-zen4.so", "libother.so"):
        (libraries / name).write_text(name)
    for link, to in (("libggml.so.0", "libggml.so.0.25.3"), ("libllama.so.0", "libllama.so.0.5.0")):
        (libraries / link).symlink_to(to)
        (libraries / link.removesuffix(".0")).symlink_to(link)
    machine = platform.machine()
    command = [sys.executable, ROOT / ".ci/pack_llama.py", source, libraries, tmp_path, machine]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"llama_cpp_python-9.8.7-py3-none-linux_{machine}.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        inside = {name: archive.read(name).decode() for name in archive.namelist()}
    libs = {name.rpartition("/")[2]: text for name, text in inside.items() if "/lib/" in name}
    # Under the names by which they are asked for, each once
    assert libs == {
        "libggml.so.0": "libggml.so.0.25.3",
        "libllama.so": "libllama.so.0.5.0",
        "libggml-cpu-zen4.so": "libggml-cpu-zen4.so",
    }
    if platform.system() == "Linux":
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
        if importlib.util.find_spec("pip") is None:
            pytest.skip("no pip here")
        subprocess.run([*pip, tmp_path / "site", wheel], check=True, capture_output=True)
        assert (tmp_path / "site/llama_cpp/lib/libllama.so").read_text() == "libllama.so.0.5.0"


def test_what_scripts_borrow_of_the_tests_needs_no_pytest():
    """`.ci/export-job`, which the action runs where export's packages alone are installed, makes its pair by these."""
    texts = [path.read_text() for path in (ROOT / ".ci").iterdir()]
    borrowed = sorted({name for text in texts for name in re.findall(r"\bfrom (build_\w+) import", text)})
    assert borrowed == ["build_gguf", "build_hf", "build_peft"]
    code = f"import sys; sys.modules['pytest'] = None; import {', '.join(borrowed)}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
