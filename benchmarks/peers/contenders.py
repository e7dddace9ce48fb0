"""One contender in a process of its own: it reads orders as lines of JSON and answers each with a line.

    python contenders.py llama-server base.gguf --threads 2 --context 4096 --parallel 8 [--lora adapter.gguf]

Run as a file, by the Python that has the contender's package; nothing here imports slm_edge but for our own.
The first line out is {"load_s", "version", "has_lora"}; or {"unable": why}. Orders:

    {"one": text, "tokens": n, "lora": bool} -> {"prompt_tokens", "first_s", "rest_s", "tokens"}
    {"many": [text, …], "tokens": n, "lora": bool} -> {"seconds", "tokens"}

Answers are greedy. `first_s` is the time to the first token of a prompt, `rest_s` that of the tokens after it. What a
contender keeps of earlier prompts is left as its users get it; whoever wants a prompt computed gives a new text.
"""

import argparse
import contextlib
import json
import os
import runpy
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


class Unable(Exception):
    """This contender cannot do what is asked; the text says why."""


class Contender:
    """Loads in its constructor. `lora` is the adapter's file, or None."""

    has_lora = True

    def __init__(self, base: Path, lora: Path | None, *, threads: int, context: int, parallel: int) -> None:
        raise NotImplementedError

    def one(self, text: str, tokens: int, lora: bool) -> dict[str, Any]:
        """Answers alone."""
        raise NotImplementedError

    def many(self, texts: list[str], tokens: int, lora: bool) -> int:
        """Answers together; returns how many tokens came."""
        counts = [0] * len(texts)

        def answer(at: int) -> None:
            counts[at] = self.one(texts[at], tokens, lora)["tokens"]

        waiting = [threading.Thread(target=answer, args=(at,)) for at in range(len(texts))]
        for thread in waiting:
            thread.start()
        for thread in waiting:
            thread.join()
        return sum(counts)

    def version(self) -> str:
        raise NotImplementedError


class Clock:
    """Seconds to the first and to the last of the pieces that it is told of."""

    def __init__(self) -> None:
        self._began_s = time.perf_counter()
        self._at_s: list[float] = []

    def piece(self) -> None:
        self._at_s.append(time.perf_counter() - self._began_s)

    def found(self, prompt_tokens: int, tokens: int) -> dict[str, Any]:
        first_s, last_s = (self._at_s[0], self._at_s[-1]) if self._at_s else (0.0, 0.0)
        return {"prompt_tokens": prompt_tokens, "first_s": first_s, "rest_s": last_s - first_s, "tokens": tokens}


class Ours(Contender):
    """`slm_edge.Engine`, as `slm-edge serve` runs it."""

    def __init__(self, base: Path, lora: Path | None, *, threads: int, context: int, parallel: int) -> None:
        from slm_edge.edge.scheduler.engine import Engine
        from slm_edge.edge.system.machine import default_threads

        adapters = {} if lora is None else {"a": (lora, None)}
        # The number that it would choose by itself is left to it, and it may choose anew beside a busy process.
        chosen = None if threads == default_threads() else threads
        self._engine = Engine.of_session(
            lambda: self._opened(base, adapters, threads=chosen, n_ctx_tokens=context, n_rows=parallel),
            parallel=parallel,
            max_wait_s=3600,
        )

    def _opened(self, base: Path, adapters: Any, **options: Any) -> Any:
        from slm_edge.edge.session.session import Session

        return Session.of_files(base, adapters, **options)

    def one(self, text: str, tokens: int, lora: bool) -> dict[str, Any]:
        clock = Clock()
        ids = self._engine.tokenize(text)
        ticket = self._engine.submit(ids, "a" if lora else None, max_tokens=tokens, temperature=0)
        for _ in ticket:
            clock.piece()
        return clock.found(len(ids), ticket.result().n_tokens)

    def version(self) -> str:
        return "slm-edge " + version("slm-edge")


