"""The pages: links and named paths exist, each documented command parses, what a command makes is up to date."""

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import click
import pytest
import slm_edge
from build_archs import ARCHS, MOES
from build_other import OTHERS
from build_topics import topics
from conftest import STARTER_BASE_SHA256
from slm_edge.benchmarks.report.page import filled
from slm_edge.edge.cli.main import cli
from slm_edge.edge.files.cache import base_cache_path
from slm_edge.edge.gguf.families import FAMILIES
from slm_edge.edge.gguf.other_bases import OTHER_FAMILIES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/reports/README.md")]
PAGES += sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("[a-z]*/README.md")])
PAGES = list(dict.fromkeys(PAGES))
# Logs of a day: what they name may have another name today.
LOGS = [path for path in PAGES if re.fullmatch(r"\d{4}-\d\d-\d\d\.md", path.name)]
TODAY = [path for path in PAGES if path not in LOGS]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
PLACE = re.compile(r"(?:edge|export|train|devices|benchmarks|tests|docs|\.ci|\.github|\.typing)/[\w.*/-]*")
BLOCKS = re.compile(r"(?:^    .*\n|^\n)+", re.MULTILINE)
OPERATORS = {"|", "||", "&&", "&", ">", ">>", "<", ";", "(", ")"}


def name_of(path):
    return str(path.relative_to(ROOT))


def split(text):
    """Prose without its code blocks, and the lines of the code blocks, those that end with a backslash joined."""
    prose, code, fenced = [], [], False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            if code and code[-1].endswith("\\"):
                code[-1] = code[-1][:-1] + " " + line.strip()
            else:
                code.append(line.strip())
        else:
            prose.append(line)
    return "\n".join(prose), code


def anchors(path):
    """The headings of a page as links name them (GitHub's rule)."""
    heads = re.findall(r"^#+ (.*)$", split(path.read_text(encoding="utf-8"))[0], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def commands(path):
    """Each command line of a page as words; those of the text alone may leave out what a command needs."""
    prose, code = split(path.read_text(encoding="utf-8"))
    lines = [(line, True) for line in code]
    lines += [(span, False) for span in SPAN.findall(prose)]
    for line, whole in lines:
        if not re.match(r"(slm-edge|python3? -m slm_edge|make|pip install) ?", line):
            continue
        words = [""]
        parts = shlex.shlex(line, posix=True, punctuation_chars=True)
        parts.whitespace_split = True
        for word in [*parts, ";"]:
            if word in OPERATORS:
                yield words[1:], whole
                words = [""]
            else:
                words.append(word)


def put_in_place(words):
    """Empty files and folders of all names that a command line has: some options want theirs to exist."""
    for word in words:
        if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)*/?", word) and not Path(word).exists():
            Path(word).parent.mkdir(parents=True, exist_ok=True)
            if Path(word).suffix:
                Path(word).touch()
            else:
                Path(word).mkdir()


def parse(words):
    """Parses a command line as `slm-edge` does, without running it."""
    command, context, name, rest = cli, None, "slm-edge", words[1:]
    while True:
        context = command.make_context(name, list(rest), parent=context)
        if not isinstance(command, click.Group):
            return
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        name, command, rest = command.resolve_command(context, rest)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path):
    for target in LINK.findall(split(path.read_text(encoding="utf-8"))[0]):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        other = (path.parent / file).resolve() if file else path
        assert other.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(other), f"{target}: there is no such heading"


@pytest.mark.parametrize("path", TODAY, ids=name_of)
def test_named_paths_exist(path):
    for span in SPAN.findall(split(path.read_text(encoding="utf-8"))[0]):
        if not PLACE.fullmatch(span):
            continue
        if "NAME" in span:
            assert (ROOT / span).parent.is_dir(), span
        else:
            assert any(ROOT.glob(span.rstrip("/"))), f"{span} is not there"


