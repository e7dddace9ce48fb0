"""What `pip install .` gives: a wheel built from a clean copy holds every module and data file, and works."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("edge", "devices", "export", "train", "benchmarks")
# They measure the project itself and run from a checkout.
NOT_INSTALLED = (
    "benchmarks/proofs",
    "benchmarks/clients",
    "benchmarks/delivery",
    "benchmarks/experiments",
    "benchmarks/fuzz",
    "benchmarks/made",
    "benchmarks/peers",
    "benchmarks/scaling",
    "benchmarks/serving",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source") / "slm-edge"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "__init__.py", "py.typed"):
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(out), str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (path,) = out.glob("*.whl")
    return path


def test_every_module_and_data_file_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    missing = []
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            is_module = path.suffix == ".py"
            is_data = path.name == "py.typed" or (folder == "edge" and "starter" in path.parts)
            is_data = is_data or "recipes" in path.parts
            is_data = is_data or (folder == "devices" and path.suffix in (".toml", ".json"))
            if path.is_file() and "__pycache__" not in path.parts and (is_module or is_data):
                name = f"slm_edge/{path.relative_to(ROOT).as_posix()}"
                if not name.startswith(tuple(f"slm_edge/{place}/" for place in NOT_INSTALLED)):
                    missing += [name] if name not in inside else []
    assert not missing
    assert {"slm_edge/__init__.py", "slm_edge/py.typed"} <= inside
    assert "slm_edge/setup.py" not in inside
    assert not [name for name in inside if name.startswith(tuple(f"slm_edge/{place}/" for place in NOT_INSTALLED))]
    assert not [name for name in inside if name.startswith(("tests/", "slm_edge/tests", ".typing"))]


def test_the_installed_wheel_runs(wheel, tmp_path):
    """Installed into a folder of its own: the script, the modules and the starter pack come from there."""
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    code = (
        "import slm_edge.edge, slm_edge.export, slm_edge.train, slm_edge.benchmarks, slm_edge.devices\n"
        "assert all(m.__file__.startswith(SITE) for m in (slm_edge.edge, slm_edge.export, slm_edge.train))\n"
        "from slm_edge.edge.pack.pack import Pack\n"
        "pack = Pack.open(None, verify=True)\n"
        "assert str(pack.folder).startswith(SITE)\n"
        "print(sorted(pack.adapters))\n"
    ).replace("SITE", repr(str(site)))
    environment = {**os.environ, "PYTHONPATH": str(site)}
    # Elsewhere than in the checkout, whose folders could be imported by chance.
    result = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "['code', 'math', 'summarize']"
    script = site / "bin" / "slm-edge"
    result = subprocess.run([script, "--help"], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Usage: slm-edge" in result.stdout
