"""The arrows between folders and between their topics, and what the runtime may import: an ast walk over every file."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A folder X is imported as slm_edge.X. What each may import of the others:
FOLDERS = {
    "edge": "",
    "devices": "edge",
    "export": "edge devices",
    "train": "edge",
    "benchmarks": "edge devices",
}
# The topics of each folder, lowest first, and what each may import of its folder. A topic is a folder, or a file that
# stands alone. Errors and the recipe are everyone's in their folder; a command line may import all of its folder.
TOPICS = {
    "edge": {
        "errors": "",
        "extras": "",
        "console": "",
        "written": "",
        "options": "written",
        "prompt_kernels": "",
        "system": "",
        "files": "console written",
        "store": "console files",
        "hub": "console files",
        "grammar": "files",
        "gguf": "console files",
        "llama": "files gguf grammar options system",
        "datasets": "gguf",
        "trust": "console extras files store written",
        "pack": "console files gguf grammar hub options store trust written",
        "prefix": "files gguf llama options",
        "memory": "gguf llama options system written",
        "router": "files gguf pack",
        "answer": "gguf grammar llama memory options pack prefix router",
        "session": "answer files gguf llama memory options pack prefix written",
        "onnx": "answer extras files gguf llama options pack prefix system",
        "engines": "answer onnx options pack session",
        "scheduler": "answer engines gguf grammar llama memory options pack prefix router written",
        "update": "answer console engines files pack scheduler store trust written",
        "openai": "answer grammar scheduler written",
        "serve": "answer console files openai options pack scheduler written",
        "cli": "*",
    },
    "export": {
        "reasons": "",
        "proof": "",
        "files": "",
        "lora": "files reasons",
        "tokenizer": "files",
        "checkpoint": "files tokenizer",
        "base": "checkpoint files tokenizer",
        "onnx": "base checkpoint files lora reasons",
        "cli": "*",
    },
    "train": {
        "recipe": "",
        "model": "",
        "data": "model",
        "tasks": "data",
        "run": "data model",
        "drawn": "data model",
        "router": "data tasks",
        "tools": "data drawn model run",
        "cli": "*",
    },
    "devices": {
        "catalogue": "",
        "predict": "catalogue",
        "machine": "catalogue predict",
        "profile": "catalogue machine predict",
        "cli": "*",
    },
    "benchmarks": {
        "stats": "",
        "made": "",
        "router": "",
        "sandbox": "",
        "tasks": "sandbox",
        "scores": "tasks",
        "likelihood": "scores stats tasks",
        "report": "sandbox scores stats tasks",
        "fuzz": "made report tasks",
        "delivery": "made",
        "serving": "made stats",
        "clients": "serving",
        "proofs": "likelihood made stats tasks",
        "peers": "proofs stats",
        "scaling": "made stats",
        "experiments": "proofs report scores stats",
        "cli": "*",
    },
}
EVERYONES = {"errors", "recipe"}
# Of edge's command line, other folders take the lazy group and the shared options alone, and only into their own.
SHARED_OF_CLI = ("slm_edge.edge.cli.lazy", "slm_edge.edge.cli.options")
COMMAND_LINES = ("cli", "proofs", "peers", "scaling", "experiments")
NOT_ON_A_DEVICE = {"torch", "transformers", "peft", "safetensors", "tokenizers", "accelerate", "datasets"}
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MOST_FILES, MOST_LINES = 16, 400


def is_module(parts: list[str]) -> bool:
    place = ROOT.joinpath(*parts[1:])
    return place.with_suffix(".py").is_file() or place.is_dir()


def imports_of(path: Path) -> list[str]:
    """Absolute names of all modules that a file imports, wherever the import stands in it."""
    package = ["slm_edge", *path.relative_to(ROOT).parts[:-1]]
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = [*above, *(node.module.split(".") if node.module else [])]
            inside = [[*module, alias.name] for alias in node.names]
            ours = module[0] == "slm_edge"
            names += [".".join(parts if ours and is_module(parts) else module) for parts in inside]
    return names


def topic_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    folder = path.relative_to(ROOT).parts[0]
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "slm_edge" and len(parts) > 1 and parts[1] != folder:
            assert parts[1] in FOLDERS[folder].split(), f"{path}: {folder}/ may not import {name}"
            if len(parts) > 2 and parts[2] == "cli":
                assert topic_of(path) in COMMAND_LINES and name.startswith(SHARED_OF_CLI), f"{path} imports {name}"
        if folder in ("edge", "devices"):
            assert parts[0] not in NOT_ON_A_DEVICE, f"{path}: {folder}/ may not import {name}"


@pytest.mark.parametrize("folder", TOPICS)
def test_topics_follow_the_arrows(folder):
    """Each import between topics is in the list, each arrow of the list is used, and none runs up."""
    seen = defaultdict(set)
    for path in FILES:
        if path.relative_to(ROOT).parts[0] != folder or topic_of(path) in ("__init__", "__main__"):
            continue
        topic = topic_of(path)
        assert topic in TOPICS[folder], f"{path}: the topic {folder}/{topic} has no row in TOPICS"
        for name in imports_of(path):
            parts = name.split(".")
            if parts[:2] == ["slm_edge", folder] and len(parts) > 2 and parts[2] != topic:
                seen[topic].add(parts[2])
                allowed = TOPICS[folder][topic].split()
                assert allowed == ["*"] or parts[2] in {*allowed, *EVERYONES}, f"{path} may not import {name}"
    order = list(TOPICS[folder])
    for topic, text in TOPICS[folder].items():
        allowed = [] if text == "*" else text.split()
        assert not set(allowed) - seen[topic], f"{folder}/{topic}: arrows that nobody uses"
        assert all(order.index(other) < order.index(topic) for other in allowed), f"{folder}/{topic} imports upwards"
        assert (ROOT / folder / topic).is_dir() or (ROOT / folder / f"{topic}.py").is_file()


def test_the_walk_sees_every_folder():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(FOLDERS)


def test_help_imports_nothing_heavy():
    """A deterministic stand-in for the bound of 0.4 s: what `--help` and a parsed command line import."""
    code = (
        "import sys; sys.argv = ['slm-edge', '--help']\n"
        "from slm_edge.edge.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} "
        "& {'numpy', 'torch', 'llama_cpp', 'rich', 'jinja2', 'gguf', 'transformers'}))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]", result.stdout


def test_no_file_is_long_and_no_topic_large():
    long = {str(path.relative_to(ROOT)): n for path in FILES if (n := len(path.read_text().splitlines())) > MOST_LINES}
    assert not long, f"files that hold more than one topic: {long}"
    for folder in FOLDERS:
        for place in (path for path in (ROOT / folder).iterdir() if path.is_dir()):
            files = [path for path in place.glob("*.py") if path.name != "__init__.py"]
            assert len(files) <= MOST_FILES, f"{place}: {len(files)} files"


def test_a_topics_own_file_is_one_sentence():
    """A topic's __init__.py says what it is and imports nothing."""
    for folder in FOLDERS:
        for place in (ROOT / folder).iterdir():
            if place.is_dir() and list(place.glob("*.py")):
                tree = ast.parse((place / "__init__.py").read_text(encoding="utf-8"))
                assert len(tree.body) == 1 and ast.get_docstring(tree), f"{place}/__init__.py"