@pytest.mark.parametrize("path", TODAY, ids=name_of)
def test_documented_commands_parse(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # `slm-edge train my.toml` has the options of the recipe that it reads.
    Path("my.toml").write_text('task = "math"\nbase = "base.gguf"\ndata = ["train.jsonl"]\noutput = "peft"\n')
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for words, whole in commands(path):
        said = " ".join(words)
        if words[:1] == ["slm-edge"]:
            put_in_place(words[1:])
            try:
                parse(words)
            except click.exceptions.Exit:
                pass
            except click.MissingParameter:
                assert not whole, said
            except click.UsageError as error:
                assert len(words) <= 3 and not whole, f"{said}: {error.format_message()}"
        elif words[:2] in (["python", "-m"], ["python3", "-m"]):
            if words[2].startswith("slm_edge"):
                assert importlib.util.find_spec(words[2]), said
        elif words[:1] == ["make"]:
            assert {word for word in words[1:] if "=" not in word} <= targets, said
        elif words[:2] == ["pip", "install"]:
            for named in re.findall(r"\[([\w,]+)\]", said):
                assert set(named.split(",")) <= set(extras), said


def test_the_page_of_commands_is_what_help_says():
    """Word by word: line breaks are click's. In a process of its own, as click keeps a command's help option."""
    command = [sys.executable, "-m", "slm_edge.edge.cli.pages"]
    said = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
    made = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert made.split() == said.split(), "python -m slm_edge.edge.cli.pages > docs/cli.md"


def test_the_arrows_are_those_that_the_layers_have():
    text = (ROOT / "docs/how-it-works.md").read_text(encoding="utf-8")
    shown = text.partition("<!-- arrows -->\n")[2].partition("\n<!-- end of arrows -->")[0]
    assert shown == topics(), "python tests/build_topics.py"


def test_scores_are_those_of_the_reports():
    text = (ROOT / "docs/scores.md").read_text(encoding="utf-8")
    assert filled(text) == text, "python -m slm_edge.benchmarks.report.page docs/scores.md"


def test_the_table_of_families_is_that_of_the_rows():
    uses = ("base", "lora", "train", "onnx")
    for name, family in FAMILIES.items():
        cells = ["yes", *("yes" if use in family.uses else "no" for use in uses)]
        row = f"| {name} | {', '.join(hf.name for hf in family.classes)} | {' | '.join(cells)} |"
        assert row in (ROOT / "docs/families.md").read_text(encoding="utf-8"), row


def test_the_table_of_other_families_is_that_of_their_rows():
    text = (ROOT / "docs/families.md").read_text(encoding="utf-8").partition("## Architectures without such a row")[2]
    shown = re.findall(
        r"^\| ([a-z]\w+) \| (\w+) \| (yes|no) \| (yes|no) \| (yes|no) \|", text.partition("\n## ")[0], re.MULTILINE
    )
    rows = {name: row for name, row in OTHER_FAMILIES.items() if "lora" in row.uses}
    cells = {
        name: ["yes" if use in row.uses else "no" for use in ("base", "train", "onnx")] for name, row in rows.items()
    }
    assert shown == [(name, row.classes[0].name, *cells[name]) for name, row in rows.items()]
    # Each is proved against PEFT in tests/export/lora/test_other_families.py.
    assert rows.keys() <= OTHERS.keys()


def test_the_list_of_tried_architectures_is_that_of_the_tests():
    text = (
        (ROOT / "docs/families.md").read_text(encoding="utf-8").partition("- Dense: ")[2].partition("An adapter may")[0]
    )
    dense, _, experts = text.partition("- Mixtures of experts: ")
    assert set(re.findall(r"[a-z][a-z0-9-]+", dense)) == ARCHS.keys() - MOES
    assert set(re.findall(r"[a-z][a-z0-9-]+", experts.replace("(Mixtral)", ""))) == set(MOES)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def python_of(path):
    """The indented block of a page that begins with an import, as a program."""
    blocks = BLOCKS.findall(path.read_text(encoding="utf-8"))
    return next(block for block in blocks if block.lstrip("\n").startswith("    import slm_edge"))


def test_the_readmes_python_runs(starter_base, own_cache, capsys):
    place = base_cache_path(STARTER_BASE_SHA256)
    place.parent.mkdir(parents=True)
    place.symlink_to(starter_base)
    exec(compile(textwrap.dedent(python_of(ROOT / "README.md")), "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "12 dollars" in out
    assert re.search(r"code \d+ (end|max_tokens)$", out.strip())


def test_the_nine_adapters_are_where_the_page_says():
    text = (ROOT / "docs/how-it-works.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `([\w/]+\.py)` \|", text, re.MULTILINE)
    assert len(rows) == 9
    for name, file in rows:
        assert re.search(rf"^class {name}\b", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), name


@pytest.mark.parametrize("path", TODAY, ids=name_of)
def test_python_of_pages_compiles_and_its_names_exist(path):
    for block in BLOCKS.findall(path.read_text(encoding="utf-8")):
        block = textwrap.dedent(block)
        if not re.match(r"\s*(import|from|with|try:|one =)\b", block):
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), block
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "slm_edge":
                assert hasattr(slm_edge, node.attr), node.attr
