"""llama-server's own tests against our server: those that apply, out of a checkout of llama.cpp.

    python -m slm_edge.benchmarks.clients.llama_tests CHECKOUT base.gguf

CHECKOUT is a folder with `tools/server/tests` (the source archive of llama-cpp-python has it under vendor/llama.cpp).
Their tests are not changed; their helper asks under /v1 and names a model. BASE is best a small one. docs/serve.md says
which tests are left out, and why.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import click

from ...edge.pack.pack import Pack
from ..serving.bounds import Bound, finish
from ..serving.process import served, threads_option

TESTS: Final = Path("tools") / "server" / "tests"
# What their clients call the model
ALIASES: Final = ("gpt-3.5-turbo-instruct", "gpt-3.5-turbo", "gpt-4.1", "davinci-002")
_SECRET: Final = "sk-this-is-the-secret-key"
# Test files or tests that apply, by whether the server asks for a key
OPEN: Final = (
    "test_basic.py::test_server_start_simple",
    "test_tokenize.py::test_tokenize_detokenize",
    "test_tokenize.py::test_tokenize_with_pieces",
    *(
        f"test_chat_completion.py::test_invalid_chat_completion_req[{case}]"
        for case in ("None", "string", *(f"messages{i}" for i in range(2, 7)))
    ),
    "test_chat_completion.py::test_completion_with_invalid_grammar",
    "test_chat_completion.py::test_chat_template_continue_final_message_mutual_exclusion",
    "test_chat_completion.py::test_completion_with_response_format",
    "test_chat_completion.py::test_completion_with_json_schema",
    "test_chat_completion.py::test_chat_completions_multiple_choices",
    "test_chat_completion.py::test_logprobs",
    "test_chat_completion.py::test_logit_bias",
    "test_compat_oai_responses.py::test_responses_stream_with_openai_library",
    "test_completion.py::test_nocache_long_input_prompt",
)
LOCKED: Final = (
    "test_security.py::test_access_public_endpoint",
    "test_security.py::test_incorrect_api_key",
)
_ROW: Final = re.compile(r"^unit/(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED)", re.MULTILINE)


def run(checkout: Path, port: int, tests: tuple[str, ...]) -> tuple[dict[str, str], str]:
    """What became of each test, and all that pytest printed."""
    folder = checkout / TESTS
    words = [sys.executable, "-m", "pytest", "-v", "--no-header", "-p", "slm_edge.benchmarks.clients.llama_plugin"]
    words += ["-p", "no:cacheprovider", *(f"unit/{one}" for one in tests)]
    done = subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DEBUG_EXTERNAL": "1", "PORT": str(port), "PYTHONPATH": str(folder), "NO_PROXY": "*"},
    )
    return dict(_ROW.findall(done.stdout)), done.stdout + done.stderr


@click.command()
@click.argument("checkout", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("base", required=False)
@click.option("--threads", type=int)
@click.option("--json", "as_json", is_flag=True)
def main(checkout: Path, base: str | None, threads: int | None, as_json: bool) -> None:
    """Runs the tests of CHECKOUT that apply against a server over BASE, the starter's by default."""
    checkout = checkout.resolve()
    if not (checkout / TESTS / "utils.py").is_file():
        raise click.ClickException(f"{checkout} has no {TESTS} with llama-server's tests")
    served_base = base or str(Pack.open(None).base_path(allow_pull=True))
    aliases = [word for name in ALIASES for word in ("--alias", f"{name}=base")]
    options = [*aliases, *threads_option(threads)]
    found: dict[str, str] = {}
    said = ""
    with tempfile.TemporaryDirectory(prefix="slm-edge-llama-tests-") as temporary:
        keys = Path(temporary) / "keys"
        keys.write_text(f"theirs  sha256:{hashlib.sha256(_SECRET.encode()).hexdigest()}  models:*\n", encoding="utf-8")
        keys.chmod(0o600)
        for tests, more in ((OPEN, []), (LOCKED, ["--keys", keys])):
            with served(served_base, *options, *more) as server:
                rows, text = run(checkout, server.port, tests)
                found, said = {**found, **rows}, said + text
    wrong = [name for name, end in found.items() if end != "PASSED"]
    # Where one name is wrong, pytest runs none of those that were asked with it.
    missing = [one for one in (*OPEN, *LOCKED) if not any(name == one or name.startswith(f"{one}[") for name in found)]
    if wrong or missing:
        click.echo(said[-6000:], err=True)
    bounds = [
        Bound("tests that did not pass", len(wrong), most=0),
        Bound("tests that were not run", len(missing), most=0),
    ]
    finish({"passed": len(found) - len(wrong), "tests": found if as_json else len(found)}, bounds, as_json=as_json)


if __name__ == "__main__":
    main()
