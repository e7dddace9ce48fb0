"""Clients that nobody here wrote, as they are, against a running server: a table of what each of them does.

    make clients
    python -m slm_edge.benchmarks.clients my-pack

`make clients` puts them into `.venv-clients`: openai-python, langchain-openai, llama-index's OpenAILike, litellm (SDK
and proxy), instructor, pydantic-ai, schemathesis, and npm's openai and ai-sdk. The proxy stands before two servers, one
of which is killed in the middle. Tools are tried where the model's chat template has them.
"""

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import click

from ..serving.ask import CHAT, ask, chat
from ..serving.bounds import Bound, finish
from ..serving.process import Served, served, threads_option
from .proxy import kill_one

HERE: Final = Path(__file__).parent
CHECKOUT: Final = HERE.parent.parent
PARTS: Final = ("python", "npm", "schemathesis", "proxy")
_TOOL: Final = {"type": "function", "function": {"name": "count", "parameters": {"type": "object"}}}
_LIMIT_S: Final = 900


def has_tools(server: Served, model: str) -> bool:
    """Whether the model's chat template can call tools."""
    return asyncio.run(ask(server.port, CHAT, chat(model, "Hello", 1, tools=[_TOOL]))).status == 200


def said_by(words: list[str], folder: Path) -> list[dict[str, Any]]:
    """The lines of JSON that a program prints; the last words of one that dies are an error's."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_LIMIT_S, cwd=folder)
    rows = []
    for line in done.stdout.splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    if done.returncode:
        rows.append({"client": words[1], "version": None, "checks": {"end": done.stderr[-400:]}})
    return rows


def made_up(program: Path, server: Served, n_examples: int) -> dict[str, Any]:
    """schemathesis's own requests, by our /openapi.json: no server's error, answers of the types that it says."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    words = [str(program), "run", f"{server.url}/openapi.json", "--checks", checks, "--max-examples", str(n_examples)]
    # What these take away and end is the server's own.
    words += [
        "--exclude-path-regex",
        "lora_adapter|/v1/slm/",
        "--phases",
        "examples,fuzzing",
        "--no-color",
        "--seed",
        "1",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_LIMIT_S)
    version = re.search(r"Schemathesis v?(\S+)", done.stdout)
    said = "ok" if done.returncode == 0 else done.stdout[-1500:] + done.stderr[-400:]
    return {"client": "schemathesis", "version": version and version[1], "checks": {"no fault": said}}


@click.command()
@click.argument("pack", required=False)
@click.option("--model", help="The base by default.")
@click.option(
    "--environment",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=CHECKOUT / ".venv-clients",
    help="What `make clients` made.",
)
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="These alone; repeatable.")
@click.option("--requests", default=40, show_default=True, help="Through the proxy.")
@click.option("--examples", default=15, show_default=True, help="Of schemathesis, for each operation.")
@click.option("--threads", type=int)
@click.option("--json", "as_json", is_flag=True)
def main(
    pack: str | None,
    model: str | None,
    environment: Path,
    parts: tuple[str, ...],
    requests: int,
    examples: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Runs every client against a server over PACK, the starter pack by default."""
    programs = environment.resolve() / "bin"
    if not (programs / "python").exists():
        raise click.ClickException(f"there is no Python in {environment}: make clients")
    parts = parts or PARTS
    options = ["--max-wait", 600, *threads_option(threads)]
    rows: list[dict[str, Any]] = []
    with served(pack, *options) as server:
        asked = server.models[0] if model is None else model
        words = [f"{server.url}/v1", asked, *(["--tools"] if has_tools(server, asked) else [])]
        if "python" in parts:
            rows += said_by([str(programs / "python"), str(HERE / "client_checks.py"), *words], HERE.parent)
        if "npm" in parts:
            # Node looks for packages from the file's own folder.
            copied = shutil.copy(HERE / "client_checks.mjs", environment.resolve() / "npm")
            rows += said_by(["node", str(copied), *words], environment.resolve() / "npm")
        if "schemathesis" in parts:
            rows.append(made_up(programs / "schemathesis", server, examples))
        server.terminate()
        code, errors = server.wait(), server.errors()
    if "proxy" in parts:
        found = kill_one(programs / "litellm", pack, asked, requests, options)
        said = "ok" if not found["n_failed"] else json.dumps(found["failed"])
        rows.append(
            {"client": "litellm's proxy", "version": None, "checks": {"one of two killed": said}, "found": found}
        )
    if not as_json:
        for row in rows:
            for what, said in row["checks"].items():
                click.echo(f"{row['client']:18} {row['version'] or '':10} {what:18} {said}")
    refused = "the model's template has none"
    failed = [
        (row["client"], what) for row in rows for what, said in row["checks"].items() if said not in ("ok", refused)
    ]
    bounds = [
        Bound("checks that failed", len(failed), most=0),
        Bound("exit code and tracebacks of the server", code + errors.count("Traceback"), most=0),
    ]
    finish(
        {"pack": pack or "starter", "model": asked, **({"clients": rows} if as_json else {})}, bounds, as_json=as_json
    )


if __name__ == "__main__":
    main()
