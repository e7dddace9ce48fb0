"""llama.cpp's server as xllamacpp holds it: run as a file by the Python that has it; nothing here imports slm_edge.

    python llama_server.py base.gguf --lora a.gguf --lora b.gguf --threads 2 --context 1024 --parallel 8

Prints {"port", "version"} as one line of JSON, and serves until its standard input ends. Adapters are off unless a
request's `lora` names them by number.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any


def started(base: str, loras: Sequence[str], *, threads: int, context: int, parallel: int) -> Any:
    """A server that listens on a port of its own, for as long as it is held.

    Args:
        context: tokens of each of its `parallel` places.
    """
    import xllamacpp

    given = xllamacpp.CommonParams()
    given.model.path = base
    given.n_ctx, given.n_parallel, given.verbosity, given.port = context * parallel, parallel, 0, 0
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = threads
    given.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in loras]
    return xllamacpp.Server(given)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("--lora", action="append", default=[])
    for name, default in (("--threads", 2), ("--context", 1024), ("--parallel", 8)):
        parser.add_argument(name, type=int, default=default)
    asked = parser.parse_args()
    # The library prints to both; our line goes where nothing else does.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sizes = {"threads": asked.threads, "context": asked.context, "parallel": asked.parallel}
    server = started(asked.base, asked.lora, **sizes)
    port = int(server.listening_address.rpartition(":")[2])
    print(json.dumps({"port": port, "version": version("xllamacpp")}), file=out, flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