class OursOnnx(Ours):
    """The same over the ONNX form: `base` is its folder, `lora` an adapter's folder."""

    def _opened(self, base: Path, adapters: Any, **options: Any) -> Any:
        from slm_edge.edge.onnx.session import OnnxSession

        return OnnxSession.of_files(base, adapters, **options)


class LlamaCppPython(Contender):
    """`llama_cpp.Llama`, which answers one request at a time."""

    def __init__(self, base: Path, lora: Path | None, *, threads: int, context: int, parallel: int) -> None:
        from llama_cpp import Llama

        self._models = {}
        options: dict[str, Any] = {"n_ctx": context, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
        # It takes an adapter only at its start: a model each.
        for with_lora in (False, True) if lora is not None else (False,):
            options["lora_path"] = str(lora) if with_lora else None
            self._models[with_lora] = Llama(model_path=str(base), flash_attn=True, **options)
        self._lock = threading.Lock()

    def one(self, text: str, tokens: int, lora: bool) -> dict[str, Any]:
        model = self._models[lora]
        with self._lock:
            clock, count = Clock(), 0
            for _ in model.create_completion(text, max_tokens=tokens, temperature=0, stream=True):
                clock.piece()
                count += 1
            return clock.found(len(model.tokenize(text.encode())), count)

    def version(self) -> str:
        return "llama-cpp-python " + version("llama-cpp-python")


class LlamaServer(Contender):
    """llama.cpp's server as xllamacpp holds it, asked over HTTP."""

    def __init__(self, base: Path, lora: Path | None, *, threads: int, context: int, parallel: int) -> None:
        # Read by its path, since slm_edge is not there to be imported.
        started = runpy.run_path(str(Path(__file__).parents[1] / "serving" / "llama_server.py"))["started"]
        loras = [] if lora is None else [str(lora)]
        self._server = started(str(base), loras, threads=threads, context=context, parallel=parallel)

    def one(self, text: str, tokens: int, lora: bool) -> dict[str, Any]:
        import urllib.request

        asked = {"prompt": text, "n_predict": tokens, "temperature": 0, "stream": True, "cache_prompt": True}
        asked["lora"] = [{"id": 0, "scale": 1.0}] if lora else []
        clock, last = Clock(), {}
        # A loopback proxy would be somebody else's answer.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(
            f"{self._server.listening_address}/completion",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with opener.open(request) as reply:
            for line in reply:
                if line.startswith(b"data: {"):
                    last = json.loads(line[6:])
                    if last.get("content"):
                        clock.piece()
        return clock.found(last["tokens_evaluated"], last["tokens_predicted"])

    def version(self) -> str:
        return "xllamacpp " + version("xllamacpp")


class OpenVino(Contender):
    """OpenVINO GenAI's pipeline with continuous batching, on the same GGUF."""

    has_lora = False

    def __init__(self, base: Path, lora: Path | None, *, threads: int, context: int, parallel: int) -> None:
        import openvino_genai

        self._pipeline = openvino_genai.LLMPipeline(str(base), "CPU", INFERENCE_NUM_THREADS=threads)

    def _generated(self, texts: list[str], tokens: int) -> Any:
        return self._pipeline.generate(texts, max_new_tokens=tokens, apply_chat_template=False, do_sample=False)

    def one(self, text: str, tokens: int, lora: bool) -> dict[str, Any]:
        found = self._generated([text], tokens).perf_metrics
        count = found.get_num_generated_tokens()
        rest_s = found.get_tpot().mean * (count - 1) / 1e3 if count > 1 else 0.0
        first_s = found.get_ttft().mean / 1e3
        return {
            "prompt_tokens": found.get_num_input_tokens(),
            "first_s": first_s,
            "rest_s": rest_s,
            "tokens": count,
        }

    def many(self, texts: list[str], tokens: int, lora: bool) -> int:
        return int(self._generated(texts, tokens).perf_metrics.get_num_generated_tokens())

    def version(self) -> str:
        return "openvino-genai " + version("openvino-genai")


class MistralRs(Contender):
    """mistral.rs on the same GGUF."""

    has_lora = False

    def __init__(self, base: Path, lora: Path | None, *, threads: int, context: int, parallel: int) -> None:
        import mistralrs

        self._module = mistralrs
        which = mistralrs.Which.GGUF(quantized_model_id=str(base.parent), quantized_filename=base.name)
        self._runner = mistralrs.Runner(which=which, max_seqs=parallel)

    def one(self, text: str, tokens: int, lora: bool) -> dict[str, Any]:
        asked = self._module.CompletionRequest(prompt=text, model="default", max_tokens=tokens, temperature=0.0)
        began_s = time.perf_counter()
        used = self._runner.send_completion_request(asked).usage
        all_s = time.perf_counter() - began_s
        rest_s = min(all_s, used.total_completion_time_sec)
        count = {"prompt_tokens": used.prompt_tokens, "tokens": used.completion_tokens}
        return {**count, "first_s": all_s - rest_s, "rest_s": rest_s}

    def version(self) -> str:
        return "mistralrs " + version("mistralrs")


class OnnxGenai(Contender):
    """onnxruntime-genai, on a folder that its own model builder made: it reads no GGUF."""

    has_lora = False

    def __init__(self, base: Path, lora: Path | None, *, threads: int, context: int, parallel: int) -> None:
        import onnxruntime_genai

        self._module = onnxruntime_genai
        self._config = onnxruntime_genai.Config(str(base))
        self._model = onnxruntime_genai.Model(self._config)
        self._tokenizer = onnxruntime_genai.Tokenizer(self._model)

    def one(self, text: str, tokens: int, lora: bool) -> dict[str, Any]:
        clock = Clock()
        ids = self._tokenizer.encode(text)
        params = self._module.GeneratorParams(self._model)
        params.set_search_options(max_length=len(ids) + tokens, do_sample=False)
        generator = self._module.Generator(self._model, params)
        generator.append_tokens(ids)
        count = 0
        while not generator.is_done():
            generator.generate_next_token()
            clock.piece()
            count += 1
        return clock.found(len(ids), count)

    def version(self) -> str:
        return "onnxruntime-genai " + version("onnxruntime-genai")


KINDS: dict[str, type[Contender]] = {
    "ours": Ours,
    "ours-onnx": OursOnnx,
    "llama-cpp-python": LlamaCppPython,
    "llama-server": LlamaServer,
    "openvino": OpenVino,
    "mistralrs": MistralRs,
    "onnxruntime-genai": OnnxGenai,
}


def served(order: dict[str, Any], contender: Contender) -> dict[str, Any]:
    """The answer to one order."""
    lora = bool(order.get("lora"))
    if lora and not contender.has_lora:
        raise Unable("it takes no GGUF adapter")
    if "one" in order:
        return contender.one(order["one"], order["tokens"], lora)
    began_s = time.perf_counter()
    tokens = contender.many(order["many"], order["tokens"], lora)
    return {"seconds": time.perf_counter() - began_s, "tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("base", type=Path)
    parser.add_argument("--lora", type=Path)
    for name, default in (("--threads", 2), ("--context", 2048), ("--parallel", 8)):
        parser.add_argument(name, type=int, default=default)
    given = parser.parse_args()
    # The libraries print to both; our lines go where nothing else does.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=out, flush=True)

    os.environ["RAYON_NUM_THREADS"] = str(given.threads)
    kind = KINDS[given.kind]
    try:
        began_s = time.perf_counter()
        lora = given.lora if kind.has_lora else None
        sizes = {name: getattr(given, name) for name in ("threads", "context", "parallel")}
        contender = kind(given.base, lora, **sizes)
        load_s = time.perf_counter() - began_s
        tell({"load_s": load_s, "version": contender.version(), "has_lora": kind.has_lora})
    except Exception as error:  # noqa: BLE001 whatever a contender raises, the others go on
        tell({"unable": f"{type(error).__name__}: {error}"[:300]})
        return
    for line in sys.stdin:
        try:
            tell(served(json.loads(line), contender))
        except Exception as error:  # noqa: BLE001
            tell({"unable": f"{type(error).__name__}: {error}"[:300]})


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
