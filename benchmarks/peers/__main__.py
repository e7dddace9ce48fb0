"""Our engines beside what a user would take instead, on one file, each in a process of its own, in turns.

    python -m slm_edge.benchmarks.peers base.gguf --lora adapter.gguf --runs 5
    python -m slm_edge.benchmarks.peers base.gguf --onnx FOLDER --only ours --only ours-onnx --only openvino

`make peers` makes `.venv-peers` with the others (llama-server in xllamacpp, OpenVINO GenAI, onnxruntime-genai,
mistral.rs); `llama_cpp.Llama` runs in this Python. In each round each contender takes each measurement once:

    prompt N          tokens/s of a prompt of about N tokens that was never seen, one token answered
    decode            tokens/s of an answer after a short prompt
    with the adapter  the same two under `--lora`, where the contender takes a GGUF adapter
    swap              first token of a known prompt of about 128 tokens right after the other choice answered
    together K        tokens/s of K requests at once, 40-token prompts and 20-token answers: new, and repeated

Ratios are ours over the other's in the same round, the median of the rounds with their spread; for `swap` the other's
seconds over ours: above 1 ours is better everywhere. Memory is what a process holds by itself after all of it
(anonymous, and the file's pages), and its peak. A contender that cannot do something says why. `--busy N` starts as
many processes that compute all the time. Prints a table and one JSON document (`--json`: that alone).
"""

import contextlib
import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import click

from ...edge.errors import EngineError
from ..proofs.busy_threads import busy_processes
from ..stats import spread
from .contenders import KINDS

IN_THIS_PYTHON: Final = ("ours", "ours-onnx", "llama-cpp-python")
LENGTHS: Final = (128, 512, 1200)
CLIENTS: Final = (1, 4, 8)
SHORT: Final = 40
SHORT_ANSWER: Final = 20
KNOWN: Final = 128
# Common words that these tokenizers hold as one token each, so that a prompt's length is about its number of words
_WORDS: Final = """
the people time water house light world night paper music winter summer river garden table window story letter market
street doctor teacher school village mountain ocean forest animal machine engine number question answer morning evening
friend family history science language picture color island bridge castle
"""
WORDS: Final = tuple(_WORDS.split())


class Process:
    """A contender that runs; `unable` is why it does not."""

    def __init__(self, name: str, python: str, base: Path, lora: Path | None, options: list[str]) -> None:
        self.name = name
        command = [python, str(Path(__file__).with_name("contenders.py")), name, str(base), *options]
        command += ["--lora", str(lora)] if lora is not None else []
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.about = self._line()
        self.unable: str | None = self.about.get("unable")

    def ask(self, **order: Any) -> dict[str, Any]:
        """The answer to an order; {"unable": why} if there is none."""
        if self.unable is not None:
            return {"unable": self.unable}
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._line()

    def memory_bytes(self) -> dict[str, int]:
        """What it holds now, from /proc; empty where there is none."""
        try:
            text = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return {}
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        names = {"anonymous_bytes": "RssAnon", "file_bytes": "RssFile", "peak_bytes": "VmHWM"}
        return {name: int(fields[field].split()[0]) * 1024 for name, field in names.items() if field in fields}

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.communicate(timeout=20)
        self._process.kill()
        self._process.wait()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"unable": f"its process ended with {self._process.wait()}"}


