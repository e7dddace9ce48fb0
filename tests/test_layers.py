"""The arrows between folders, and what the runtime may import: an ast walk over every file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "edge": {"edge"},
    "devices": {"edge", "devices"},
    "export": {"edge", "export"},
    "train": {"edge", "train"},
    "benchmarks": {"edge", "devices", "benchmarks"},
}
NOT_ON_A_DEVICE = {"torch", "transformers", "peft", "safetensors", "tokenizers", "accelerate", "datasets"}
FILES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))


def imports_of(path: Path) -> list[str]:
    """Absolute names of all imports of a file, wherever they stand in it."""
    package = ["slm_edge", *path.relative_to(ROOT).parts[:-1]]
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            names.append(".".join([*above, *([node.module] if node.module else [])]))
            if not node.module:
                names += [".".join([*above, alias.name]) for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    folder = path.relative_to(ROOT).parts[0]
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "slm_edge" and len(parts) > 1:
            assert parts[1] in MAY_IMPORT[folder], f"{path}: {folder}/ may not import {name}"
        if folder in ("edge", "devices"):
            assert parts[0] not in NOT_ON_A_DEVICE, f"{path}: {folder}/ may not import {name}"


def test_the_walk_sees_every_folder():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(MAY_IMPORT)


def test_help_imports_nothing_heavy():
    """A deterministic stand-in for the bound of 0.4 s: what `--help` and a parsed command line import."""
    code = (
        "import sys; sys.argv = ['slm-edge', '--help']\n"
        "from slm_edge.edge.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} "
        "& {'numpy', 'torch', 'llama_cpp', 'rich', 'jinja2', 'gguf', 'transformers'}))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]", result.stdout


def test_no_file_is_long():
    long = {str(path.relative_to(ROOT)): n for path in FILES if (n := len(path.read_text().splitlines())) > 400}
    assert not long, f"files that hold more than one topic: {long}"
