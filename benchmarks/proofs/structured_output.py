"""Decode under a schema against decode without, token by token in turns.

    python -m slm_edge.benchmarks.proofs.structured_output base.gguf

Each token of an answer is computed once; then it is chosen twice from the same logits, by a sampler that keeps to the
rules and by one that keeps to none, each of them first in turns. The ratio is (computing + choosing without) to
(computing + choosing with): 1 is no cost, and the bound for schemas is 0.97. Times are those of the processor in this
thread, which computes its share of each token: another process on the machine does not count. What comes before an
answer is told apart: the tokenizer once for a model, the rules once for an answer. Prints one JSON document.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import click

from ...edge.gguf.base import BaseInfo
from ...edge.gguf.chat_template import ChatTemplate
from ...edge.grammar.matcher import Grammar
from ...edge.grammar.rules import Rules, gbnf_grammar, regex_grammar, schema_grammar
from ...edge.llama.context import Context
from ...edge.llama.model import Model
from ...edge.llama.sampling import Sampler, Sampling

N_CTX_TOKENS = 1024
BOUND = 0.97
PROMPT = "List the planets of the solar system with their moons, as JSON."
_TEXT = {"type": "string", "minLength": 20, "maxLength": 300}
_PLANET = {
    "type": "object",
    "properties": {"name": _TEXT, "kind": {"enum": ["rock", "gas", "ice"]}, "moons": {"type": "integer"}},
    "required": ["name", "kind", "moons"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Rules] = {
    "schema of records": schema_grammar({"type": "array", "items": _PLANET, "minItems": 40}),
    "schema of a long text": schema_grammar({"type": "string", "minLength": 4000}),
    "any JSON object": schema_grammar({"type": "object"}),
}
RULES = SCHEMAS | {
    "regular expression": regex_grammar("([A-Z][a-z]+, ){60,90}"),
    "GBNF with recursion": gbnf_grammar(
        r'root ::= item root | "."' + "\n" + r'item ::= "[" (item | [^\[\]]+ " ") "]" | [a-zA-Z ]+ ","'
    ),
}


def measure(
    model: Model, context: Context, prompt: list[int], rules: Rules, sampling: Sampling, n: int
) -> dict[str, Any]:
    """Times in milliseconds of up to `n` tokens of one answer, and their ratio."""
    context.clear()
    context.decode(prompt, 0)
    began_s = time.perf_counter()
    grammar = Grammar(rules, model.vocab)
    ready_s = time.perf_counter() - began_s
    computing: list[float] = []
    plain: list[float] = []
    kept: list[float] = []
    with Sampler(sampling, grammar) as ruled, Sampler(sampling) as free:
        for i in range(n):
            order = ((ruled, kept), (free, plain))
            for sampler, times in order if i % 2 else order[::-1]:
                began_s = time.thread_time()
                token_id = sampler.sample(context)
                times.append(time.thread_time() - began_s)
                if sampler is ruled:
                    chosen = token_id
            if model.vocab.is_end(chosen):
                break
            began_s = time.thread_time()
            context.decode([chosen], len(prompt) + i)
            computing.append(time.thread_time() - began_s)
    first_s, kept, plain = kept[0], kept[1 : len(computing)], plain[1 : len(computing)]
    computed_s = statistics.median(computing[1:])
    return {
        "n_tokens": len(computing),
        "ready_ms": round(1000 * ready_s, 2),
        "first_choice_ms": round(1000 * first_s, 3),
        "computing_ms": round(1000 * computed_s, 3),
        "choosing_without_ms": round(1000 * statistics.mean(plain), 3),
        "choosing_with_ms": round(1000 * statistics.mean(kept), 3),
        "ratio": round((computed_s + statistics.mean(plain)) / (computed_s + statistics.mean(kept)), 4),
    }


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tokens", default=256, show_default=True)
@click.option("--threads", type=int)
def main(base: Path, tokens: int, threads: int | None) -> None:
    """Measure what rules cost while an answer is made."""
    template = ChatTemplate.of(BaseInfo.open(base).file)
    with Model.load(base) as model, Context(model, n_ctx_tokens=N_CTX_TOKENS, threads=threads) as context:
        prompt = model.vocab.encode(template.render([{"role": "user", "content": PROMPT}]))
        began_s = time.perf_counter()
        Grammar(gbnf_grammar('root ::= "a"'), model.vocab)
        tokenizer_ms = round(1000 * (time.perf_counter() - began_s), 1)
        rows = []
        for name, rules in RULES.items():
            for choosing, sampling in (("greedy", Sampling()), ("sampled", Sampling(temperature=0.8, seed=1))):
                found = measure(model, context, prompt, rules, sampling, tokens)
                rows.append({"rules": name, "choosing": choosing} | found)
                click.echo(json.dumps(rows[-1]), err=True)
    lowest = min(row["ratio"] for row in rows if row["rules"] in SCHEMAS)
    document = {
        "base": base.name,
        "tokenizer_ms": tokenizer_ms,
        "rows": rows,
        "lowest_of_schemas": lowest,
        "bound": BOUND,
    }
    click.echo(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