class Texts:
    """Prompts of about so many tokens, each new, the same for every contender."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def new(self, n_words: int) -> str:
        return " ".join(self._random.choice(WORDS) for _ in range(n_words))


def measurements(texts: Texts, lora: bool, n_decode: int) -> list[tuple[str, list[dict[str, Any]]]]:
    """One round: (what is measured, the orders for it, the last of which counts)."""
    row: list[tuple[str, list[dict[str, Any]]]] = []
    for choice in (False, True) if lora else (False,):
        where = ", adapter" if choice else ""
        for length in LENGTHS:
            row.append((f"prompt {length}{where}", [{"one": texts.new(length), "tokens": 1, "lora": choice}]))
        row.append((f"decode{where}", [{"one": texts.new(SHORT), "tokens": n_decode, "lora": choice}]))
    if lora:
        known = {"one": texts.new(KNOWN), "tokens": 1}
        other = {"one": texts.new(KNOWN), "tokens": 1, "lora": False}
        row.append(("swap", [{**known, "lora": True}, other, {**known, "lora": True}]))
    for clients in CLIENTS:
        asked = {"many": [texts.new(SHORT) for _ in range(clients)], "tokens": SHORT_ANSWER, "lora": lora}
        row.append((f"together {clients}, new", [asked]))
        row.append((f"together {clients}, repeated", [asked, asked]))
    return row


def figure(what: str, found: dict[str, Any]) -> float | None:
    """Tokens per second, or for a swap its reciprocal seconds; None where the contender could not, or said nothing."""
    if "unable" in found or not found.get("first_s", found.get("tokens")):
        return None
    if what.startswith("prompt"):
        return float(found["prompt_tokens"] / found["first_s"])
    if what.startswith("decode"):
        return (found["tokens"] - 1) / found["rest_s"] if found["rest_s"] > 0 else None
    if what == "swap":
        return float(1 / found["first_s"])
    return float(found["tokens"] / found["seconds"])


def table(rows: dict[str, dict[str, list[float]]], first: str) -> dict[str, Any]:
    """By measurement and contender: the figure, and the first contender's over it, round by round."""
    out: dict[str, Any] = {}
    for what, by_name in rows.items():
        ours = by_name.get(first, [])
        out[what] = {
            name: {"figure": spread(figures)}
            | ({"ratio": spread([a / b for a, b in zip(ours, figures, strict=True)])} if name != first and ours else {})
            for name, figures in by_name.items()
            if not ours or len(figures) == len(ours)
        }
    return out


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--lora", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A GGUF adapter of BASE.")
@click.option("--onnx", type=click.Path(exists=True, file_okay=False, path_type=Path), help="BASE's ONNX form.")
@click.option(
    "--genai", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Its onnxruntime-genai form."
)
@click.option("--python", default=".venv-peers/bin/python", show_default=True, help="The Python that has the others.")
@click.option("--only", multiple=True, type=click.Choice(sorted(KINDS)), help="These alone; the first is compared.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--decode", "n_decode", type=click.IntRange(2, 1000), default=64, show_default=True, help="Tokens.")
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True)
@click.option("--busy", type=click.IntRange(0), default=0, show_default=True, help="Other processes that compute.")
@click.option("--skip", multiple=True, help="Leave out measurements that begin so: --skip together")
@click.option("--json", "only_json", is_flag=True, help="Print the JSON document alone.")
def main(
    base: Path,
    lora: Path | None,
    onnx: Path | None,
    genai: Path | None,
    python: str,
    only: tuple[str, ...],
    threads: int,
    n_decode: int,
    runs: int,
    busy: int,
    skip: tuple[str, ...],
    only_json: bool,
) -> None:
    """Measure ours beside the others on BASE."""
    forms = {"ours-onnx": onnx, "onnxruntime-genai": genai}
    files = {name: forms.get(name, base) for name in KINDS}
    names = only or tuple(name for name in KINDS if files[name] is not None)
    options = ["--threads", str(threads), "--context", "2048", "--parallel", str(max(CLIENTS))]
    texts = Texts(seed=1)
    rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    unable: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        processes = []
        for name in names:
            file = files[name]
            if file is None:
                raise click.UsageError(f"{name} needs its own form of the base: --onnx or --genai FOLDER")
            program = sys.executable if name in IN_THIS_PYTHON else python
            if name not in IN_THIS_PYTHON and not Path(program).exists():
                unable[name] = f"there is no {program}: make peers"
                continue
            process = Process(name, program, file.absolute(), lora if name != "ours-onnx" else None, options)
            stack.callback(process.close)
            if process.unable is not None:
                unable[name] = process.unable
            else:
                processes.append(process)
                _warm(process)
        if not processes:
            raise EngineError("no contender runs", problems=[f"{name}: {why}" for name, why in unable.items()])
        stack.enter_context(busy_processes(busy))
        for turn in range(runs):
            for what, orders in measurements(texts, lora is not None, n_decode):
                if any(what.startswith(word) for word in skip):
                    continue
                for process in processes:
                    found: dict[str, Any] = {}
                    for order in orders:
                        found = process.ask(**order)
                    value = figure(what, found)
                    if value is None:
                        why = str(found.get("unable", "no text, or one token alone"))
                        unable.setdefault(f"{process.name}, {what}", why)
                    else:
                        rows[what][process.name].append(value)
            if not only_json:
                click.echo(f"round {turn + 1} of {runs}", err=True)
        about = {process.name: process.about | process.memory_bytes() for process in processes}
    results = table(rows, processes[0].name)
    if not only_json:
        _print(results, about, unable)
    document: dict[str, Any] = {"base": base.name, "lora": None if lora is None else lora.name}
    document |= {"threads": threads, "runs": runs, "busy": busy}
    document |= {"cores": os.cpu_count(), "contenders": about, "results": results, "unable": unable}
    click.echo(json.dumps(document))


def _warm(process: Process) -> None:
    """The first calls of some take a third longer."""
    for _ in range(2):
        process.ask(one=" ".join(WORDS), tokens=4, lora=False)


def _print(results: dict[str, Any], about: dict[str, Any], unable: dict[str, str]) -> None:
    for name, facts in about.items():
        sizes = ", ".join(f"{key.removesuffix('_bytes')} {facts[key] >> 20} MiB" for key in facts if "_bytes" in key)
        click.echo(f"{name}: {facts['version']}, loaded in {facts['load_s']:.1f} s; {sizes}")
    for what, by_name in results.items():
        click.echo(what)
        for name, found in by_name.items():
            ratio = found.get("ratio")
            beside = "   ours is {median:.2f} of it ({min:.2f} to {max:.2f})".format(**ratio) if ratio else ""
            click.echo(f"    {name:20} {found['figure']['median']:9.1f}{beside}")
    for name, why in unable.items():
        click.echo(f"not measured: {name}: {why}")


if __name__ == "__main__":
    main()
